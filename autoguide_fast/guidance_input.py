"""Of a net that has learnt its guide: the guidance weight is its input, and no guide runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import checkpoints
from .engine import BaseEngine
from .guidance import Guidance, bare
from .guidance.weights import checked as checked_weight
from .guidance_request import GuidanceLike, Interval


def guidance_range(model: object) -> tuple[float, ...]:
    """The guidance weights that a model takes as an input; empty where it takes none."""
    if isinstance(model, BaseEngine):
        return () if model.guides else getattr(model.model, "guidance_range", ())
    if isinstance(model, (str, os.PathLike)):
        path = checkpoints.find(model, "sample: model")
        if checkpoints.is_pickle(path):  # of the reference, whose nets take none
            return ()
        config = checkpoints.read_header(path, "sample")["config"]
    else:
        config = getattr(bare(model), "config", None)
    found = config.get("guidance_range", ()) if isinstance(config, Mapping) else ()
    return tuple(found)


def guidance_input(
    guidance: GuidanceLike,
    interval: Interval | Sequence[Interval | None] | None,
    learnt: tuple[float, ...],
) -> Tensor:
    """The weights `[N or 1]` that a net takes as an input, float64."""
    low, high = learnt
    remedy = f"it takes one weight from {low:g} to {high:g} for each image, at all noise levels"
    if interval is not None:
        raise ValueError(
            f"sample: interval must be left out for a net that has its guide within, got "
            f"{interval!r}; {remedy}"
        )
    if isinstance(guidance, (str, os.PathLike)):
        raise ValueError(
            "sample: guidance must be a number for a net that has its guide within, got "
            f"{os.fspath(guidance)[-100:]!r}, weights by noise level; {remedy}"
        )
    found = None if isinstance(guidance, Guidance) else checked_weight(guidance, "sample")  # type: ignore[arg-type]
    if not isinstance(found, (float, Tensor)):
        raise ValueError(
            "sample: guidance must be a number or one for each image for a net that has its guide "
            f"within, got {type(guidance).__name__}; {remedy}"
        )
    weights = torch.as_tensor(found, dtype=torch.float64, device="cpu").reshape(-1)
    if not ((low <= weights) & (weights <= high)).all():
        outside = weights[(weights < low) | (weights > high)][0].item()
        raise ValueError(
            f"sample: guidance must lie in [{low:g}, {high:g}], which the net has learnt, got "
            f"{outside:g}; choose one there, or sample the pair that it was distilled from"
        )
    return weights
