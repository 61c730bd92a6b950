"""The engine: the same numbers as the networks themselves, whatever the machine and the batch."""

import gc
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from references import assert_sampled, textbook
from tolerances import ENGINE, relative_error

import autoguide_fast
from autoguide_fast import Engine, engine
from autoguide_fast._extension import build_info
from autoguide_fast.eager import EagerStepper
from autoguide_fast.engine import prepared as prepared_module
from autoguide_fast.generate import _check_finite
from autoguide_fast.guidance import Unlabelled
from autoguide_fast.networks import Precond
from autoguide_fast.sampler import heun, plan_steps
from autoguide_fast.schedules import rho_schedule
from autoguide_fast.textbook import draw_gains


def make_net(channels=16, label_dim=10, seed=0, size=8, images=2, **options):
    torch.manual_seed(seed)
    options = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], **options}
    options = {"channels_per_head": 16, **options}
    net = Precond(size, images, label_dim, model_channels=channels, **options).eval()
    return draw_gains(net).requires_grad_(False)


# What a plan can meet: widths that fill panels or do not, one and three panels, sizes that
# Winograd's tiles divide or not, no label, no attention, no clip, many image channels.
NETS = {
    "small": lambda: make_net(),
    "odd_widths": lambda: make_net(24, size=12, channels_per_head=24, attn_resolutions=[6, 12]),
    "winograd": lambda: make_net(32, size=16, channels_per_head=32, attn_resolutions=[8]),
    "three_levels": lambda: make_net(48, size=16, channel_mult=[1, 1, 2], attn_resolutions=[4, 8]),
    "large_tiles": lambda: make_net(32, size=32, channel_mult=[1], attn_resolutions=[]),
    "many_channels": lambda: make_net(8, 0, images=17, clip_act=None, attn_resolutions=[]),
    "many_channels_and_wide": lambda: make_net(32, 0, images=17, attn_resolutions=[]),
    "tiny_map": lambda: make_net(16, size=4, channel_mult=[1, 2, 3], attn_resolutions=[1, 2]),
    "balances": lambda: make_net(
        label_balance=0.3, concat_balance=0.7, res_balance=0.6, attn_balance=0.8, clip_act=1.5
    ),
}


def evaluation(net, batch):
    generator = torch.Generator().manual_seed(batch)
    shape = batch, net.img_channels, net.img_resolution, net.img_resolution
    labels = None
    if net.label_dim:
        labels = torch.eye(net.label_dim)[torch.arange(batch) % net.label_dim]
    return torch.randn(shape, generator=generator), torch.tensor(0.7), labels


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ENGINE, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_evaluation(name, dtype, isa):
    net = NETS[name]()
    prepared = Engine(net, dtype=dtype).model
    for batch in (1, 3):
        arguments = evaluation(net, batch)
        expected = textbook(net)(*arguments)
        assert relative_error(prepared(*arguments), expected) < ENGINE[dtype]


@pytest.mark.parametrize("batch", [1, 2, 3, 13])
@pytest.mark.parametrize("name", ["small", "winograd"])
def test_evaluation_by_several_threads(name, batch, threads):
    net = NETS[name]()
    arguments = evaluation(net, batch)
    result = Engine(net).model(*arguments)
    assert relative_error(result, textbook(net)(*arguments)) < ENGINE[torch.float32]


STEPS = plan_steps(rho_schedule(6), guidance=1.7)


def start():
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def run(stepper, steps=STEPS):
    with torch.no_grad():
        return heun(stepper, start(), steps)


LABELS = torch.eye(10)[[3, 1, 4]]
PAIRS = {
    "labelled": (make_net(), make_net(8, seed=1), LABELS),
    "guide_without_labels": (make_net(), make_net(8, 0, seed=1), LABELS),
    "model_without_labels": (make_net(label_dim=0), make_net(8, 0, seed=1), None),
    "no_label_given": (make_net(), make_net(8, seed=1), None),
    "one_row_for_all": (make_net(), make_net(8, seed=1), LABELS[:1]),
    "unlabelled": (make_net(), autoguide_fast.unlabelled(make_net()), LABELS),
    "three_levels": (make_net(channel_mult=[1, 2, 2], num_blocks=2), make_net(8, seed=1), LABELS),
}


@pytest.mark.parametrize("case", PAIRS)
def test_guided_samples_agree_with_the_networks(case):
    model, guide, labels = PAIRS[case]
    result = run(Engine(model, guide).stepper(1.7, labels, STEPS))
    assert_sampled(result, (model, guide), labels, STEPS, start())


