"""The recorder of CUDA graphs: what waits for what, and what a failure leaves behind."""

import pytest
import torch
from streams import Cuda, Stream

from autoguide_fast.engine import graphs


@pytest.fixture
def cuda(monkeypatch):
    fake = Cuda()
    fake.install(monkeypatch, graphs)
    return fake


def test_turns_follow_each_other_on_whatever_streams(cuda):
    recorders = graphs.CudaGraphs("cuda:0"), graphs.CudaGraphs("cuda:0")
    with recorders[0].exclusive():
        first = cuda.current.work()
    other = Stream()
    with cuda.stream(other):
        assert not other.after(first)
        with recorders[1].exclusive():
            assert other.after(first)


def test_memory_taken_apart_is_ready_for_turns_and_waits_for_those_before(cuda):
    recorder, other = graphs.CudaGraphs("cuda:0"), Stream()
    with recorder.exclusive(), recorder.private_stream():
        made, home = cuda.current.work(), cuda.current
    with cuda.stream(other), recorder.exclusive():
        assert other.after(made)
        used = other.work()
    assert not home.after(used)
    with recorder.exclusive(), recorder.private_stream():
        # What was made may have been let go meanwhile, and be had again here.
        assert cuda.current is home and home.after(used)


def test_two_functions_run_beside_each_other(cuda):
    recorder = graphs.CudaGraphs("cuda:0")
    begin, done = cuda.current.work(), []

    def run():
        assert cuda.current.after(begin)
        assert not any(cuda.current.after(work) for work in done)
        done.append(cuda.current.work())

    recorder.run_concurrently(run, run)
    assert len(done) == 2 and all(cuda.current.after(work) for work in done)


def test_two_functions_are_joined_where_one_fails(cuda):
    """A capture must not end with a stream that was not joined."""
    recorder, done = graphs.CudaGraphs("cuda:0"), []

    def fail():
        done.append(cuda.current.work())
        raise ValueError("mine")

    for pair in ((fail, lambda: None), (lambda: None, fail)):
        with pytest.raises(ValueError, match="mine"):
            recorder.run_concurrently(*pair)
        assert cuda.current.after(done[-1])


def record(cuda, function, warm_up=lambda: None):
    recorder = graphs.CudaGraphs("cuda:0")
    with recorder.exclusive(), recorder.private_stream():
        return recorder.record(function, warm_up)


def test_a_capture_meets_what_was_warmed_up(cuda):
    seen = []

    def run():
        seen.append((cuda.current, torch.backends.cudnn.benchmark, list(cuda.log)))

    before, choice = cuda.current, torch.backends.cudnn.benchmark
    replay = record(cuda, run, run)
    replay()
    assert cuda.log == ["clear", "capture_begin", "capture_end", "clear", "replay"]
    (warm_stream, warm_choice, warm_log), (stream, chosen, log) = seen
    assert warm_stream is stream is not before and warm_choice and chosen
    # cuBLAS's workspaces are the graph's own: none from before it, none that outlives it.
    assert warm_log == [] and log == ["clear", "capture_begin"]
    assert cuda.current is before and torch.backends.cudnn.benchmark is choice


@pytest.mark.parametrize("fails", [None, "capture_end"])
def test_the_error_of_what_is_captured_is_the_one_that_shows(cuda, fails):
    def run():
        raise torch.OutOfMemoryError("mine")

    before, cuda.fails = cuda.current, fails
    with pytest.raises(torch.OutOfMemoryError, match="mine"):
        record(cuda, run)
    assert cuda.log[-2:] == ["clear", "reset"] and cuda.current is before


@pytest.mark.parametrize("fails", ["capture_begin", "capture_end"])
def test_a_capture_that_cannot_begin_or_end_leaves_the_stream_as_it_was(cuda, fails):
    before, cuda.fails = cuda.current, fails
    with pytest.raises(RuntimeError, match=fails):
        record(cuda, lambda: None)
    assert cuda.log[-1] == "reset" and cuda.current is before
