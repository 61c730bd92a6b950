"""Streams: the golden noise and labels, and what an image's numbers must not depend on."""

import pytest
import torch
from golden import golden

from autoguide_fast.seeds import StackedRandom


def test_golden_noise_and_labels():
    data = golden("guided_sampling")
    streams = StackedRandom("cpu", data["seeds"])
    assert torch.equal(streams.randn([3, 16, 16]), data["noise"])
    assert torch.equal(torch.eye(10)[streams.randint(10)], data["labels"])


def drawn(seeds):
    streams = StackedRandom("cpu", seeds)
    return streams.randn([2, 3]), streams.randint(1000), streams.randn([2, 3], torch.float64)


def test_depends_on_the_seed_alone():
    seeds = [5, 0, 17, 5, 2**31]
    whole = drawn(seeds)
    for order in ([0], [4, 1], [3, 2, 1, 0], [0, 0]):
        for part, expected in zip(drawn([seeds[i] for i in order]), whole, strict=True):
            assert torch.equal(part, expected[order])
    assert torch.equal(whole[0][0], whole[0][3]) and not torch.equal(whole[0][0], whole[0][1])


def test_seeds_count_modulo_2_to_the_32():
    for part, expected in zip(drawn([2**32 + 3, 2**64 + 3]), drawn([3, 3]), strict=True):
        assert torch.equal(part, expected)
    normal, whole, double = drawn([3, 2**16 + 3, 2**31 + 3, 2**31 - 1, 2**32 - 1])
    for part in (normal, whole, double):
        assert len(part.unique(dim=0)) == 5


@pytest.mark.parametrize(
    ("seeds", "error"), [([-1], ValueError), ([0.5], TypeError), ("12", TypeError)]
)
def test_seeds_are_whole_numbers(seeds, error):
    with pytest.raises(error, match="StackedRandom: seeds must be"):
        StackedRandom("cpu", seeds)


def test_global_generator_is_left_alone():
    state = torch.get_rng_state()
    drawn([1, 2])
    assert torch.equal(torch.get_rng_state(), state)


def test_types_and_shapes():
    normal, whole, double = drawn([1, 2, 3])
    assert (normal.dtype, whole.dtype, double.dtype) == (torch.float32, torch.int64, torch.float64)
    assert (normal.shape, whole.shape) == ((3, 2, 3), (3,))
    normal, whole, double = drawn([])
    assert (normal.shape, whole.shape, double.dtype) == ((0, 2, 3), (0,), torch.float64)


def test_statistics():
    streams = StackedRandom("cpu", range(400))
    noise, classes = streams.randn([10]), streams.randint(4)
    assert noise.mean().item() == pytest.approx(0, abs=0.06)
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert torch.bincount(classes, minlength=4).min() > 70


def test_cuda_gets_the_same_numbers():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    noise = StackedRandom("cuda", [1, 2]).randn([3])
    assert noise.is_cuda and torch.equal(noise.cpu(), StackedRandom("cpu", [1, 2]).randn([3]))
