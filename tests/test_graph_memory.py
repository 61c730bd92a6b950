"""Memory of the GPU's engine, on a CPU: what it does where there is too little, and gives back."""

import gc
import warnings
import weakref

import pytest
import torch
from graph_pairs import LABELS, assert_samples, churn, make, noise, plan
from nets import tiny
from references import assert_sample
from tape import Tape

import autoguide_fast
from autoguide_fast import generate
from autoguide_fast.engine import gpu_engine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.sampler import heun
from autoguide_fast.schedules import Churn


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# What torch, cuBLAS, CUDA and cuDNN say where memory does not last.
SHORTAGES = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "graph": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."),
    "cudnn": RuntimeError("FIND was unable to find an engine to execute this computation"),
}


@pytest.mark.parametrize("launches", [False, True], ids=["recording", "running"])
@pytest.mark.parametrize("name", SHORTAGES)
def test_a_batch_for_which_memory_does_not_last_is_split_once(name, launches):
    engine, labels = make(recorder=Tape(2, SHORTAGES[name], launches))
    steps = plan(churn=Churn(8))
    stepper = engine.stepper(1.7, labels, steps)
    with pytest.warns(UserWarning, match="does not last for 3 images at a time .* running 2 at"):
        value = stepper.whole(noise(), churn())
    assert_samples(value, steps)
    halves = heun(stepper, noise(), steps, churn())  # remembers, and does not warn again
    assert_samples(halves, steps)
    assert [len(tensor) for _, tensor in stepper.outputs] == [3] * len(stepper.outputs)


def test_a_batch_that_does_not_fit_in_halves_is_an_error_and_the_engine_goes_on():
    engine, labels = make(recorder=Tape(memory=1))
    steps = plan()
    for run in (
        engine.stepper(1.7, labels, steps).whole,
        lambda x: heun(engine.stepper(1.7, labels, steps), x, steps),
    ):
        engine.largest = None
        with (
            pytest.warns(UserWarning, match="running 2 at a time"),
            pytest.raises(torch.OutOfMemoryError, match=r"must last for 2 images .* below 2"),
        ):
            run(noise())
        assert not engine._recordings
    one = engine.stepper(1.7, labels[:1], steps).whole(noise(1))
    assert_samples(one, steps, labels=labels[:1], noise=noise(1))


@pytest.mark.parametrize("launches", [False, True], ids=["recording", "running"])
def test_another_error_is_handed_on_and_the_engine_goes_on(launches):
    engine, labels = make(recorder=Tape(2, RuntimeError("an illegal access"), launches))
    with pytest.raises(RuntimeError, match="an illegal access"):
        engine.stepper(1.7, labels, plan()).whole(noise())
    engine.recorder.memory = None
    engine.close()
    value = engine.stepper(1.7, labels, plan()).whole(noise())
    assert engine.largest is None
    assert_samples(value, plan())


@pytest.mark.parametrize("name", SHORTAGES)
def test_an_engine_for_which_memory_does_not_last_leaves_the_recorder_free(name, monkeypatch):
    def full(*arguments, **options):
        raise SHORTAGES[name]

    tape = Tape()
    with monkeypatch.context() as patch, pytest.raises(type(SHORTAGES[name])):
        patch.setattr(gpu_engine, "BakedNet", full)
        make(recorder=tape)
    assert not tape.inside and not tape.on_private_stream
    engine, labels = make(recorder=tape)
    value = engine.stepper(1.7, labels, plan()).whole(noise())
    assert_samples(value, plan())


@pytest.mark.parametrize("name", SHORTAGES)
def test_sample_goes_on_without_an_engine_where_memory_does_not_last(name, monkeypatch):
    def full(*nets):
        raise SHORTAGES[name]

    net, options = tiny(), {"seeds": range(2), "num_steps": 3}
    monkeypatch.setattr(generate, "cached", full)
    with pytest.warns(UserWarning, match="memory does not last for an Engine") as caught:
        value = autoguide_fast.sample(net, **options)
    assert [warning.filename for warning in caught] == [__file__]
    assert_sample(value, net, **options)


@pytest.mark.parametrize("name", SHORTAGES)
def test_sample_makes_room_by_releasing_the_engines_of_other_pairs(name, monkeypatch):
    def full_at_first(*nets):
        calls.append(nets)
        if len(calls) == 1:
            raise SHORTAGES[name]
        return cached(*nets)

    calls, cached = [], generate.cached
    other = weakref.ref(cached(tiny(seed=1)))
    monkeypatch.setattr(generate, "cached", full_at_first)
    net, options = tiny(), {"seeds": range(2), "num_steps": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = autoguide_fast.sample(net, **options)
    assert_sample(value, net, **options)
    gc.collect()
    assert other() is None


def test_sample_hands_on_other_errors_of_an_engine(monkeypatch):
    def broken(*nets):
        raise RuntimeError("an illegal access")

    monkeypatch.setattr(generate, "cached", broken)
    with pytest.raises(RuntimeError, match="an illegal access"):
        autoguide_fast.sample(tiny(), seeds=[0], num_steps=1)


def test_what_was_recorded_is_released():
    engine, labels = make()
    steps = plan()
    with engine:
        first = engine.stepper(1.7, labels, steps).whole(noise())
        (loop,) = engine._recordings.values()
        buffer = weakref.ref(loop.result)
        del loop
    gc.collect()
    assert buffer() is None and engine.recorder.released == 1
    assert torch.equal(engine.stepper(1.7, labels, steps).whole(noise()), first)
    alive, tape = weakref.ref(engine), engine.recorder
    del engine
    gc.collect()
    assert alive() is None and tape.recorded == 2


def test_the_last_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(gpu_engine, "RECORDINGS", 2)
    engine, _ = make()
    steps = plan(2)
    for images in (1, 2, 1, 3, 1, 2):
        engine.stepper(1.7, None, steps).whole(noise(images))
    assert engine.recorder.recorded == 4
    assert [key[1] for key in engine._recordings] == [1, 2]


def test_the_engine_is_a_snapshot_and_shares_weights_of_one_net():
    net = tiny()
    engine = GpuEngine(net, autoguide_fast.unlabelled(net), recorder=Tape())
    assert engine.guide.unet is engine.model.unet and engine.guide.label_dim == 0
    steps = plan()
    before = engine.stepper(1.7, LABELS, steps).whole(noise())
    alive = weakref.ref(net.unet.dec["8x8_block0"].conv_res0.weight)
    net.unet.out_gain.mul_(2)
    assert torch.equal(engine.stepper(1.7, LABELS, steps).whole(noise()), before)
    assert len(net.unet.enc["8x8_block0"].conv_res0.weight) == 8  # the net is left as it was
    del net
    gc.collect()
    assert alive() is None
