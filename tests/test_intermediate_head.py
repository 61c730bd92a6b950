"""A second output within the net: trained along with it, its guide, in one pass with it."""

import copy
import json
import warnings

import pytest
import torch
from nets import tiny
from references import assert_denoised
from tape import Tape
from test_trainer_distributed import LOSS, OPTIONS, TRAIN, state_in
from tolerances import BAKED, ENGINE, relative_error

from autoguide_fast import Engine, load, sample, unlabelled
from autoguide_fast.checkpoints import Snapshots, save
from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.cli import main
from autoguide_fast.engine.cpu_engine import CpuEngine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.engine.joint import common_plan
from autoguide_fast.guidance import intermediate_head, weakened
from autoguide_fast.networks import Precond
from autoguide_fast.textbook import TextbookPrecond
from autoguide_fast.trainer import loop
from autoguide_fast.trainer.loss import EDM2Loss
from autoguide_fast.trainer.options import TrainOptions

X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(3))
SIGMA, LABELS = torch.tensor(1.3), torch.eye(5)[[3, 1, 4]]
HEADS = ["dec.8x8_up", "dec.8x8_block0"]
BLOCK = HEADS[1]
SMALL = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 32.0, "snapshots": 2}


@pytest.fixture(scope="module", params=HEADS)
def net(request):
    return tiny(head_after=request.param)


def test_the_head_reads_what_its_block_gives(net):
    """By hand: a normalised convolution of the block's output, and the preconditioning."""
    seen = []
    block = net.unet.dec[net.unet.head_after]
    with block.register_forward_hook(lambda *given: seen.append(given[-1])):
        denoised, logvar, head = net(X, SIGMA, LABELS, return_logvar=True, return_head=True)
    weight = net.unet.head_conv.weight.double()
    norm = weight.flatten(1).norm(dim=1)[:, None, None, None]
    kernel = net.unet.head_gain.double() * weight / (norm + 1e-4 * weight[0].numel() ** 0.5)
    raw = torch.nn.functional.conv2d(seen[0].double(), kernel, padding=1)
    total = SIGMA.double() ** 2 + 0.25
    expected = 0.25 / total * X + 0.5 * SIGMA / total.sqrt() * raw
    assert relative_error(head, expected) < 3e-6
    assert torch.equal(denoised, net(X, SIGMA, LABELS))
    assert torch.equal(logvar, net(X, SIGMA, LABELS, return_logvar=True)[1])
    assert torch.equal(head, net(X, SIGMA, LABELS, return_head=True)[1])
    assert relative_error(head, denoised) > 1e-2


def test_the_guide_is_the_head(net):
    guide = intermediate_head(net)
    head = net(X, SIGMA, LABELS, return_head=True)[1]
    assert torch.equal(guide(X, SIGMA, LABELS), head)
    assert_denoised(head, guide, X, SIGMA, LABELS)
    assert guide.unet.out_conv.weight is net.unet.head_conv.weight
    assert guide.unet.enc["8x8_conv"].weight is net.unet.enc["8x8_conv"].weight


def test_a_head_leaves_the_net_as_it_was(net):
    plain = tiny()
    for name, weight in net.unet.named_parameters():
        if "head" not in name and weight.ndim:
            assert torch.equal(weight, plain.unet.get_parameter(name))
    plain.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(plain(X, SIGMA, LABELS), net(X, SIGMA, LABELS))


@pytest.mark.parametrize("dtype", list(ENGINE), ids=str)
def test_engine(net, dtype, isa):
    guide = intermediate_head(net)
    exact = TextbookPrecond(copy.deepcopy(guide).double())(X, SIGMA, LABELS)
    with torch.no_grad():
        found = Engine(net, guide, dtype).guide(X, SIGMA, LABELS)
    assert relative_error(found, exact) < ENGINE[dtype]


