"""The engine on a CUDA device: graphs, streams and memory, which a CPU cannot stand for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from nets import tiny
from references import assert_sample, assert_sampled
from tolerances import BAKED, relative_error

import autoguide_fast
from autoguide_fast import Engine
from autoguide_fast.engine import clear
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.sampler import heun, plan_steps
from autoguide_fast.schedules import Churn, rho_schedule
from conftest import needs_cuda

LABELS = torch.eye(5)[[3, 1, 4]]
DTYPES = [dtype for dtype in BAKED if dtype != torch.float8_e4m3fn]


@pytest.fixture(autouse=True)
def exact():
    """Float32 without TF32, and algorithms that do not differ from run to run."""
    needs_cuda()
    flags = torch.backends.cudnn.flags
    with flags(enabled=True, deterministic=True, allow_tf32=False), torch.no_grad():
        yield
    clear()


def pair(**options):
    return tiny(model_channels=16, **options).cuda(), tiny(seed=1, model_channels=8).cuda()


def plan(num_steps=5, guidance=1.7, **options):
    return plan_steps(rho_schedule(num_steps), guidance, device="cuda", **options)


def noise(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator).cuda()


def churn():
    seeds = iter(range(100, 200))
    return lambda: noise(seed=next(seeds))


def assert_samples(value, nets, steps):
    assert_sampled(value, nets, LABELS.cuda(), steps, noise(), churn=churn)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("options", [{}, {"interval": (0.1, 3.0)}, {"churn": Churn(8)}])
def test_replays_agree_with_the_networks(options, overlap):
    model, guide = pair()
    steps = plan(**options)
    stepper = GpuEngine(model, guide, overlap=overlap).stepper(1.7, LABELS.cuda(), steps)
    whole = stepper.whole(noise(), churn())
    assert_samples(whole, (model, guide), steps)
    assert_samples(heun(stepper, noise(), steps, churn()), (model, guide), steps)
    for _ in range(3):
        assert torch.equal(stepper.whole(noise(), churn()), whole)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation(dtype):
    model, _ = pair()
    engine = Engine(model, dtype=dtype)
    assert isinstance(engine._engine, GpuEngine) and engine.device.type == "cuda"
    arguments = noise(), torch.tensor(0.7, device="cuda"), LABELS.cuda()
    assert relative_error(engine.model(*arguments), model(*arguments)) < BAKED[dtype]


def test_evaluation_in_float8():
    if torch.cuda.get_device_capability() < (8, 9):
        with pytest.raises(ValueError, match=r"Engine: dtype must be .* FP8 needs 8.9"):
            Engine(pair()[0], dtype=torch.float8_e4m3fn)
        pytest.skip("no FP8 on this device")
    model, _ = pair()
    baked = GpuEngine(model, dtype=torch.float8_e4m3fn, float8_width=0).model
    arguments = noise(), torch.tensor(0.7, device="cuda"), LABELS.cuda()
    assert relative_error(baked(*arguments), model(*arguments)) < BAKED[torch.float8_e4m3fn]


def test_nothing_synchronises_while_replaying():
    model, guide = pair()
    engine, steps, start = Engine(model, guide), plan(), noise()
    stepper = engine.stepper(1.7, LABELS.cuda(), steps)
    expected = stepper.whole(start)
    halves = heun(stepper, start, steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again, in_halves = stepper.whole(start), heun(stepper, start, steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected) and torch.equal(in_halves, halves)


def test_sample_replays_and_callbacks_see_the_same():
    model, guide = pair()
    options = {"guidance": 1.7, "seeds": range(5), "num_steps": 4, "S_churn": 6, "batch_size": 2}
    infos = []
    value = autoguide_fast.sample(model, guide, **options)
    watched = autoguide_fast.sample(model, guide, callback=infos.append, **options)
    assert value.device.type == "cuda"
    assert_sample(value, model, guide, **options)
    assert_sample(watched, model, guide, **options)
    assert torch.equal(torch.cat([info.x for info in infos[3::4]]), watched)


def test_networks_that_ask_for_float16_get_it():
    net, guide = pair()
    net.use_fp16 = guide.use_fp16 = True
    from autoguide_fast.engine import cached

    assert cached(net, guide).dtype == torch.float16
    guide.use_fp16 = False
    assert cached(net, guide).dtype == torch.float32
    assert Engine(net, guide, "auto").dtype == torch.float16


def test_threads_on_streams_of_their_own_share_an_engine():
    model, guide = pair()
    engine, steps = Engine(model, guide), plan(3)
    labels = LABELS[:1].cuda()
    batches = [noise(count, seed=count) for count in (1, 2, 3, 3)]
    expected = [engine.stepper(1.7, labels, steps).whole(x) for x in batches]
    torch.cuda.synchronize()

    def work(i):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                value = engine.stepper(1.7, labels, steps).whole(batches[i])
                assert torch.equal(value, expected[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_an_engine_made_on_one_stream_runs_on_another():
    model, guide = pair()
    steps, start, labels = plan(2), noise(), LABELS.cuda()
    expected = Engine(model, guide).stepper(1.7, labels, steps).whole(start)
    here, there = torch.cuda.Stream(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(here):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds, for which the weights are not there
        engine = Engine(model, guide)
    with torch.cuda.stream(there):
        value = engine.stepper(1.7, labels, steps).whole(start)
        assert torch.equal(value, expected)


def test_a_recording_outlives_the_workspaces_of_libraries():
    """`torch.compile` drops them whenever it captures a graph; their memory is then another's."""
    model, guide = pair()
    stepper = Engine(model, guide).stepper(1.7, LABELS.cuda(), plan())
    expected = stepper.whole(noise())
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.zeros(32 << 20, dtype=torch.uint8, device="cuda") for _ in range(8)]
    assert torch.equal(stepper.whole(noise()), expected)
    assert not any(other.any() for other in others)


