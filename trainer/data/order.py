"""Which image stands where in the endless shuffled stream, mirrored or not, with label or without.

All three are functions of seed and position alone. So nothing needs storing to resume, and any
split of the stream over processes, threads and micro-batches shows the same images.
"""

from __future__ import annotations

import functools

import numpy as np


def order(seed: int, dataset_size: int, start: int, count: int) -> np.ndarray:
    """Indices of the images at positions `start` to `start + count` of the stream.

    The stream is an endless row of passes over the data, each in a permutation of its own. The
    last few permutations are kept: a batch costs no more than its size, and the first one of a
    pass over 1.3 million images, wherever the run starts, one shuffle more.

    Args:
        seed: >= 0; taken modulo 2^32.
        dataset_size: number of images, >= 1.
        start: position of the first, >= 0.
        count: how many, >= 0.

    Returns:
        int64 [count], each in 0..dataset_size-1.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check("order", seed=seed, start=start, count=count)
    if dataset_size < 1:
        raise ValueError(f"order: dataset_size must be >= 1, got {dataset_size}; add images")
    parts = [np.empty(0, np.int64)]
    while count > 0:
        epoch, offset = divmod(start, dataset_size)
        parts.append(_permutation(seed % 2**32, epoch, dataset_size)[offset : offset + count])
        start += len(parts[-1])
        count -= len(parts[-1])
    return np.concatenate(parts)


def flips(seed: int, start: int, count: int) -> np.ndarray:
    """Whether the images at positions `start` to `start + count` are mirrored, bool [count].

    The top bit of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014), whose value at any position costs the same.

    Args:
        seed: >= 0; taken modulo 2^64.
        start: position of the first, >= 0.
        count: how many, >= 0.

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check("flips", seed=seed, start=start, count=count)
    return _draws(seed, 0, start, count) >> np.uint64(63) == 1


def dropped_labels(seed: int, start: int, count: int, probability: float) -> np.ndarray:
    """Whether the images at positions `start` to `start + count` lose their label, bool [count].

    Args:
        seed: >= 0; taken modulo 2^64. What it draws has nothing to do with `flips`.
        start: position of the first, >= 0.
        count: how many, >= 0.
        probability: with which each of them does, in [0, 1].

    Raises:
        ValueError: an argument lies outside its range.
    """
    _check("dropped_labels", seed=seed, start=start, count=count)
    if not 0 <= probability <= 1:
        raise ValueError(
            f"dropped_labels: probability must lie in [0, 1], got {probability}; 0.1 is usual"
        )
    drawn = _draws(seed, 1, start, count) >> np.uint64(11)
    return drawn < np.uint64(round(probability * 2**53))


def _draws(seed: int, purpose: int, start: int, count: int) -> np.ndarray:
    """A uint64 of each position, its own for each seed and purpose."""
    state = _mix(np.array([seed % 2**64], np.uint64))  # keeps the streams of near seeds apart
    if purpose:
        state = _mix(state + np.uint64(purpose))
    positions = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return _mix(state + positions * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# Prefetching crosses from one pass to the next, and a main net and its guide may differ in seed.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # RandomState: its stream is frozen across NumPy versions.
    permutation = np.random.RandomState([seed, epoch]).permutation(size).astype(np.int64)
    permutation.setflags(write=False)
    return permutation


def _check(caller: str, **values: int) -> None:
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{caller}: {name} must be >= 0, got {value}; raise it")
