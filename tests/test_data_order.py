"""Order, flips and loader: functions of seed and position alone, whatever the threads."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from pictures import numbered, write

from autoguide_fast.trainer.data import Loader, dropped_labels, flips, open_dataset, order
from autoguide_fast.trainer.data.order import _mix


def test_every_pass_is_a_permutation():
    stream = order(3, 10, 0, 30).reshape(3, 10)
    assert stream.dtype == np.int64
    assert (np.sort(stream, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in stream}) == 3
    assert not np.array_equal(stream, order(4, 10, 0, 30).reshape(3, 10))


def test_order_is_frozen():
    # What a run was shown must not change with versions, or it could not be resumed.
    assert order(0, 7, 5, 12).tolist() == [5, 1, 0, 5, 6, 1, 3, 2, 4, 6, 2, 1]
    assert flips(0, 1000, 12).astype(int).tolist() == [0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0]
    assert np.flatnonzero(dropped_labels(0, 1000, 60, 0.1)).tolist() == [7, 25, 30, 37, 47, 58]


@pytest.mark.parametrize(
    ("stream", "bits"),
    [
        (lambda s: order(s, 99, 0, 99), 32),
        (lambda s: flips(s, 0, 99), 64),
        (lambda s: dropped_labels(s, 0, 99, 0.5), 64),
    ],
)
def test_seeds_count_modulo_a_power_of_two(stream, bits):
    assert np.array_equal(stream(2**bits + 3), stream(3))
    seeds = [3, 2**16 + 3, 2 ** (bits - 1) + 3, 2 ** (bits - 1) - 1, 2**bits - 1]
    assert len({stream(seed).tobytes() for seed in seeds}) == len(seeds)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, n: order(1, 7, s, n),
        lambda s, n: flips(1, s, n),
        lambda s, n: dropped_labels(1, s, n, 0.3),
    ],
)
def test_a_stream_is_the_same_in_any_pieces(function):
    whole = function(0, 100)
    cuts = [0, 1, 6, 7, 8, 40, 40, 99, 100]
    parts = [function(a, b - a) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_flips_are_fair_and_differ_between_seeds():
    count = 100_000
    drawn = np.stack([flips(seed, 10**12, count) for seed in range(4)])
    five_sigma = 5 * 0.5 / count**0.5
    assert abs(drawn.mean(axis=1) - 0.5).max() < five_sigma
    for a, b in itertools.combinations(drawn, 2):
        assert abs((a == b).mean() - 0.5) < five_sigma
    # Neighbours in the stream are independent.
    assert abs((drawn[:, 1:] == drawn[:, :-1]).mean(axis=1) - 0.5).max() < five_sigma


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_with_their_probability_whatever_is_flipped(probability):
    count = 100_000
    drawn = dropped_labels(3, 10**12, count, probability)
    five_sigma = 5 * (probability * (1 - probability) / count) ** 0.5
    assert abs(drawn.mean() - probability) <= five_sigma
    mirrored = flips(3, 10**12, count)
    assert abs(drawn[mirrored].mean() - probability) <= 2 * five_sigma


def test_flips_are_splitmix64():
    # The first number of the published generator seeded with 0.
    gamma = np.array([0x9E3779B97F4A7C15], np.uint64)
    assert _mix(gamma)[0] == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: order(-1, 5, 0, 1), "order: seed must be >= 0, got -1"),
        (lambda: order(0, 0, 0, 1), "order: dataset_size must be >= 1, got 0"),
        (lambda: order(0, 5, -2, 1), "order: start must be >= 0, got -2"),
        (lambda: dropped_labels(0, 0, 1, 1.5), "probability must lie in .0, 1., got 1.5"),
        (lambda: dropped_labels(0, -1, 1, 0.5), "dropped_labels: start must be >= 0, got -1"),
        (lambda: flips(0, 0, -3), "flips: count must be >= 0, got -3"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- loader -------------------------------------------------------------------------------------


def ranges(batch: int, start: int = 0):
    return ((position, batch) for position in itertools.count(start, batch))


@pytest.fixture
def files(tmp_path):
    """Ten labelled pictures on disk."""
    return open_dataset(write(tmp_path / "data", numbered(10, list(range(10)))))


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_serves_the_stream(files, workers):
    with Loader(files, ranges(4, start=8), seed=5, mirror=True, workers=workers) as loader:
        batches = list(itertools.islice(loader, 6))
    images, labels = files.batch(order(5, 10, 8, 24))
    mirrored = flips(5, 8, 24)
    images[mirrored] = images[mirrored][:, :, :, ::-1]
    assert mirrored.any() and not mirrored.all()
    assert torch.cat([batch.images for batch in batches]).equal(torch.from_numpy(images))
    assert torch.cat([batch.labels for batch in batches]).equal(torch.from_numpy(labels))
    assert [batch.start for batch in batches] == list(range(8, 32, 4))


def test_loader_ends_with_its_ranges_and_reads_no_further_than_ahead(files):
    taken = []

    def counted():
        for position in range(0, 40, 4):
            taken.append(position)
            yield position, 4

    with Loader(files, counted(), seed=0, workers=1, ahead=3) as loader:
        next(loader)
        assert taken == [0, 4, 8]
        assert len(list(loader)) == 9
        with pytest.raises(StopIteration):
            next(loader)


def test_loader_names_the_broken_file_in_its_turn(tmp_path):
    data = numbered(10, list(range(10)))
    path = write(tmp_path / "data", data)
    dataset = open_dataset(path)
    broken = order(0, 10, 0, 10)[5]
    name = path / f"00000/img{broken:08d}.png"
    name.write_bytes(data[f"00000/img{broken:08d}.png"][:60])
    with Loader(dataset, ranges(2), seed=0, workers=3) as loader:
        assert [next(loader).start for _ in range(2)] == [0, 2]
        with pytest.raises(ValueError, match=f"dataset: .*{name.name} must be a readable image"):
            next(loader)
    assert no_data_threads()


def test_loader_closes_early_and_can_be_closed_twice(files):
    loader = Loader(files, ranges(2), seed=0)
    next(loader)
    assert not no_data_threads()
    loader.close()
    loader.close()
    assert no_data_threads()
    with pytest.raises(StopIteration):
        next(loader)


def no_data_threads() -> bool:
    return not any(thread.name.startswith("data") for thread in threading.enumerate())


def test_loader_refuses(files, tmp_path):
    with pytest.raises(ValueError, match="Loader: workers must be >= 1, got 0"):
        Loader(files, ranges(2), seed=0, workers=0)
    files.encoder_name = "latents"
    with pytest.raises(ValueError, match="Loader: mirror must be False for latents"):
        Loader(files, ranges(2), seed=0, mirror=True)
