"""Decoding beside sampling: as on a GPU, with threads of the CPU."""

import threading

import pytest
import torch

from autoguide_fast.decoding import Decoding

CPU = torch.device("cpu")


class Doubled:
    """Decodes by doubling, on whatever thread; waits for `may_go`, if it is told to."""

    def __init__(self, waits=False):
        self.may_go, self.threads, self.modes = threading.Event(), [], []
        if not waits:
            self.may_go.set()

    def decode(self, x):
        assert self.may_go.wait(20)
        self.threads.append(threading.current_thread())
        self.modes.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        if (x < 0).any():
            raise FloatingPointError("below 0")
        return 2 * x


def run(encoder, batches, beside):
    """What is delivered of batches of one number each."""
    found = []
    with Decoding(encoder, CPU, lambda i, x: found.append((i, x.tolist())), beside) as decoding:
        buffer = torch.empty(1)
        for number, value in enumerate(batches):
            buffer.fill_(value)  # written again by the next
            decoding.add(range(number, number + 1), buffer)
    return found


@pytest.mark.parametrize("beside", [None, False, True])
def test_batches_come_in_their_order(beside):
    found = run(Doubled(), [3, 1, 2], beside)
    assert found == [(range(i, i + 1), [2 * v]) for i, v in enumerate([3, 1, 2])]
    assert run(None, [3, 1], beside) == [(range(1), [3]), (range(1, 2), [1])]


def test_the_next_batch_does_not_wait():
    encoder, found = Doubled(waits=True), []
    with Decoding(encoder, CPU, lambda i, x: found.append(x.item()), True) as decoding:
        decoding.add(range(1), torch.tensor([1.0]))
        assert not found  # sampling goes on meanwhile
        encoder.may_go.set()
        decoding.add(range(1, 2), torch.tensor([2.0]))
        assert found == [2.0]
    assert found == [2.0, 4.0]
    assert threading.main_thread() not in encoder.threads and len(set(encoder.threads)) == 1


def test_samples_may_be_overwritten_while_they_are_decoded():
    encoder, found = Doubled(waits=True), []
    with Decoding(encoder, CPU, lambda i, x: found.append(x.item()), True) as decoding:
        buffer = torch.tensor([1.0])
        decoding.add(range(1), buffer)
        buffer.fill_(5)
        encoder.may_go.set()
    assert found == [2.0]


def test_on_a_cpu_nothing_runs_beside():
    encoder = Doubled()
    run(encoder, [1, 2], None)
    assert set(encoder.threads) == {threading.current_thread()}


def test_what_was_sampled_is_delivered_though_the_next_fails():
    found = []
    with (
        pytest.raises(KeyboardInterrupt),
        Decoding(Doubled(), CPU, lambda i, x: found.append(x.item()), True) as decoding,
    ):
        decoding.add(range(1), torch.tensor([1.0]))
        raise KeyboardInterrupt
    assert found == [2.0]


@pytest.mark.parametrize("beside", [False, True])
def test_errors_of_a_decoder_reach_the_caller(beside):
    with pytest.raises(FloatingPointError, match="below 0"):
        run(Doubled(), [1, -1, 1], beside)
    with pytest.raises(TypeError, match="must decode 1 samples to a tensor of as many images"):
        run(type("None_", (), {"decode": lambda self, x: None})(), [1], beside)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_thread_has_the_callers_modes(autocast):
    encoder = Doubled()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run(encoder, [1, 2], True)
    assert encoder.modes == [(False, autocast)] * 2
