"""Times rivals side by side: every round runs each of them once, so that noise hits all alike."""
import itertools
import statistics
import time

import torch

ROUND_SECONDS = 0.02  # of one rival in one round: far above the clock's resolution


def rotating(function, arguments, copies):
    """Return a call of `function` on the next of several copies of its arguments.

    With copies that together exceed the last-level cache, each call finds its data in memory.
    """
    sets = [
        tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)
        for _ in range(copies)
    ]
    cycle = itertools.cycle(sets)
    return lambda: function(*next(cycle))


def copies_past_cache(arguments, cache_bytes=64 * 2**20):
    """Return how many copies of `arguments` exceed the cache, at most 64."""
    size = sum(a.nbytes for a in arguments if isinstance(a, torch.Tensor))
    return min(64, cache_bytes // max(size, 1) + 1)


def _repeat(function, count):
    for _ in range(count):
        function()


def _time(function, count):
    start = time.perf_counter()
    _repeat(function, count)
    return (time.perf_counter() - start) / count


def race(benchmark, ours, rivals, rounds=15, gbytes=None, gflop=None):
    """Time `ours` with pytest-benchmark and each rival once in the same round.

    Args:
        benchmark: the fixture of pytest-benchmark.
        ours: callable without arguments.
        rivals: dict of name to callable.
        rounds: number of rounds; results are medians over them.
        gbytes: GB that one call must move, for GB/s; or
        gflop: GFLOP that one call must do, for GFLOP/s.
    """
    for function in (ours, *rivals.values()):
        _repeat(function, 3)
    count = max(1, round(ROUND_SECONDS / _time(ours, 3)))
    counts = {k: max(1, round(ROUND_SECONDS / _time(f, 1))) for k, f in rivals.items()}
    times = {name: [] for name in rivals}

    def time_rivals():
        for name, function in rivals.items():
            times[name].append(_time(function, counts[name]))

    benchmark.pedantic(_repeat, args=(ours, count), setup=time_rivals, rounds=rounds, iterations=1)
    own = [t / count for t in benchmark.stats.stats.data]
    info = benchmark.extra_info
    info["calls_per_round"] = count
    info["median_s"] = statistics.median(own)
    for name, values in times.items():
        info[f"{name}_median_s"] = statistics.median(values)
        info[f"ratio_to_{name}"] = statistics.median(
            rival / mine for rival, mine in zip(values, own, strict=True)
        )
    if gbytes is not None:
        info["gb_per_s"] = gbytes / info["median_s"]
    if gflop is not None:
        info["gflop_per_s"] = gflop / info["median_s"]