@pytest.mark.parametrize("dtype", list(BAKED)[:2], ids=str)
def test_gpu_engine(net, dtype):
    guide = intermediate_head(net)
    engine = GpuEngine(net, guide, dtype, recorder=Tape())
    for mine, of in ((engine.model, net), (engine.guide, guide)):
        exact = TextbookPrecond(copy.deepcopy(of).double())(X, SIGMA, LABELS)
        assert relative_error(mine(X, SIGMA, LABELS), exact) < BAKED[dtype]


@pytest.mark.parametrize("dtype", list(ENGINE), ids=str)
def test_one_pass_for_both(net, dtype):
    """An engine adds one convolution, and what stores its result, to the model's plan."""
    guide = intermediate_head(net)
    engine, apart = CpuEngine(net, guide, dtype), CpuEngine(net, copy.deepcopy(guide), dtype)
    joint, model = engine.joint["guide"].lowered, engine.model.lowered
    assert len(joint.plan) == len(model.plan) + 2
    head = 2 * X[0].numel() * net.unet.head_conv.weight[0].numel()
    assert sum(joint.flops) - sum(model.flops) == pytest.approx(head, rel=0.5)  # padded channels
    _, saved = common_plan(model, engine.guides[0].lowered)
    assert saved > 0.98
    options = {"seeds": range(3), "num_steps": 4, "class_labels": LABELS, "guidance": 1.7}
    assert torch.equal(sample(engine, **options), sample(apart, **options))


