"""Races: candidates against each other, interleaved, on one thread.

A convolution runs as it does in a plan, after the instruction that wrote its map, and with weights
that have left the cache meanwhile. Times are a core's, not the clock's, and the least of several
rounds: what other programs of the machine do to them only adds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._C import ALIGNMENT, BlockPrologue, Convolve, Load, Map, Plan, Storage, Winograd
from . import pack
from .algorithms import Algorithm, Convolution, candidates, static

# Rounds, the first of which does not count, and seconds after which no more are begun than the
# fewest, by the thread's own time.
ROUNDS, SECONDS, FEWEST = 10, 0.1, 3
# Slower ones than this, in the first round, are out.
HOPELESS = 3.0
# Pixels of a map at most: larger ones only take more rounds of the same loops.
_LARGEST = 32
# Images of maps up to this size: one, and as many as a thread takes through a plan together.
_SMALL, _BATCHES = 16, (1, 4)
# Of weights, from one run to the next: more than caches of the second level hold.
_WEIGHT_BYTES = 8 << 20


@dataclass
class _Entrant:
    """One candidate at one batch; holds a plan that runs it once."""

    convolution: Convolution
    algorithm: Algorithm
    images: int
    plan: Plan
    seconds: list[float]

    def run(self, arena: Tensor, weights: Tensor) -> float:
        """Seconds of the convolution alone, of a core."""
        size = self.plan.resolution
        image = torch.ones(self.images, 1, size, size, dtype=torch.float32, device="cpu")
        times = torch.zeros(len(self.plan), dtype=torch.float64, device="cpu")
        torch.ops.autoguide_fast.evaluate.default(
            self.plan.number,
            image,
            1.0,
            weights,
            torch.ones(1, 0, dtype=torch.float32, device="cpu"),
            arena,
            image,
            1,
            self.images,
            times,
            True,
        )
        return times[-1].item()


def convolutions(
    raced: Sequence[Convolution],
) -> dict[Convolution, dict[str, list[float]]]:
    """Seconds of each candidate for each convolution, by name, for each class of batches.

    Candidates that are out are left out.
    """
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        entrants = [e for c in raced for a in candidates(c) for e in _entrants(c, a)]
        largest = max((e.plan.weight_bytes for e in entrants), default=0)
        # Ones, whatever type they are read as: floats of 1, or pairs of 0 and 1, or small integers.
        block = torch.ones(
            -(-max(largest, _WEIGHT_BYTES) // 4), dtype=torch.float32, device="cpu"
        ).view(torch.uint8)
        arena = torch.empty(
            max((e.plan.arena_bytes(e.images, 1, e.images) for e in entrants), default=0),
            dtype=torch.uint8,
            device="cpu",
        ).fill_(0)  # writes to it, so that no candidate has to wait for memory
        place = 0

        def run(entrant: _Entrant) -> float:
            nonlocal place
            count = entrant.plan.weight_bytes
            place = place if place + count <= len(block) else 0
            seconds = entrant.run(arena, block[place : place + count])
            place += _aligned(count)
            return seconds

        rounds(entrants, run)
    found: dict[Convolution, dict[str, list[float]]] = {c: {} for c in raced}
    for e in entrants:
        if e.seconds:
            found[e.convolution].setdefault(str(e.algorithm), []).append(min(e.seconds))
    # A candidate that is out at one batch is out.
    for times in found.values():
        classes = max(map(len, times.values()))
        for name in [name for name, seconds in times.items() if len(seconds) < classes]:
            del times[name]
    return found


def rounds(entrants: Sequence[_Entrant], run: Callable[[_Entrant], float]) -> None:
    """Run all in turn, round after round, and collect their `seconds`."""
    began = time.thread_time()
    first = [run(e) for e in entrants]
    best: dict[tuple[Convolution, int], float] = {}
    for e, seconds in zip(entrants, first, strict=True):
        key = e.convolution, e.images
        best[key] = min(seconds, best.get(key, seconds))
    left = [
        e
        for e, seconds in zip(entrants, first, strict=True)
        if seconds <= HOPELESS * best[e.convolution, e.images]
        or e.algorithm == static(e.convolution)
    ]
    for number in range(1, ROUNDS):
        if number >= FEWEST and time.thread_time() - began > SECONDS:
            break
        for e in left:
            e.seconds.append(run(e))


def types(
    evaluations: Mapping[torch.dtype, Callable[[int], None]],
) -> dict[torch.dtype, list[float]]:
    """Seconds of a whole evaluation in each type, for each class of batches.

    Args:
        evaluations: what evaluates a batch of that many images, on one thread.
    """
    found: dict[torch.dtype, list[float]] = {t: [] for t in evaluations}
    for images in _BATCHES:
        least = dict.fromkeys(evaluations, math.inf)
        began = time.thread_time()
        for number in range(ROUNDS):
            if number >= FEWEST and time.thread_time() - began > SECONDS:
                break
            for t, evaluate in evaluations.items():
                before = time.thread_time()
                evaluate(images)
                least[t] = min(least[t], time.thread_time() - before)
        for t, seconds in least.items():
            found[t].append(seconds)
        if time.thread_time() - began > 2 * SECONDS:  # a large net, whose batches are alike
            break
    return found


def _entrants(c: Convolution, a: Algorithm) -> list[_Entrant]:
    size = min(c.size, _LARGEST)
    batches = _BATCHES if size <= _SMALL else _BATCHES[:1]
    return [_Entrant(c, a, images, _plan(c, a, size), []) for images in batches]


def _plan(c: Convolution, a: Algorithm, size: int) -> Plan:
    """A map is written, copied to the type that the convolution reads, and convolved."""
    used = c.used if a.winograd == Winograd.DIRECT and a.storage != Storage.U8 else c.inputs
    weights = pack.weight_bytes(a, c.taps, used, c.outputs)
    dequantise = -1
    if a.storage == Storage.U8:
        dequantise = _aligned(weights)
        weights = dequantise + 2 * 4 * c.outputs
    image = Map(height=size, width=size, channels=c.inputs)
    source = Map(
        height=size,
        width=size,
        channels=c.inputs,
        border=int(c.taps == 9),
        storage=a.storage,
        scale=1 / 64 if a.storage == Storage.U8 else 1.0,
        zero=128 if a.storage == Storage.U8 else 0,
    )
    result = Map(height=size, width=size, channels=c.outputs)
    offset, placed = 0, []
    for m in (image, source, result):
        placed.append(m.at(offset))
        offset = _aligned(offset + m.bytes)
    image, source, result = placed
    plan = Plan(
        resolution=size,
        image_channels=1,
        image_bytes=offset,
        weight_bytes=weights,
        modulations=0,
    )
    plan.add(Load(out=image, image_channels=1))
    plan.add(BlockPrologue(x=image, raw=source))
    plan.add(
        Convolve(
            in_=source,
            out=result,
            taps=c.taps,
            in_channels=used,
            weights=0,
            winograd=a.winograd,
            dequantise=dequantise,
        )
    )
    return plan


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