def test_levels_and_labels_of_each_image():
    net = make_net()
    prepared = Engine(net).model
    x, _, labels = evaluation(net, 3)
    for sigma in (torch.tensor([0.1, 1.0, 9.0]), torch.tensor(2.0), 2.0):
        for rows in (labels, labels[:1], None):
            expected = textbook(net)(x, sigma, rows)
            assert relative_error(prepared(x, sigma, rows), expected) < ENGINE[torch.float32]


def test_strides_and_types_of_the_state():
    net = make_net()
    prepared = Engine(net).model
    x, sigma, labels = evaluation(net, 3)
    expected = prepared(x, sigma, labels)
    wide = torch.randn(3, 2, 8, 16)
    wide[..., ::2] = x
    for state in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        assert torch.equal(prepared(state, sigma, labels), expected)
    rows = prepared.modulations(sigma[None], labels)[0]
    single, double = torch.empty_like(x), torch.empty_like(x)
    prepared.evaluate(x, 0.5, rows, single)
    prepared.evaluate(x.double(), 0.5, rows, double)
    assert torch.equal(single, double)


def test_empty_batch():
    net = make_net()
    assert Engine(net).model(torch.empty(0, 2, 8, 8), 1.0, torch.empty(0, 10)).shape == (0, 2, 8, 8)


def test_engine_is_a_snapshot_and_does_not_hold_its_nets():
    net, guide = make_net(), make_net(8, seed=1)
    held = Engine(net, guide)
    before = run(held.stepper(1.7, LABELS, STEPS))
    names, alive = list(net.state_dict()), weakref.ref(net)
    net.unet.out_gain.mul_(2)
    assert torch.equal(before, run(held.stepper(1.7, LABELS, STEPS)))
    assert list(net.state_dict()) == names
    assert relative_error(run(EagerStepper(net, guide, 1.7, LABELS)), before) > 0.01
    del net
    gc.collect()
    assert alive() is None


