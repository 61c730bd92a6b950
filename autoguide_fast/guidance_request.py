"""Guidance and intervals as `sample` takes them, checked against the guides that there are."""

import os
from collections.abc import Sequence
from typing import Any

from . import arguments
from .engine import BaseEngine
from .guidance import AnyWeight, Guidance, Linear, Weight
from .guidance.weights import checked as checked_weight

GuidanceLike = AnyWeight | Sequence[AnyWeight] | Guidance | str | os.PathLike
Interval = tuple[float, float]


def needs_guide(guidance: GuidanceLike) -> bool:
    """Whether a guide may have to run."""
    if isinstance(guidance, Guidance):
        return guidance.num_guides != 0
    return not isinstance(guidance, (int, float)) or guidance != 1


def requested_guidance(
    guidance: GuidanceLike,
    interval: Interval | Sequence[Interval | None] | None,
    roles: Sequence[str],
    engine: BaseEngine | None,
) -> Weight | Guidance:
    """The weight of one guide, which the fused steps take, or what combines otherwise."""
    found = _checked_guidance(guidance, interval, len(roles))
    wanted = found.num_guides if isinstance(found, Guidance) else min(1, len(roles))
    if not isinstance(found, Guidance) and found != 1:
        wanted = 1
    if wanted is not None and len(roles) < wanted:
        shown = _shown(found)
        if engine is not None:
            rule = "1 for an Engine without a guide" if not roles else f"for {len(roles)} guides"
            raise ValueError(
                f"sample: guidance must be {rule}, got {shown}; make Engine(model, guide)"
            )
        if wanted > 1:
            raise ValueError(
                f"sample: guide must be {wanted} guides for {shown}, got {len(roles)}; pass a list"
            )
        raise ValueError(
            f"sample: guide must be given where guidance is not 1, got None at guidance {shown}; "
            "pass a worse version of the model, or unlabelled(model) for CFG"
        )
    if isinstance(found, Guidance) and wanted is not None and len(roles) > wanted:
        raise ValueError(
            f"sample: guide must be {wanted} guide{'s' * (wanted != 1)} for {_shown(found)}, got "
            f"{len(roles)}; leave some out"
        )
    return found


def _checked_guidance(
    guidance: GuidanceLike, interval: Interval | Sequence[Interval | None] | None, guides: int
) -> Weight | Guidance:
    if isinstance(guidance, Guidance):
        if interval is not None:
            raise ValueError(
                f"sample: interval must be left out for {type(guidance).__name__}, got "
                f"{interval!r}; pass it to {type(guidance).__name__}"
            )
        return guidance
    if guides > 1 and needs_guide(guidance):
        weights = list(guidance) if isinstance(guidance, (list, tuple)) else None
        if weights is None or len(weights) != guides:
            count = f"{len(weights)} of them" if weights is not None else "one for all"
            raise ValueError(
                f"sample: guidance must be a list with a weight for each of {guides} guides, got "
                f"{count}; 1 leaves a guide out"
            )
        return Linear(weights, _intervals(interval, guides))
    weight = checked_weight(guidance, "sample")  # type: ignore[arg-type]
    if isinstance(weight, float) or callable(weight):
        arguments.guidance_interval(only_interval(interval))
        return weight
    return Linear([weight], [only_interval(interval)])


def listed_one(value: Any) -> Any:
    """What stands in a list for the one guide of a list, or stands by itself."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _intervals(
    interval: Interval | Sequence[Interval | None] | None, guides: int
) -> list[Interval | None]:
    """The interval of each guide: one for all, or one for each."""
    if isinstance(interval, (list, tuple)):
        each = all(i is None or isinstance(i, (list, tuple)) for i in interval)
        if each and len(interval) == guides:
            return list(interval)
    return [arguments.guidance_interval(interval)] * guides  # type: ignore[arg-type]


def only_interval(interval: Interval | Sequence[Interval | None] | None) -> Interval | None:
    """The interval of one guide."""
    return arguments.guidance_interval(interval)  # type: ignore[arg-type]


def _shown(guidance: Weight | Guidance) -> str:
    if isinstance(guidance, Guidance):
        return "with several weights" if isinstance(guidance, Linear) else type(guidance).__name__
    return "a function of sigma" if callable(guidance) else f"{guidance:g}"
