"""Many threads at once in operators, plans, engines and `sample`: each gets what it gets alone.

The operators let go of Python's lock, so that their C++ runs side by side with it and without it;
the interval of ten microseconds has threads take turns within Python's part, too.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from nets import tiny
from op_samples import SAMPLES

import autoguide_fast
from autoguide_fast import Engine, cpu, engine
from autoguide_fast._C import Load, Map, Plan
from autoguide_fast._extension import build_info

THREADS = 6


@pytest.fixture(autouse=True)
def short_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    engine.clear()


def at_once(work):
    """`work(i)` for each of the threads, all of which start together; raises what one raised."""
    barrier = Barrier(THREADS)

    def start(i):
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(THREADS)))


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def same(found, expected):
    return all(torch.equal(*pair) for pair in zip(as_tuple(found), as_tuple(expected), strict=True))


def test_operators():
    calls = [(s.function, s.arguments(torch.float32, "channels_last")) for s in SAMPLES]
    expected = [function(*arguments) for function, arguments in calls]

    def work(i):
        for k in range(len(calls)):
            k = (k + i * 7) % len(calls)
            function, arguments = calls[k]
            assert same(function(*arguments), expected[k]), SAMPLES[k]

    at_once(work)


def test_an_operator_ends_with_the_instructions_that_it_began_with():
    isas, chosen = build_info()["isa_available"], build_info()["isa"]
    x = torch.randn(3, 40, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = []
    for isa in isas:
        cpu.set_isa(isa)
        expected.append(autoguide_fast.ops.normalize(x, 1))

    def work(i):
        for k in range(100):
            cpu.set_isa(isas[(i + k) % len(isas)])
            y = autoguide_fast.ops.normalize(x, 1)
            assert any(torch.equal(y, one) for one in expected)

    try:
        at_once(work)
    finally:
        cpu.set_isa(chosen)


def arguments(net, batch):
    x = torch.randn(batch, net.img_channels, 8, 8, generator=torch.Generator().manual_seed(batch))
    labels = torch.eye(net.label_dim)[torch.arange(batch) % net.label_dim]
    return x, torch.tensor(0.7), labels


def test_plans_are_made_and_forgotten_beside_those_that_run():
    nets = [tiny(model_channels=16, channels_per_head=16) for _ in range(THREADS)]
    expected = [Engine(net).model(*arguments(net, 2)) for net in nets]
    kept = Engine(nets[0]).model

    def work(i):
        for _ in range(4):
            made = Engine(nets[i]).model
            assert same(made(*arguments(nets[i], 2)), expected[i])
            del made
            assert same(kept(*arguments(nets[0], 2)), expected[0])

    at_once(work)


def test_a_plan_grows_while_others_read_it():
    """Which only Python without its lock lets them do at once."""
    sizes = {"resolution": 2, "image_channels": 3, "weight_bytes": 0, "modulations": 0}
    plans = [Plan(image_bytes=256, **sizes) for _ in range(10 * THREADS)]
    load = Load(out=Map(offset=0, height=2, width=2, channels=16), image_channels=3)

    def work(i):
        for k, plan in enumerate(plans):
            seen = 0
            while seen < 100:
                if k % THREADS == i:
                    plan.add(load)
                before, listed = seen, plan.instructions
                seen = len(plan)
                assert before <= len(listed) <= seen and plan.scratch_bytes == 0
                assert all(repr(one) == repr(load) for one in listed[-1:])

    at_once(work)


def test_sample():
    def work(i):
        settings = {"guidance": 1 + i % 3, "seeds": range(i, i + 3), "num_steps": 3}
        return autoguide_fast.sample("digits", **settings)

    expected = [work(i) for i in range(THREADS)]
    engine.clear()
    for _ in range(2):
        for found, alone in zip(at_once(work), expected, strict=True):
            assert same(found, alone)
