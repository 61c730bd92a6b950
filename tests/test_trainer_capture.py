"""A step that is recorded once and replayed: the steps as they are, without a read of the device.

On the CPU `tape.StepTape` stands in for CUDA graphs; everything else is what runs on a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch
from streams import Cuda
from tape import StepTape

from autoguide_fast.engine import graphs
from autoguide_fast.trainer import capture
from autoguide_fast.trainer import trainer as trainer_module
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.trainer import Trainer
from conftest import needs_cuda

OPTIONS = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 64.0, "seed": 5}
STEPS = 8


class Unrecorded:
    """A recorder that lets every call run: the operators of a recorded step, from Python."""

    def warm_up(self, function):
        function()

    def record(self, function):
        return function


def trained(recorder=None, steps=STEPS, **options):
    trainer = Trainer(TrainOptions(**{**OPTIONS, **options}), recorder=recorder)
    return trainer, [trainer.step() for _ in range(steps)]


def assert_same(one, other):
    """The same operators on the same numbers: no processor may tell the two apart."""
    for a, b in zip((one.net, *one.ema.emas), (other.net, *other.ema.emas), strict=True):
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            assert torch.equal(p, q), name


@pytest.mark.parametrize(
    "options",
    [{}, {"microbatch": 4}, {"dropout": 0.2}, {"precision": "bf16"}, {"precision": "fp16"}],
    ids=["fp32", "passes", "dropout", "bf16", "fp16"],
)
def test_recorded_steps_are_the_steps(options):
    recorder = StepTape()
    recorded, losses = trained(recorder, **options)
    plain, expected = trained(Unrecorded(), **options)
    assert losses == expected
    assert_same(plain, recorded)
    passes = STEPS * (4 if "microbatch" in options else 1)
    assert recorder.recorded == 2
    assert recorder.replays == passes + STEPS - 2 * capture.WARM_UPS


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_for_recording_is_the_plain_step(precision):
    """The loss and the gradients are; Adam, with its rate on the device, rounds otherwise."""
    options = {"precision": precision, "microbatch": 4, "rampup": 0.0}
    plain, losses = trained(steps=1, **options)
    other, again = trained(Unrecorded(), steps=1, **options)
    assert losses == again
    for p, q in zip(plain.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
        # And at last, one place in the weight itself.
        torch.testing.assert_close(p, q, rtol=2**-23, atol=1e-5 * plain.lr)


def test_a_recorded_step_leaves_out_what_overflows():
    options = {"precision": "fp16", "loss_scale": 2.0**26}
    recorded, losses = trained(StepTape(), **options)
    plain, expected = trained(Unrecorded(), **options)
    assert plain.skipped_steps == recorded.skipped_steps > capture.WARM_UPS
    assert recorded.scale.state() == plain.scale.state()
    assert losses == expected
    assert_same(plain, recorded)


def test_a_recorded_step_repairs_what_is_not_finite(monkeypatch):
    draw = trainer_module.draw

    def spoilt(seed, nimg, *rest):
        drawn = draw(seed, nimg, *rest)
        if nimg == 16 * (STEPS - 2):
            drawn.noise[0] = math.nan
        return drawn

    monkeypatch.setattr(trainer_module, "draw", spoilt)
    recorded, losses = trained(StepTape())
    plain, _ = trained(Unrecorded())
    assert math.isnan(losses[STEPS - 2]) and math.isfinite(losses[-1])
    assert recorded.repaired_steps == plain.repaired_steps == 1
    assert_same(plain, recorded)


def test_a_restored_state_is_recorded_anew():
    recorder = StepTape()
    plain, expected = trained(Unrecorded())
    recorded, _ = trained(recorder)
    half, _ = trained(Unrecorded(), steps=STEPS // 2)
    recorded.load_state_dict(half.state_dict())
    losses = [recorded.step() for _ in range(STEPS // 2)]
    assert losses == expected[STEPS // 2 :]
    assert_same(plain, recorded)
    assert recorder.recorded == 4


def test_the_tape_refuses_a_read():
    function = capture.Recorded(lambda: torch.ones(()).item(), StepTape())
    with pytest.raises(RuntimeError, match="reads from the device"):
        function()


def test_a_graph_is_of_what_was_warmed_up_and_has_its_own_workspaces(monkeypatch):
    cuda, seen = Cuda(), []
    cuda.install(monkeypatch, graphs)
    recorder = capture.CudaStepRecorder("cuda:0")
    before = cuda.current.work()

    def run():
        assert cuda.current.after(before)
        seen.append(cuda.current)
        cuda.current.work()

    recorder.warm_up(run)
    assert cuda.current.after(seen[0].work()) is False and cuda.current.reached[seen[0]] == 1
    recorder.record(run)()
    assert seen[0] is seen[1] is not cuda.current
    assert cuda.log == ["clear", "capture_begin", "capture_end", "clear", "replay"]


def test_graphs_want_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    with pytest.raises(ValueError, match="graph must be off except on a GPU, got device cpu"):
        Trainer(TrainOptions(**OPTIONS, graph=True))
    with pytest.raises(ValueError, match="device must be there, got cuda with"):
        Trainer(TrainOptions(**OPTIONS, device="cuda"))


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "microbatch": 8}, {"precision": "fp16"}])
def test_graphs_on_a_gpu_are_the_steps(options):
    needs_cuda()
    _, expected = trained(device="cuda", **options)
    recorded, losses = trained(device="cuda", graph=True, **options)
    assert losses == pytest.approx(expected, rel=1e-2)
    assert all(p.is_cuda for p in recorded.net.parameters())


def test_a_gpu_trains_as_the_cpu_does():
    needs_cuda()
    _, losses = trained(device="cuda")
    _, expected = trained(device="cpu")
    assert losses == pytest.approx(expected, rel=1e-3)
