"""Training: the reference's first steps, the loss falls, runs resume bit for bit, bad input."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import GOLDEN_NETWORK, relative_error

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.networks import Precond
from autoguide_fast.trainer import durable, loop
from autoguide_fast.trainer.ema import PowerFunctionEMA
from autoguide_fast.trainer.loss import EDM2Loss
from autoguide_fast.trainer.optimizer import (
    LossScale,
    Update,
    gradients_of,
    load_moments,
    make_optimizer,
    moments,
    set_rate,
)
from autoguide_fast.trainer.options import TrainOptions

# Gradients of weights carry the rounding of two passes. That of a scalar gain is one number in
# which a whole layer's terms nearly cancel: two float32 orders of summation differ by 1e-5 there.
GOLDEN_GRADIENT = 2 * GOLDEN_NETWORK
GOLDEN_GRADIENT_SCALAR = 3e-5

TINY = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 64.0, "seed": 5}


# --- golden -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """Three steps of training on the golden batches: net, averages, losses, first gradients."""
    data = np.load(Path(__file__).parent / "data" / "training_steps.npz")
    arrays = {k: torch.from_numpy(data[k]) for k in data.files if k != "config_json"}
    net = Precond(**json.loads(str(data["config_json"]))).train()
    prefix = "start/"
    start = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    net.load_state_dict(start)
    optimizer, averages = make_optimizer(net), PowerFunctionEMA(net)
    set_rate(optimizer, 0.01)
    update = Update(optimizer, LossScale("fp32", 1.0))
    losses, gradients = [], {}
    for i in range(3):
        images, labels, sigma, noise = (
            arrays[f"{k}{i}"] for k in ("images", "labels", "sigma", "noise")
        )
        loss = EDM2Loss()(net, images, labels, sigma=sigma, noise=noise)
        losses.append(loss.detach().mean())
        optimizer.zero_grad()
        (loss.sum() / len(images)).backward()
        update()
        assert update.norm.isfinite()
        if i == 0:
            gradients = {k: p.grad.clone() for k, p in net.named_parameters()}
        averages.update(8 * (i + 1), 8)
    return arrays, net, averages, losses, gradients


def test_losses_match_golden(golden):
    arrays, _, _, losses, _ = golden
    for i, loss in enumerate(losses):
        assert relative_error(loss, arrays[f"loss_mean{i}"]) < GOLDEN_NETWORK


def test_gradients_match_golden(golden):
    arrays, _, _, _, gradients = golden
    names = [k.removeprefix("grad_step0/") for k in arrays if k.startswith("grad_step0/")]
    assert sorted(names) == sorted(gradients)
    for name in names:
        scalar = gradients[name].ndim == 0
        tolerance = GOLDEN_GRADIENT_SCALAR if scalar else GOLDEN_GRADIENT
        assert relative_error(gradients[name], arrays[f"grad_step0/{name}"]) < tolerance, name


@pytest.mark.parametrize("which", ["after3", "ema-0.050", "ema-0.100"])
def test_weights_after_three_steps_match_golden(golden, which):
    arrays, net, averages, _, _ = golden
    states = [net.state_dict(), *(average.state_dict() for average in averages.emas)]
    state = dict(zip(["after3", "ema-0.050", "ema-0.100"], states, strict=True))[which]
    names = [k.removeprefix(which + "/") for k in arrays if k.startswith(which + "/")]
    assert names
    for name in names:
        assert relative_error(state[name], arrays[f"{which}/{name}"]) < GOLDEN_NETWORK, name


# --- the loop -----------------------------------------------------------------------------------


def test_each_image_gets_a_level_of_its_own_from_the_published_distribution():
    seen = []

    def net(x, sigma, class_labels, return_logvar):
        seen.append(sigma)
        return torch.zeros_like(x), torch.zeros(len(x))

    images = torch.zeros(4000, 3, 2, 2)
    loss = EDM2Loss()(net, images, generator=torch.Generator().manual_seed(0))
    (sigma,) = seen
    assert loss.shape == images.shape and sigma.shape == (4000, 1, 1, 1)
    logarithm = sigma.log()
    assert float(logarithm.mean()) == pytest.approx(-0.4, abs=0.05)
    assert float(logarithm.std()) == pytest.approx(1.0, abs=0.05)


def test_levels_without_spread_are_one():
    def net(x, sigma, class_labels, return_logvar):
        torch.testing.assert_close(sigma, torch.full_like(sigma, 2.0))
        return torch.zeros_like(x), torch.zeros(len(x))

    EDM2Loss(P_mean=math.log(2), P_std=0)(net, torch.zeros(3, 1, 2, 2))


def test_training_reduces_the_loss():
    trainer = loop.Trainer(TrainOptions(**{**TINY, "channels": 8, "batch": 32, "lr": 0.02}))
    losses = [trainer.step() for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_unlabelled_training_has_no_label_weights():
    trainer = loop.Trainer(TrainOptions(**TINY, labelled=False))
    trainer.step()
    assert trainer.net.label_dim == 0
    assert not any("emb_label" in name for name, _ in trainer.net.named_parameters())


def test_forced_normalisation_holds_the_weights_magnitude():
    trainer = loop.Trainer(TrainOptions(**TINY, lr=0.5))
    for _ in range(4):
        trainer.step()
    with torch.no_grad():  # a forward pass in training mode normalises what the step left
        trainer.net(torch.zeros(1, 1, 8, 8), torch.tensor(1.0), torch.zeros(1, 10))
    weight = trainer.net.unet.enc["8x8_block0"].conv_res0.weight
    torch.testing.assert_close(weight.pow(2).mean([1, 2, 3]), torch.ones(4), rtol=1e-3, atol=0)


def test_gradients_are_freed_before_the_next_pass():
    """Of parameters and of the optimiser's views alike: they would double what a pass takes."""
    trainer = loop.Trainer(TrainOptions(**TINY))
    trainer.step()
    gradients = [weakref.ref(g) for g in gradients_of(trainer.optimizer)]
    assert len(gradients) == len(list(trainer.net.parameters()))
    left, loss = [], trainer.loss
    trainer.loss = lambda *a, **k: left.extend(g() for g in gradients) or loss(*a, **k)
    trainer.step()
    assert len(left) == len(gradients) and not any(g is not None for g in left)


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_is_bit_exact(tmp_path, dropout):
    options = TrainOptions(**TINY, duration=160, snapshots=5, dropout=dropout)
    whole = loop.train(options, tmp_path / "whole", progress=False)
    part = loop.train(options, tmp_path / "part", progress=False, stop=lambda nimg: nimg >= 80)
    assert part.nimg == 80
    torch.manual_seed(99)  # what else draws numbers must not matter
    rest = loop.train(options, tmp_path / "part", resume=True, progress=False)
    assert states_equal(whole.net.state_dict(), rest.net.state_dict())
    for a, b in zip(whole.ema.emas, rest.ema.emas, strict=True):
        assert states_equal(a.state_dict(), b.state_dict())
    names = [
        sorted(f.name for f in (tmp_path / d / "snapshots").iterdir()) for d in ("whole", "part")
    ]
    assert names[0] == names[1] and len(names[0]) == 10


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loop.train(TrainOptions(**TINY, duration=32, snapshots=1), tmp_path / "run", progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_interruption_saves_and_stops(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    options = TrainOptions(**TINY, duration=1600, snapshots=2)

    def press_ctrl_c(nimg):
        if nimg == 48:
            signal.raise_signal(signal.SIGINT)
        return False

    stopped = loop.train(options, tmp_path / "run", progress=False, stop=press_ctrl_c)
    # Where the signal came after the question was put, one more step runs.
    assert stopped.nimg in (48, 64)
    assert signal.getsignal(signal.SIGINT) is handler
    state = durable.load_checkpoint(tmp_path / "run" / loop.CHECKPOINTS, pytest.fail)
    assert state["nimg"] == stopped.nimg
    assert states_equal(state["net"], stopped.net.state_dict())


@pytest.mark.parametrize(("bad", "becomes"), [("nan", 0.0), ("inf", 1e5), ("-inf", -1e5)])
def test_non_finite_gradients_are_repaired(bad, becomes):
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([p], lr=1e-5)
    update = Update(optimizer, LossScale("fp32", 1.0))
    (p * torch.tensor([float(bad), 1.0])).sum().backward()
    update()
    assert not update.norm.isfinite()
    torch.testing.assert_close(p.grad, torch.tensor([becomes, 1.0]))
    assert torch.isfinite(p).all()


def test_the_loss_scale_halves_on_overflow_and_doubles_after_2000_good_steps():
    scale, good, overflow = LossScale("fp16", 4.0), torch.tensor(0.0), torch.tensor(1.0)
    scale.adjust(overflow)
    assert scale.state() == [2.0, 0]
    for _ in range(1999):
        scale.adjust(good)
    assert scale.state() == [2.0, 1999]
    scale.adjust(good)
    assert scale.state() == [4.0, 0]
    scale.adjust(good)
    scale.adjust(overflow)  # which breaks the row
    assert scale.state() == [2.0, 0]
    for _ in range(3):
        scale.adjust(overflow)
    assert scale.state() == [1.0, 0]  # and no lower
    again = LossScale("fp16", 64.0)
    again.load([8.0, 1999])
    again.adjust(good)
    assert again.state() == [16.0, 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_scale_is_1_where_nothing_overflows(precision):
    scale = LossScale(precision, 64.0)
    assert scale.state() == [1.0, 0] and not scale.dynamic


def test_a_loss_scale_divides_the_gradients_and_leaves_out_what_overflows():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(torch.nn.ParameterList([p]))
    set_rate(optimizer, 0.1)
    update = Update(optimizer, LossScale("fp16", 8.0))
    p.grad = torch.tensor([24.0, 32.0])
    update()
    assert update.norm.item() == 5.0 and update.scale.state() == [8.0, 1]
    torch.testing.assert_close(p.grad, torch.tensor([3.0, 4.0]))
    stepped = p.detach().clone()
    torch.testing.assert_close(stepped, torch.tensor([0.9, 0.9]))
    p.grad = torch.tensor([torch.inf, 1.0])
    update()
    assert torch.equal(p, stepped) and update.scale.state() == [4.0, 0]
    assert not update.norm.isfinite()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_are_shaped_as_the_weights_and_come_back(layout):
    """Whatever the layout of the net that gives them, and of the one that takes them."""
    torch.manual_seed(0)
    net = torch.nn.Conv2d(2, 3, 3).to(memory_format=layout)
    other = torch.nn.Conv2d(2, 3, 3)
    optimizers = [make_optimizer(each) for each in (net, other)]
    for _ in range(2):
        for each, optimizer in zip((net, other), optimizers, strict=True):
            each.weight.grad = torch.arange(54.0).reshape(3, 2, 3, 3)
            each.bias.grad = torch.ones(3)
            set_rate(optimizer, 0.5)
            gradients_of(optimizer)
            optimizer.step()
    stored, plain = map(moments, optimizers)
    for mine, theirs in zip(stored, plain, strict=True):
        assert mine.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name])
    for source, optimizer in ((stored, optimizers[1]), (plain, optimizers[0])):
        load_moments(optimizer, source)
        for mine, theirs in zip(moments(optimizer), source, strict=True):
            for name in theirs:
                assert torch.equal(mine[name], theirs[name]), name
                assert mine[name].data_ptr() != theirs[name].data_ptr(), name


# --- snapshots ----------------------------------------------------------------------------------


def test_snapshots_give_tracked_and_other_averages(tmp_path):
    options = TrainOptions(**TINY, duration=320, snapshots=10)
    trainer = loop.train(options, tmp_path / "run", progress=False)
    stored = Snapshots(tmp_path / "run")
    assert stored.times == list(range(32, 321, 32))
    assert stored.nearest_time(0.5) == 160
    tracked = stored.net(320, 0.10).state_dict()
    for name, value in trainer.ema.emas[1].state_dict().items():
        torch.testing.assert_close(tracked[name], value, rtol=1e-5, atol=1e-6)
    file = checkpoints.load(tmp_path / "run" / "snapshots" / "000000320-0.100.safetensors")
    assert file.info == {"nimg": 320, "sigma_rel": 0.1}
    assert file.encoder.name == "pixels"
    other = stored.net(160, 0.20)
    assert not other.training
    assert other(torch.zeros(1, 1, 8, 8), torch.tensor(1.0)).isfinite().all()
    with pytest.raises(ValueError, match="nimg must be one of the stored"):
        stored.net(33, 0.1)
    with pytest.raises(ValueError, match="must be a folder that"):
        Snapshots(tmp_path)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duration": 100, "batch": 64}, "duration must be a multiple of batch=64"),
        ({"channels": 0}, "channels must be >= 1"),
        ({"lr": -0.1}, "lr must be >= 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"label_dropout": 1.0}, r"label_dropout must lie in \[0, 1\)"),
        ({"label_dropout": 0.1, "labelled": False}, "label_dropout must be 0 without labels"),
        ({"sigma_data": 0}, "sigma_data must be > 0"),
        ({"eps": 0.0}, "eps must be > 0, got 0.0; 1e-08 is usual"),
        ({"ema": (0.05, 0.3)}, r"train: ema must lie in \(0, 0.2887\), got 0.3; typical"),
        ({"ema": 0.05}, r"ema must be several values, got 0.05; for example \[0.05, 0.1\]"),
        ({"attn_resolutions": (8, 0)}, "attn_resolutions must hold integers >= 1"),
        ({"batch": 16.5}, "batch must be an integer, got 16.5; the default is 256"),
        ({"flip": 1}, "flip must be True or False, got 1"),
        ({"data": None}, "data must be a string, got None"),
        ({"lr": "0.1"}, "lr must be a finite number, got '0.1'"),
        ({"seed": -1}, "seed must be >= 0"),
        ({"ema": ()}, "ema must name at least one"),
        ({"ema": (0.1, 0.1)}, "ema must name each average once"),
        ({"channel_mult": ()}, "channel_mult must hold integers"),
        ({"split": "heldout"}, "split must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**options)


FLOATS = [f.name for f in dataclasses.fields(TrainOptions) if "float" in f.type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FLOATS)
def test_no_option_takes_a_number_that_is_not_finite(name, value):
    several = isinstance(getattr(TrainOptions(), name), tuple)
    with pytest.raises(ValueError, match=f"train: {name} must (be|hold) a finite number"):
        TrainOptions(**{name: (0.1, value) if several else value})


def test_bad_folders(tmp_path):
    options = TrainOptions(**TINY, duration=32, snapshots=1)
    with pytest.raises(ValueError, match="without one; leave out --resume"):
        loop.train(options, tmp_path / "run", resume=True, progress=False)
    loop.train(options, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="add --resume"):
        loop.train(options, tmp_path / "run", progress=False)
    changed = TrainOptions(**{**TINY, "batch": 32}, lr=0.1, duration=32, snapshots=1)
    with pytest.raises(ValueError, match=r"batch was 16, is 32, lr was 0.01, is 0.1"):
        loop.train(changed, tmp_path / "run", resume=True, progress=False)


def test_a_checkpoint_of_another_version_is_named(tmp_path):
    options = TrainOptions(**TINY, duration=32, snapshots=1)
    trainer = loop.train(options, tmp_path / "run", progress=False)
    state = trainer.state_dict()
    del state["format"]  # as before there was a number
    durable.save_checkpoint(tmp_path / "run" / loop.CHECKPOINTS, 48, state)
    with pytest.raises(ValueError, match="must have format 2, got 1, that of another version"):
        loop.train(options, tmp_path / "run", resume=True, progress=False)


def test_a_run_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "step", lambda self: float("nan"))
    with pytest.raises(FloatingPointError, match="loss must stay finite, got nan"):
        loop.train(TrainOptions(**TINY, duration=32), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EDM2Loss(P_std=-1), "P_std must be >= 0"),
        (lambda: EDM2Loss(sigma_data=0), "sigma_data must be > 0"),
        (lambda: EDM2Loss(P_mean=float("nan")), "P_mean must be finite"),
        (lambda: EDM2Loss(P_std=float("inf")), "P_std must be >= 0 and finite"),
        (lambda: EDM2Loss(sigma_data=float("inf")), "sigma_data must be > 0 and finite"),
    ],
)
def test_bad_loss_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()