def test_sampling(net):
    """The same by name, as a net, and as plain functions."""
    options = {"seeds": range(3), "num_steps": 5, "class_labels": LABELS, "guidance": 1.7}
    guide = intermediate_head(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sample(net, "self:head", **options)
    assert torch.equal(found, sample(net, guide, **options))
    plain = [lambda *given, each=each: each(*given) for each in (net, guide)]
    eager = sample(*plain, **options, shape=(2, 8, 8))
    assert relative_error(found, eager) < 2e-4
    assert relative_error(found, sample(net, **options | {"guidance": 1.0})) > 1e-3
    noisy = sample(net, "self:head,input_noise=0.2", **options)
    weaker = sample(net, "self:head,attn_temperature=0", **options)
    assert len({t.sum().item() for t in (found, noisy, weaker)}) == 3


def test_files_hold_it(net, tmp_path):
    for each in (net, intermediate_head(net)):
        save(each, tmp_path / "net.safetensors")
        again = load(tmp_path / "net.safetensors")
        assert again.config == each.config
        assert torch.equal(again(X, SIGMA, LABELS), each(X, SIGMA, LABELS))
    assert "ends_after" not in net.config and "head_after" in net.config
    assert "head_after" not in tiny().config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_after": "8x8_block0"}, "head_after must name a block .* has dec.8x8_up, dec.8x8_b"),
        ({"head_after": "dec.4x4_block0"}, "head_after must name a block of the decoder at full"),
        ({"head_after": "dec.8x8_block1"}, "but the last, got 'dec.8x8_block1'"),
        ({"ends_after": "enc.8x8_block0"}, "ends_after must name a block of the decoder at full"),
        ({"head_after": 3}, "head_after must be the name of a decoder's block, got 3"),
        ({"ends_after": ["dec.8x8_up"]}, "ends_after must be the name of a decoder's block"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Precond(8, 2, 5, model_channels=8, channel_mult=[1, 2], num_blocks=1, **options)


def test_nets_without_a_head_say_so(tmp_path, capsys):
    with pytest.raises(ValueError, match="intermediate_head: net must have a head, got one with"):
        sample(tiny(), "self:head", 1.5, seeds=[0], class_labels=3)
    with pytest.raises(ValueError, match="return_head must be False for a net without a head"):
        tiny()(X, SIGMA, LABELS, return_head=True)
    with pytest.raises(TypeError, match="net must be a Precond, got Unlabelled"):
        intermediate_head(unlabelled(tiny(head_after=BLOCK)))
    weak = weakened(tiny(head_after=BLOCK), attn_temperature=0)
    assert intermediate_head(weak).config["attn_temperature"] == 0
    assert main(["train", "--out", str(tmp_path / "run"), "--head-after", "dec.4x4_in0"]) == 2
    assert "head_after must name a block" in capsys.readouterr().err
    with pytest.raises(ValueError, match="head_weight must be > 0 with head_after, got 0"):
        TrainOptions(head_after=BLOCK, head_weight=0.0)
    for weight in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="EDM2Loss: head_weight must be >= 0 and finite"):
            EDM2Loss(head_weight=weight)


def test_the_loss_is_that_of_both_outputs(net):
    """By the equation; the uncertainty learns from the last output alone."""
    images, sigma = X, torch.tensor([0.2, 1.0, 3.0]).reshape(-1, 1, 1, 1)
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    told = {"class_labels": LABELS, "sigma": sigma, "noise": noise}
    both, one = EDM2Loss(head_weight=0.3)(net, images, **told), EDM2Loss()(net, images, **told)
    _, logvar, head = net(
        images + sigma * noise, sigma, LABELS, return_logvar=True, return_head=True
    )
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    added = 0.3 * weight / logvar.exp() * (head - images) ** 2
    torch.testing.assert_close(both, one + added)
    uncertainty = net.logvar_linear.weight
    gradients = [torch.autograd.grad(loss.sum(), uncertainty)[0] for loss in (both, one)]
    torch.testing.assert_close(*gradients)


def head_error(net):
    from autoguide_fast.digits import load_digits

    images = load_digits("heldout")[0][:128].float() / 127.5 - 1
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, head = net(images + 0.5 * noise, 0.5, return_head=True)
    return (head - images).square().mean().item()


def test_training_a_net_with_a_head(tmp_path, capsys):
    """It learns; a run that was interrupted goes on bit for bit; its guide has no head."""
    arguments = ["--out", str(tmp_path / "run"), "--head-after", BLOCK, "--quiet", "--grid", "0"]
    for name, value in SMALL.items():
        arguments += ["--" + name.replace("_", "-"), str(value)]
    assert main(["train", *arguments, "--duration", "640", "--guide", "T/2"]) == 0
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["head_after"] == BLOCK and options["head_weight"] == 0.5
    nets = [Snapshots(tmp_path / "run").net(nimg, 0.05) for nimg in (320, 640)]
    assert head_error(nets[1]) < 0.95 * head_error(nets[0])
    whole = TrainOptions(**SMALL, duration=640, head_after=BLOCK)
    loop.train(whole, tmp_path / "again", progress=False, stop=lambda nimg: nimg >= 320)
    loop.train(whole, tmp_path / "again", resume=True, progress=False)
    states = [state_in(tmp_path / name)["net"] for name in ("run", "again")]
    assert states[0].keys() == states[1].keys() and "unet.head_gain" in states[0]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    command = ["train", "--out", str(tmp_path / "pair"), *arguments[2:], "--duration", "64"]
    assert main([*command[:2], str(tmp_path / "alone"), *command[3:]]) == 0
    assert "--guide self:head --guidance 1.5" in capsys.readouterr().out
    assert main([*command, "--guide", "3:T/2", "--guide-set", "channels_per_head=3"]) == 0
    assert "head_after" not in load(tmp_path / "pair" / "guide", ema=0.05).config


@pytest.mark.parametrize("shard", [(), ("--shard",)], ids=["", "shard"])
def test_processes_train_it_as_one_does(fork_server, tmp_path, shard):
    arguments = [*OPTIONS, "--head-after", BLOCK, "--grid", "0"]
    assert main(["train", "--out", str(tmp_path / "one"), *arguments]) == 0
    run = fork_server.run(*TRAIN, str(tmp_path / "two"), *arguments, *shard, processes=2)
    assert run.returncode == 0, run.stderr
    losses = [[row["loss"] for row in read_log(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=LOSS)