def test_results_are_ordinary_tensors_and_deterministic():
    model, guide, labels = PAIRS["labelled"]
    first, second = (run(Engine(model, guide).stepper(1.7, labels, STEPS)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.is_inference()


def test_threads_share_an_engine():
    net = make_net()
    prepared = Engine(net).model
    batches = [evaluation(net, n) for n in (1, 2, 3, 4)]
    expected = [prepared(*arguments) for arguments in batches]

    def work(i):
        for _ in range(20):
            assert torch.equal(prepared(*batches[i]), expected[i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def _in_child(queue, prepared, arguments):
    prepared.evaluate(*arguments)
    queue.put(arguments[-1].tolist())


def test_a_forked_child_starts_its_own_threads(threads):
    """Only the engine's threads: torch's own do not survive a fork."""
    net = make_net()
    prepared = Engine(net).model
    x, sigma, labels = evaluation(net, 1)
    arguments = x, 0.5, prepared.modulations(sigma[None], labels)[0], torch.empty_like(x)
    prepared.evaluate(*arguments)  # starts this process's threads
    expected = arguments[-1].tolist()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue, prepared, arguments))
    child.start()
    try:
        assert queue.get(timeout=20) == expected
    finally:
        child.kill()


BOUND = """
import os, torch
from autoguide_fast import Engine
from autoguide_fast.networks import Precond

core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
torch.set_num_threads(2)
prepared = Engine(Precond(8, 2, 0, model_channels=16, channel_mult=[1], num_blocks=1)).model
x = torch.zeros(1, 2, 8, 8)
rows = prepared.modulations(torch.ones(1), None)[0]
before = set(os.listdir("/proc/self/task"))
prepared.evaluate(x, 1.0, rows, torch.empty_like(x))
(worker,) = set(os.listdir("/proc/self/task")) - before
print(core, *os.sched_getaffinity(int(worker)))
"""


@pytest.mark.parametrize("bound", [True, False])
def test_threads_leave_the_core_that_openmp_bound_their_starter_to(bound):
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}
    if len(cores) < 2:
        pytest.skip("one core, or cores that cannot be chosen")
    unset = ("GOMP_CPU_AFFINITY", "OMP_PROC_BIND")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    if bound:
        environment["OMP_PROC_BIND"] = "true"
    done = subprocess.run(
        [sys.executable, "-c", BOUND], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    core, *allowed = map(int, done.stdout.split())
    # Unless OpenMP was told to bind, a choice of one core was the user's own.
    assert (core in allowed) != bound
    assert bound or allowed == [core]


class Doubled(Precond):
    def forward(self, x, sigma, class_labels=None):
        return 2 * super().forward(x, sigma, class_labels)


class Mine(Unlabelled):
    def __call__(self, x, sigma, class_labels=None):
        return 2 * super().__call__(x, sigma)


def test_which_nets_an_engine_runs():
    net = make_net()
    assert Engine.runs(net) and Engine.runs(net, autoguide_fast.unlabelled(net))
    hooked = make_net()
    hooked.unet.register_forward_hook(lambda module, args, output: output)
    cast, torn, noted = make_net(), make_net(), autoguide_fast.unlabelled(net)
    cast.run_dtype = torch.bfloat16
    torn.unet.out_conv.to("meta")
    noted.note = "mine"
    refused = {
        "Doubled|forward of its own": Doubled(8, 2, 10, model_channels=8, channel_mult=[1]),
        "function": lambda x, sigma, labels: x,
        "another type": make_net().double(),
        "hooks": hooked,
        "one that runs in torch.bfloat16": cast,
        "one on cpu and meta": torn,
        "one on meta": make_net().to("meta"),
        "Mine with methods": Mine(net),
        "Unlabelled with .* attributes of its own": noted,
    }
    for message, other in refused.items():
        assert not Engine.runs(net, other)
        with pytest.raises(ValueError, match=f"Engine: guide must be a plain .*({message})"):
            Engine(net, other)
    assert not Engine.runs(net, make_net(sigma_data=0.7))
    with pytest.raises(ValueError, match=r"Engine: guide must have the model's sigma_data 0.5"):
        Engine(net, make_net(sigma_data=0.7))
    with pytest.raises(ValueError, match=r"Engine: dtype must be torch.float32, .* got 'fast'"):
        Engine(net, dtype="fast")


def test_auto_takes_bfloat16_only_where_the_processor_multiplies_it():
    chosen = Engine(make_net(), dtype="auto").dtype
    assert (chosen == torch.bfloat16) == (build_info()["isa"] in ("avx512_bf16", "amx"))


def test_model_that_guides_itself_is_prepared_once():
    net = make_net()
    pair = Engine(net, autoguide_fast.unlabelled(net))
    assert pair.guide.lowered is pair.model.lowered
    assert pair.guide.label_dim == 0


def test_sample_takes_an_engine():
    model, guide, labels = PAIRS["labelled"]
    pair = Engine(model, guide)
    options = dict(guidance=1.7, class_labels=labels, seeds=range(3), num_steps=4)
    expected = autoguide_fast.sample(model, guide, **options)
    assert torch.equal(pair.sample(**options), expected)
    assert torch.equal(autoguide_fast.sample(pair, device="cpu", **options), expected)
    with pytest.raises(ValueError, match="sample: guide must be left out for an Engine"):
        autoguide_fast.sample(pair, guide, seeds=[0])
    with pytest.raises(ValueError, match="sample: guidance must be 1 for an Engine"):
        Engine(model).sample(guidance=2.0, seeds=[0])


def test_an_engine_stays_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with pytest.raises(ValueError, match="sample: device must be the CPU for an Engine, got cuda"):
        Engine(make_net()).sample(seeds=[0], device="cuda")


def test_sample_keeps_the_last_engines_and_sees_every_change():
    engine.clear()
    net = make_net()
    kept = engine.cached(net)
    assert engine.cached(net) is kept
    assert engine.cached(make_net()) is kept  # the same content
    net.unet.out_gain.data.mul_(2)  # leaves no trace in the version counter
    assert engine.cached(net) is not kept
    released = weakref.ref(kept)
    del kept
    for seed in range(1, 5):
        engine.cached(make_net(seed=seed))
    gc.collect()
    assert released() is None
    engine.clear()


def test_profile(tmp_path):
    model, guide, _ = PAIRS["labelled"]
    profile = Engine(model, guide).profile(batch=2, repeats=2)
    text = str(profile)
    assert text.startswith("batch 2, 1 threads:")
    for kind in ("conv_res0", "conv_res1", "block_prologue", "attend", "load", "store"):
        assert kind in text
    for _, name, _, _ in pickle.loads(pickle.dumps(profile)).rows:
        assert name.split()[-1] == name.part
    profile.save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len(events) == len(profile.rows)
    assert sum(event["dur"] for event in events) == pytest.approx(
        1e6 * sum(seconds for _, _, seconds, _ in profile.rows)
    )


def test_counted_work_is_that_of_the_textbook():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    net = NETS["three_levels"]()
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # of which each product is seen
        textbook(net, torch.float32)(*evaluation(net, 1))
    counts = counter.get_flop_counts()["Global"]
    lowered = Engine(net).model.lowered
    work = {"convolution": 0, "bmm": 0}
    for name, flop in zip(lowered.names, lowered.flops, strict=True):
        work["bmm" if "attend" in name else "convolution"] += flop
    assert work == {kind: counts[getattr(torch.ops.aten, kind)] for kind in work}


def test_steady_state_allocates_nothing():
    model, guide, labels = PAIRS["labelled"]
    pair = Engine(model, guide)
    noise = torch.randn(3, 2, 8, 8)
    run(pair.stepper(1.7, labels, STEPS))
    block, counts = pair._engine._arena.block, []
    for num_steps in (2, 6):
        steps = plan_steps(rho_schedule(num_steps), guidance=1.7)
        stepper = pair.stepper(1.7, labels, steps)

        def check(step, x, stepper=stepper):
            _check_finite(step, None, x, stepper, {})

        with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
            heun(stepper, noise, steps, on_step=check)
        sizes = [event.self_cpu_memory_usage for event in profile.events()]
        counts.append(sum(size > noise.nbytes // 2 for size in sizes))
    # Noise times sigma, the next state, its slope, two states in turn, both nets' outputs twice.
    assert counts == [7, 7]
    assert pair._engine._arena.block is block


def test_states_that_are_kept_stay_as_they_were():
    model, guide, labels = PAIRS["labelled"]
    pair, kept, seen = Engine(model, guide), [], []

    def callback(info):
        kept.append(info.x)
        seen.append(info.x.clone())

    options = dict(guidance=1.7, class_labels=labels, seeds=range(3), num_steps=5, raw=True)
    result = pair.sample(callback=callback, **options)
    assert all(map(torch.equal, kept, seen))
    assert torch.equal(kept[-1], result) and not torch.equal(kept[-2], result)
    stepper = pair.stepper(1.7, LABELS, STEPS)
    first = run(stepper)
    before = first.clone()
    heun(stepper, torch.randn(3, 2, 8, 8), STEPS)
    assert torch.equal(first, before)


def test_a_step_leaves_the_state_before_it():
    """What `second` returns holds until the step after the next, as `CpuStepper` says."""
    model, guide, labels = PAIRS["labelled"]
    stepper, x = Engine(model, guide).stepper(1.7, labels, STEPS), start() * STEPS[0].sigma
    for step in STEPS[:-1]:
        before = x.clone()
        following = stepper.second(x, *stepper.first(x, step), step)
        assert torch.equal(x, before) and not torch.equal(following, before)
        x = following


def test_state_in_float64_and_of_any_layout():
    model, guide, labels = PAIRS["labelled"]
    noise = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    stepper = Engine(model, guide).stepper(1.7, labels, STEPS)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = heun(stepper, noise.contiguous(memory_format=layout), STEPS)
        assert_sampled(result, (model, guide), labels, STEPS, noise)
    single = noise.float()
    assert_sampled(heun(stepper, single, STEPS), (model, guide), labels, STEPS, single)


def test_memory_is_bounded_and_known(threads):
    net = make_net()
    pair = Engine(net)
    few, many = pair.peak_memory(64), pair.peak_memory(640)
    images = (4 + 2) * 4 * (640 - 64) * 2 * 8 * 8  # the state, and the net's two outputs
    assert many - few == images
    pair.model(*evaluation(net, 64))
    block = pair._engine._arena.block
    assert block.numel() + pair.model.weight_bytes <= few
    for images in (64, 1):
        pair.model(*evaluation(net, images))
        assert pair._engine._arena.block is block


def test_packed_weights_are_those_of_the_net():
    net = NETS["winograd"]()
    prepared = Engine(net).model
    weights = sum(p.nbytes for p in net.unet.parameters())
    assert weights <= prepared.weight_bytes < 1.1 * weights  # channels are rounded up to 16


def test_a_net_of_large_maps_runs_image_by_image(monkeypatch):
    net = make_net()
    expected = Engine(net).model(*evaluation(net, 3))
    monkeypatch.setattr(prepared_module, "_CHUNK_BYTES", 1)
    assert torch.equal(Engine(net).model(*evaluation(net, 3)), expected)