def test_memory_is_released():
    model, guide = pair()
    torch.cuda.synchronize()
    Engine(model, guide).stepper(1.7, None, plan(2)).whole(noise())  # libraries' workspaces
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    engine = Engine(model, guide)
    weights = torch.cuda.memory_allocated() - allocated
    engine.stepper(1.7, None, plan(4)).whole(noise(64))
    assert torch.cuda.memory_allocated() > allocated + weights
    engine.close()
    assert torch.cuda.memory_allocated() <= allocated + weights
    assert torch.cuda.memory_reserved() <= reserved + weights + (4 << 20)
    assert engine.peak_memory(64) > allocated + weights
    profile = engine.profile(batch=2, repeats=2)
    assert all(seconds >= 0 for _, _, seconds, _ in profile.rows)


def test_a_capture_that_fails_leaves_the_device_usable():
    model, guide = pair()
    engine, steps = Engine(model, guide), plan(2)
    recorder = engine._engine.recorder
    with (
        recorder.exclusive(),
        recorder.private_stream(),
        pytest.raises(RuntimeError, match="memory"),
    ):
        recorder.record(
            lambda: torch.empty(1 << 50, dtype=torch.uint8, device="cuda"), lambda: None
        )
    with recorder.exclusive(), recorder.private_stream(), pytest.raises(ValueError, match="mine"):
        recorder.record(lambda: _raise(noise()), lambda: None)
    stepper = engine.stepper(1.7, LABELS.cuda(), steps)
    assert_samples(stepper.whole(noise()), (model, guide), steps)


def _raise(x):
    x.mul_(2)
    raise ValueError("mine")


def test_a_batch_for_which_memory_does_not_last_is_split():
    net = tiny(model_channels=64).cuda()
    engine = Engine(net)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    steps = plan(1, guidance=1.0)
    small = engine.peak_memory(1 << 14) - engine.peak_memory(1 << 13)
    held = torch.cuda.memory_allocated()
    try:  # room for the weights and 3/4 of what 2^14 images take
        torch.cuda.set_per_process_memory_fraction((held + 1.5 * small) / total)
        with pytest.warns(UserWarning, match="running 8192 at a time"):
            value = engine.stepper(1.0, None, steps).whole(noise(1 << 14))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert value.shape[0] == 1 << 14 and torch.isfinite(value).all()


def test_nets_on_two_devices():
    with pytest.raises(ValueError, match="Engine: guide must be on the model's device cuda:0"):
        Engine(pair()[0], tiny())
    with pytest.raises(ValueError, match="sample: device must be cuda:0 for this Engine, got cpu"):
        Engine(pair()[0]).sample(seeds=[0], device="cpu")
