"""The GPU's engine, on a CPU: a tape of operators stands for CUDA graphs (tape.py)."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import simulator
import torch
from golden import golden, golden_net
from graph_pairs import LABELS, PAIRS, assert_samples, churn, make, noise, plan
from nets import tiny
from references import assert_sample, textbook
from tape import Tape
from tolerances import BAKED, GOLDEN_SAMPLES, relative_error

import autoguide_fast
from autoguide_fast import Engine
from autoguide_fast.eager import EagerStepper
from autoguide_fast.engine import gpu_stepper
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.sampler import heun, plan_steps
from autoguide_fast.schedules import Churn, rho_schedule
from autoguide_fast.unet import Block

SCHEDULES = {
    "plain": {},
    "one_step": {"num_steps": 1},
    "unguided": {"guidance": 1.0},
    "interval": {"interval": (0.1, 3.0)},
    "churn": {"churn": Churn(8, S_min=0.05, S_max=50, S_noise=1.003)},
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BAKED, ids=str)
@pytest.mark.parametrize("name", ["tiny", "wide", "plain"])
def test_evaluation(name, dtype):
    nets = {
        "tiny": {"channels_per_head": 4},
        "wide": {"model_channels": 16, "clip_act": 1.5, "attn_balance": 0.8, "res_balance": 0.6},
        "plain": {"label_dim": 0, "attn_resolutions": [], "clip_act": None},
    }
    net = tiny(**nets[name])
    baked = GpuEngine(net, None, dtype, recorder=Tape(), float8_width=0).model
    labels = LABELS if net.label_dim else None
    for sigma in (torch.tensor(0.7), torch.tensor([0.1, 1.0, 9.0]), 2.0):
        for rows in (labels, None if labels is None else labels[:1], None):
            value = baked(noise(), sigma, rows)
            level = torch.as_tensor(sigma).double()
            reference = textbook(net)(
                noise().double(), level, None if rows is None else rows.double()
            )
            assert relative_error(value, reference) < BAKED[dtype]


def test_float8_is_what_multiplies():
    net = tiny(model_channels=16)

    def kinds(**options):
        unet = GpuEngine(net, None, torch.float8_e4m3fn, recorder=Tape(), **options).model.unet
        blocks = [b for b in unet.modules() if isinstance(b, Block)]
        return {str(c.weight.dtype) for b in blocks for c in b.children()}

    assert kinds(float8_width=0) == {"torch.float8_e4m3fn"}
    assert kinds() == {"torch.float16"}  # all too narrow for it to pay
    errors = {}
    for dtype, options in ((torch.float16, {}), (torch.float8_e4m3fn, {"float8_width": 0})):
        baked = GpuEngine(net, None, dtype, recorder=Tape(), **options).model
        expected = net(noise(), torch.tensor(0.7), LABELS)
        errors[dtype] = relative_error(baked(noise(), torch.tensor(0.7), LABELS), expected)
    assert errors[torch.float8_e4m3fn] > 5 * errors[torch.float16]


@pytest.mark.parametrize("case", PAIRS)
def test_samples_agree_with_the_networks(case):
    engine, labels = make(case)
    steps = plan()
    stepper = engine.stepper(1.7, labels, steps)
    assert_samples(stepper.whole(noise()), steps, case)
    assert_samples(heun(stepper, noise(), steps), steps, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_agree_with_the_networks(name, dtype):
    engine, labels = make()
    steps = plan(**SCHEDULES[name])
    stepper = engine.stepper(1.7, labels, steps)
    whole = stepper.whole(noise(dtype=dtype), churn(dtype=dtype))
    halves = heun(stepper, noise(dtype=dtype), steps, churn(dtype=dtype))
    assert whole.dtype == dtype
    assert_samples(whole, steps, noise=noise(dtype=dtype))
    assert torch.equal(whole, halves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_samples_in_half_precision(dtype):
    engine, labels = make(dtype=dtype)
    steps = plan()
    value = engine.stepper(1.7, labels, steps).whole(noise())
    assert value.dtype == torch.float32
    model, guide, _ = PAIRS["labelled"]
    expected = heun(EagerStepper(model, guide, 1.7, labels), noise(), steps)
    assert 1e-5 < relative_error(value, expected) < 2 * BAKED[dtype]


def test_bundled_pair_in_half_precision():
    """What `Engine(dtype="auto")` is on a GPU, over a whole run of the trained pair."""
    model, guide = autoguide_fast.load("digits"), autoguide_fast.load("digits-guide")
    engine = GpuEngine(model, guide, "auto", recorder=Tape())
    options = {"guidance": 1.7, "seeds": range(4), "raw": True, "num_steps": 12}
    assert engine.dtype == torch.float16
    expected = autoguide_fast.sample(model, guide, **options)
    error = (autoguide_fast.sample(engine, **options) - expected).norm() / expected.norm()
    assert error < 2e-2


def test_golden_samples():
    data = golden("guided_sampling")
    model, guide = golden_net("guided_sampling", "net/"), golden_net("guided_sampling", "gnet/")
    engine = GpuEngine(model, guide, recorder=Tape())
    options = {"S_churn": 40, "S_min": 0.05, "S_max": 50, "S_noise": 1.003, "num_steps": 8}
    for name, more in (
        ("sample_autoguidance_w1.7_steps32", {"guidance": 1.7}),
        ("sample_churn40_w2.1_steps8", {"guidance": 2.1, **options}),
    ):
        result = autoguide_fast.sample(engine, seeds=data["seeds"], **more)
        assert relative_error(result, data[name]) < GOLDEN_SAMPLES


@pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))
def test_samples_through_the_simulated_kernels():
    """What a GPU runs between convolutions, thread by thread, from a tape."""
    engine, labels = make()
    steps = plan_steps(rho_schedule(2, sigma_min=0.5, sigma_max=3), guidance=1.7)
    with simulator.simulating():
        value = engine.stepper(1.7, labels, steps).whole(noise())
    assert_samples(value, steps)


# --- what a recording depends on ----------------------------------------------------------------


def test_one_recording_serves_any_schedule_weight_labels_and_noise():
    engine, labels = make()
    for guidance, sigma_max, rows in ((1.7, 80, labels), (3.0, 20, labels[:1]), (0.5, 40, None)):
        options = {"churn": Churn(4 * guidance)}
        steps = plan(guidance=guidance, sigma_max=sigma_max, **options)
        value = engine.stepper(guidance, rows, steps).whole(noise(), churn())
        assert_samples(value, steps, guidance=guidance, labels=rows)
    assert engine.recorder.recorded == 1
    for guidance, sigma_max in ((1.7, 80), (3.0, 20)):
        steps = plan(guidance=guidance, sigma_max=sigma_max)
        heun(engine.stepper(guidance, labels, steps), noise(), steps)
    assert engine.recorder.recorded == 3  # and one for each half


def test_a_tape_is_no_function_that_runs_again():
    """The stand-in itself: what is not in a buffer is frozen, and nothing is read back."""
    tape, buffer, number = Tape(), torch.zeros(3), 1.0
    out = torch.zeros(3)

    def function():
        out.copy_(buffer.view(3, 1).squeeze(1) * 2 + number)

    with tape.exclusive(), tape.private_stream():
        play = tape.record(function, function)
        buffer.fill_(5.0)
        number = 100.0
        play()
        assert out.tolist() == [11.0] * 3
        with pytest.raises(RuntimeError, match="reads from the device"):
            tape.record(lambda: out.sum().item(), lambda: None)


def test_results_and_inputs_belong_to_the_user():
    engine, labels = make()
    steps = plan()
    start, seen = noise(), []
    stepper = engine.stepper(1.7, labels, steps)
    whole = stepper.whole(start)
    halves = heun(stepper, start, steps, on_step=lambda step, x: seen.append((x, x.clone())))
    kept = whole.clone()
    assert torch.equal(start, noise())
    start.fill_(float("nan"))  # nothing reads it any more
    for again in (stepper.whole(noise(seed=5)), heun(stepper, noise(seed=6), steps)):
        assert not torch.equal(again, kept)
    assert torch.equal(whole, kept) and torch.equal(halves, kept)
    assert all(torch.equal(x, copy) for x, copy in seen)
    assert torch.equal(stepper.whole(noise()), kept)
    assert not whole.is_inference() and not whole.requires_grad


def test_gradient_modes_of_the_caller_leave_no_trace():
    engine, labels = make()
    steps = plan(2)
    with torch.inference_mode():
        first = engine.stepper(1.7, labels, steps).whole(noise())
    assert torch.equal(engine.stepper(1.7, labels, steps).whole(noise()), first)
    with torch.enable_grad():
        stepper = engine.stepper(1.7, labels, steps)
        for value in (stepper.whole(noise()), heun(stepper, noise(), steps)):
            assert not value.requires_grad and torch.equal(value, first)


def test_outside_the_interval_the_guide_is_not_in_the_recording():
    model, guide, labels = PAIRS["labelled"]
    sizes = {}
    for guided in (True, False):
        engine = GpuEngine(model, guide if guided else None, recorder=Tape())
        steps = plan(guidance=1.7 if guided else 1.0)
        engine.stepper(1.0, labels, steps).whole(noise())
        sizes[guided] = engine.recorder.kernels[0]
    assert sizes[False] < 0.6 * sizes[True]
    engine, _ = make()
    steps = plan(interval=(1.0, 30.0))
    assert len({(s.guided, s.guided_next) for s in steps}) == 4
    engine.stepper(1.7, labels, steps).whole(noise())
    assert sizes[False] < engine.recorder.kernels[0] < sizes[True]
    heun(engine.stepper(1.7, labels, steps), noise(), steps)
    _, unguided, guided, _ = sorted(engine.recorder.kernels[1:])
    assert unguided < 0.7 * guided


def test_long_runs_are_recorded_half_by_half(monkeypatch):
    monkeypatch.setattr(gpu_stepper, "LONGEST", 3)
    engine, labels = make()
    steps = plan()
    value = engine.stepper(1.7, labels, steps).whole(noise())
    assert {key[0] for key in engine._recordings} == {"first", "second"}
    assert_samples(value, steps)


def test_nets_run_beside_each_other_where_one_leaves_room():
    steps, expected = plan(), None
    for overlap, images in ((None, 3), (True, 3), (False, 3)):
        engine, labels = make(overlap=overlap)
        value = engine.stepper(1.7, labels, steps).whole(noise(images))
        assert (engine.recorder.parallel > 0) == bool(overlap)  # a tape has no multiprocessors
        expected = value if expected is None else expected
        assert torch.equal(value, expected)
    engine, _ = make()
    engine.recorder.multiprocessors = 132
    assert engine._overlaps(1) and not engine._overlaps(1000)


# --- through sample -----------------------------------------------------------------------------


def test_sample_takes_a_graph_engine():
    model, guide, _ = PAIRS["labelled"]
    engine = GpuEngine(model, guide, recorder=Tape())
    infos = []
    options = {"guidance": 1.7, "seeds": range(5), "num_steps": 4, "S_churn": 6, "batch_size": 2}
    whole = autoguide_fast.sample(engine, **options)
    assert {key[0] for key in engine._recordings} == {"whole"}
    watched = autoguide_fast.sample(engine, callback=infos.append, **options)
    barred = autoguide_fast.sample(engine, progress=True, **options)
    assert_sample(whole, model, guide, **options)
    assert torch.equal(watched, whole) and torch.equal(barred, whole)
    assert torch.equal(torch.cat([info.x for info in infos[3::4]]), whole)
    few = {**options, "seeds": [3]}
    assert_sample(
        autoguide_fast.sample(engine, **few), model, guide, **few
    )  # whatever it was recorded with
    assert autoguide_fast.sample(engine, seeds=[]).shape == (0, 2, 8, 8)
    assert not any(name.startswith("emb") for name, _ in engine.model.unet.named_children())


@pytest.mark.parametrize("callback", [None, lambda info: None])
def test_overflow_is_noticed_and_named(callback):
    guide = tiny(seed=1)
    guide.unet.out_gain.fill_(1e7)  # more than float16 holds
    engine = GpuEngine(tiny(), guide, torch.float16, recorder=Tape())
    with pytest.raises(FloatingPointError, match=r"guide must be finite, .* in step 1 of 3"):
        autoguide_fast.sample(
            engine, guidance=1.5, seeds=range(2), num_steps=3, S_churn=3, callback=callback
        )


def test_threads_share_an_engine():
    engine, labels = make()
    steps = plan(3)
    batches = [noise(count, seed=count) for count in (1, 2, 3, 3)]
    expected = [engine.stepper(1.7, labels[:1], steps).whole(x) for x in batches]

    def work(i):
        torch.set_num_threads(1)  # a setting of each thread, on which rounding depends
        for _ in range(5):
            stepper = engine.stepper(1.7, labels[:1], steps)
            for value in (stepper.whole(batches[i]), heun(stepper, batches[i], steps)):
                assert torch.equal(value, expected[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_profile():
    engine, _ = make()
    profile = engine.profile(batch=2, repeats=2)
    assert str(profile).startswith("batch 2, a tape:")
    names = {name for _, name, _, _ in profile.rows}
    assert {"8x8_conv", "out_conv", "4x4_block0 conv_res0", "4x4_block0 between"} <= names
    assert all(seconds > 0 for _, _, seconds, _ in profile.rows)
    work = {(role, name): flop for role, name, _, flop in profile.rows}
    assert work["model", "8x8_block0 conv_res0"] == 2 * 8 * 8 * 9 * 64 * 2


def test_bad_input():
    model, guide, _ = PAIRS["labelled"]
    with pytest.raises(ValueError, match=r"Engine: dtype must be torch.float16, .* got torch.int8"):
        GpuEngine(model, guide, torch.int8, recorder=Tape())
    with pytest.raises(ValueError, match="Engine: guide must be a plain float32 Precond"):
        GpuEngine(model, lambda x, sigma, labels: x, recorder=Tape())
    with pytest.raises(ValueError, match="Engine: guide must have the model's sigma_data"):
        GpuEngine(model, tiny(sigma_data=0.7), recorder=Tape())
    assert not Engine.runs(model, tiny().to("meta"))


def test_what_torch_is_told_about_products_is_recorded_anew(monkeypatch):
    engine, labels = make()
    steps = plan(2)
    engine.stepper(1.7, labels, steps).whole(noise())
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    for _ in range(2):
        engine.stepper(1.7, labels, steps).whole(noise())
    assert engine.recorder.recorded == 2
