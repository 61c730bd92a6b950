"""The guidance weight: a number, one per image or class, or a function of the noise level."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import arguments
from ..arrays import as_tensor

if TYPE_CHECKING:
    from .evaluation import Batch


@dataclass(frozen=True)
class PerClass:
    """A guidance weight for each class: of an image, that of its label.

    Args:
        weights: one finite number for each class; an image with a soft label gets their mean.

    Raises:
        TypeError, ValueError: another thing.
    """

    weights: tuple[float, ...]

    def __init__(self, weights: Sequence[float]) -> None:
        values = tuple(
            arguments.number(
                f"weights[{i}]", value, "finite", math.isfinite, "1 is no guidance", "PerClass"
            )
            for i, value in enumerate(weights)
        )
        object.__setattr__(self, "weights", values)


# The guidance weight w: a number, or a function of the noise level; one number for each image, or
# one for each class, besides.
Weight = float | Callable[[float], float]
AnyWeight = Weight | Tensor | Sequence[float] | PerClass


def table(weights: Mapping[float, float]) -> Callable[[float], float]:
    """A guidance weight by noise level, given at a few of them.

    Between two levels it is linear in the logarithm of the level; beyond the outermost it stays.
    With two entries this is a ramp.

    Args:
        weights: positive noise levels and finite weights there.

    Returns:
        A function of the noise level, as `sample` takes it for `guidance`.

    Raises:
        TypeError, ValueError: no entries, or others than these.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(
            f"table: weights must be a mapping of noise levels to weights, got {weights!r}; "
            "{1.0: 1.5, 10.0: 1.0} falls from 1.5 to 1"
        )
    check = functools.partial(arguments.number, caller="table")
    remedy = "levels are standard deviations of noise"
    levels = {
        check("a level", s, "above 0 and finite", lambda v: 0 < v < math.inf, remedy): check(
            f"weights[{s}]", w, "finite", math.isfinite, "1 is no guidance"
        )
        for s, w in weights.items()
    }
    known = [(math.log(s), levels[s]) for s in sorted(levels)]

    def at(sigma: float) -> float:
        u = math.log(sigma)
        for (a, low), (b, high) in itertools.pairwise(known):
            if a < u < b:
                return low + (u - a) / (b - a) * (high - low)
        return known[0][1] if u <= known[0][0] else next(w for v, w in reversed(known) if v <= u)

    return at


def weight_at(guidance: Weight, sigma: float) -> float:
    """The guidance weight at the noise level `sigma`; 1 at 0, where nothing is evaluated."""
    if not callable(guidance):
        return guidance
    return float(guidance(sigma)) if sigma > 0 else 1.0


def guides_at(sigma: float, guidance: float, interval: tuple[float, float] | None = None) -> bool:
    """Whether the guide has to run at the noise level `sigma` (a host-side float).

    It does unless `guidance` is 1, or `sigma` lies outside `interval = (lo, hi]`, where the
    guidance counts as 1 (arXiv 2404.07724).
    """
    if guidance == 1:
        return False
    return interval is None or interval[0] < sigma <= interval[1]


def checked(weight: AnyWeight, caller: str, name: str = "guidance") -> Weight | Tensor | PerClass:
    """The weight as a float, a function that checks what it returns, float64 `[N]`, or `PerClass`.

    Raises:
        TypeError, ValueError: none of these, or not finite.
    """
    if isinstance(weight, PerClass):
        return weight
    several = getattr(weight, "ndim", 0) == 1  # a tensor, or an array of any library
    if several or isinstance(weight, (list, tuple)):
        given = as_tensor(weight) if several else weight
        values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
        if values.ndim != 1 or not torch.isfinite(values).all():
            raise ValueError(
                f"{caller}: {name} must be finite numbers, one for each image, got "
                f"{list(values.shape)} with others among them; 1 is no guidance"
            )
        return values
    return arguments.weight(weight, caller, name)  # type: ignore[arg-type]


def of_batch(weight: Weight | Tensor | PerClass, batch: Batch) -> Weight | Tensor:
    """The weight of the images of one batch: a number, a function, or `[N, 1, ...]`, float64.

    Raises:
        ValueError: weights by image or class that are not as many as these.
    """
    if isinstance(weight, PerClass):
        labels = batch.class_labels
        if labels is None or labels.ndim != 2 or labels.shape[1] != len(weight.weights):
            classes = 0 if labels is None else labels.shape[-1]
            raise ValueError(
                f"sample: guidance must have a weight for each of {classes} classes, got "
                f"{len(weight.weights)} in PerClass; give each class one"
            )
        table = torch.tensor(weight.weights, dtype=torch.float64, device="cpu").to(batch.device)
        values = labels.to(torch.float64) @ table
    elif isinstance(weight, Tensor):
        if len(weight) != batch.num_images:
            raise ValueError(
                f"sample: guidance must be one weight for each of {batch.num_images} images, got "
                f"{len(weight)}; pass as many, or one number"
            )
        values = weight[batch.indices.start : batch.indices.stop].to(batch.device)
    else:
        return weight
    return values.reshape(-1, *[1] * batch.ndim)
