"""Times rivals side by side: every round runs each of them once, so that noise hits all alike.

The clock is `clock`: it moves by the undisturbed samples of what is benchmarked and stands still
otherwise, so that pytest-benchmark's own statistics are of those samples, per call.
"""

import itertools
import os
import statistics
import time
from dataclasses import dataclass

import ceilings
import torch

SAMPLE_SECONDS = 0.02  # of one rival in one round: far above the clock's resolution
ROW_SECONDS = 20  # of one race, unless three rounds take longer
ROUNDS = range(3, 16)
MAX_DELAY = 0.02  # share of a sample that its threads may have waited for a core
REPEATS = 3  # of a sample that waited longer
REST_SECONDS = 0.02  # before a sample: until threads of the one before stop waiting for more work
REPEAT_SECONDS = 2  # a longer sample averages over what disturbs it, and is kept as it is


_taken = 0.0


def clock():
    """Return the seconds of all samples taken so far of what is benchmarked."""
    return _taken


@dataclass(frozen=True)
class Sample:
    """Seconds per call, and the samples that had to be thrown away before it."""

    seconds: float
    clean: bool
    dropped: int


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


def _delay():
    """Seconds that the threads of this process have waited for a core; 0 if the system is mute."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/schedstat") as file:
                total += int(file.read().split()[1])
    except (OSError, IndexError):
        pass
    return total / 1e9


def _timed(function, count):
    waited, start = _delay(), time.perf_counter()
    for _ in range(count):
        function()
    seconds = time.perf_counter() - start
    return seconds, _delay() - waited


def take_sample(function, count):
    """Time `count` calls; repeat while they had to wait for a core."""
    tries = []
    time.sleep(REST_SECONDS)
    if count > 1:
        function()  # wakes its own threads
    while True:
        seconds, delay = _timed(function, count)
        tries.append((delay / seconds, seconds / count))
        clean = delay <= MAX_DELAY * seconds
        if clean or len(tries) > REPEATS or seconds > REPEAT_SECONDS:
            return Sample(min(tries)[1], clean, len(tries) - 1)


def _calls(function):
    """How many calls make a sample, after the first ones that warm up."""
    seconds = _timed(function, 1)[0]
    if seconds < 1:
        seconds = min(_timed(function, 1)[0] for _ in range(3))
    return max(1, round(SAMPLE_SECONDS / seconds)), seconds


def _paired(numerators, denominators, rounds):
    return statistics.median(numerators[i].seconds / denominators[i].seconds for i in rounds)


def race(benchmark, ours, rivals, ceiling, work):
    """Time `ours` with pytest-benchmark and each rival once in the same round.

    Fills `benchmark.extra_info`. Ratios are medians over the rounds, each of two neighbouring
    samples; rounds with a sample that stayed disturbed count only where fewer than three others
    are left, which `noisy` tells.

    Args:
        benchmark: the fixture of pytest-benchmark.
        ours: callable without arguments.
        rivals: dict of name to callable.
        ceiling: a `ceilings.Ceiling`, raced too, or None where there is none.
        work: GB that one call of `ours` must move, or GFLOP that it must do, as the ceiling has it.
    """
    contestants = {**rivals, **({"ceiling": ceiling.run} if ceiling else {}), "ours": ours}
    counts, seconds = {}, 0.0
    for name, function in contestants.items():
        counts[name], once = _calls(function)
        seconds += counts[name] * once
    rounds = min(max(int(ROW_SECONDS / seconds), ROUNDS.start), ROUNDS.stop - 1)
    samples: dict[str, list[Sample]] = {name: [] for name in contestants}

    def take(name):
        samples[name].append(take_sample(contestants[name], counts[name]))

    def setup():
        for name in contestants:
            if name != "ours":
                take(name)

    def target():
        global _taken
        take("ours")
        _taken += samples["ours"][-1].seconds

    benchmark.pedantic(target, setup=setup, rounds=rounds, iterations=1)

    clean = [i for i in range(rounds) if all(s[i].clean for s in samples.values())]
    noisy = len(clean) < ROUNDS.start
    counted = range(rounds) if noisy else clean
    info = benchmark.extra_info
    for name, taken in samples.items():
        info[f"{name}_median_s"] = statistics.median(taken[i].seconds for i in counted)
        if name not in ("ours", "ceiling"):
            info[f"ratio_to_{name}"] = _paired(taken, samples["ours"], counted)
    info["rate"] = work / info["ours_median_s"]
    info["unit"] = ceiling.unit if ceiling else ceilings.GFLOPS
    if ceiling:
        info["ceiling_name"] = ceiling.name
        info["ceiling"] = ceiling.work / info["ceiling_median_s"]
        info["share_of_ceiling"] = (
            _paired(samples["ceiling"], samples["ours"], counted) * work / ceiling.work
        )
    info["rounds"], info["noisy"] = len(counted), noisy
    info["dropped"] = sum(s.dropped for taken in samples.values() for s in taken)
    info["dropped"] += (rounds - len(counted)) * len(samples)
