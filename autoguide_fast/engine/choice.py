"""Which algorithm computes a convolution, and which type is fastest: measured once, then kept.

A race decides, of the candidates at the shapes of the net itself and never by the name of an
instruction set. What is fastest on one thread is taken on any number of them, so that the same
algorithms run, and images come out the same, whatever `OMP_NUM_THREADS` says. `AGF_AUTOTUNE=0`
takes the static rules instead; so does a machine whose cache folder cannot be written, where each
process would decide for itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from .. import cpu, kept_choices
from ..kept_choices import Entry, enabled
from . import race
from .algorithms import Choice, Convolution, candidates, static, static_choice

# What a candidate has to gain over the static rule: less may be noise.
MARGIN = 0.05
TYPE_MARGIN = 0.03
# What it may lose in one class of batches for what it gains in the other.
LOSS = 0.05


def fastest(times: Mapping[str, Sequence[float]], first: str, margin: float = MARGIN) -> str:
    """The name of the fastest candidate, or `first` where none is faster by more than the margin.

    Args:
        times: seconds of each candidate, in one class of batches after the other.
        first: the one of them that the static rule takes.
        margin: what must be gained over it, in the geometric mean of all classes.
    """
    if min(map(min, times.values())) <= 0:  # a clock that hardly ticks
        return first
    best, least = first, math.log(1 - margin)
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[first], strict=True)]
        mean = sum(map(math.log, ratios)) / len(ratios)
        if mean < least and max(ratios) <= 1 + LOSS:
            best, least = name, mean
    return best


def of_convolutions(convolutions: Sequence[Convolution]) -> dict[Convolution, Choice]:
    """The algorithm of each, from the cache or from a race of those that are not in it."""
    if not enabled():
        return {c: static_choice(c) for c in convolutions}
    choices: dict[Convolution, Choice] = {}
    contested: dict[str, Convolution] = {}
    for c in convolutions:
        if len(candidates(c)) == 1:
            choices[c] = Choice(static(c), "nothing else fits")
        else:
            contested[str(c)] = c

    def run(missing: Sequence[str]) -> dict[str, Entry]:
        found = race.convolutions([contested[key] for key in missing])
        return {
            str(c): {"choice": fastest(times, str(static(c))), "times": times}
            for c, times in found.items()
        }

    valid = {key: [str(a) for a in candidates(c)] for key, c in contested.items()}
    entries, source = kept_choices.decide(valid, run)
    for key, c in contested.items():
        if key in entries:
            (algorithm,) = (a for a in candidates(c) if str(a) == entries[key]["choice"])
            choices[c] = Choice(algorithm, f"{source}: {_shown(entries[key])}")
        else:
            choices[c] = Choice(static(c), source)
    return choices


def static_type() -> torch.dtype:
    """The first guess at the fastest of the types that are as good as float32.

    Right where bfloat16 is multiplied as fast as AVX-512 BF16 does and Winograd has enough channels
    to work on; that it also is elsewhere is not known.
    """
    return torch.bfloat16 if cpu.has_bfloat16() else torch.float32


def of_type(
    config: str, measure: Callable[[Sequence[torch.dtype]], Mapping[torch.dtype, Sequence[float]]]
) -> tuple[torch.dtype, str]:
    """The fastest type for a net, of those that are as good as float32, and why that one.

    Args:
        config: the net's options, as JSON.
        measure: gives seconds of a whole evaluation in each type, by classes of batches.
    """
    if not enabled():
        return static_type(), kept_choices.OFF
    types = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16)}
    options = json.dumps(json.loads(config), sort_keys=True)
    key = f"type of the net {hashlib.sha256(options.encode()).hexdigest()[:16]}"

    def run(missing: Sequence[str]) -> dict[str, Entry]:
        found = measure(list(types.values()))
        times = {name: list(found[t]) for name, t in types.items()}
        first = str(static_type()).removeprefix("torch.")
        return {key: {"choice": fastest(times, first, TYPE_MARGIN), "times": times}}

    entries, source = kept_choices.decide({key: list(types)}, run)
    if key not in entries:
        return static_type(), source
    return types[entries[key]["choice"]], f"{source}: {_shown(entries[key])}"


def _shown(entry: Entry) -> str:
    """Its times: `f32 direct 0.12 + 0.46 ms, ...`, one for each class of batches."""
    return ", ".join(
        f"{name} {' + '.join(f'{1e3 * t:.3g}' for t in times)} ms"
        for name, times in sorted(entry["times"].items(), key=lambda item: item[1])
    )
