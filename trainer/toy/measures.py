"""How near points come to the toy's true distribution, which is known exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autoguide_fast.metrics import energy_distance
from autoguide_fast.toy import Fractal

RARE = 0.001  # of true points: the share that counts as outside, and as off the tree
REACHED = 0.25  # of the points that a branch should get
_FOR_LIMITS = 1 << 17  # true points that say where the support and the tree end
_FOR_ENERGY = 4096  # points of either side: the distances between all pairs take a while


@dataclass(frozen=True)
class Figures:
    """What was measured of one set of points.

    Attributes:
        off_tree: share of points farther from every branch than 99.9 % of true points.
        outside: share of points where the true density is lower than at 99.9 % of true points.
            Stricter than the first at the thin tips, where a branch is narrower than at the root.
        branches: share of the tree's 127 branches that get at least a quarter of the points that
            they should. A point off the tree is on no branch; others are on the likeliest ones.
        overlap: the sum over all branches of the smaller of the share of points that a branch gets
            and the share that it should get: 1 where all are as they should be.
        energy: energy distance of the first 4096 points to as many true ones, in units of the
            plane.
    """

    off_tree: float
    outside: float
    branches: float
    overlap: float
    energy: float


class Judge:
    """Measures points against a distribution; the same seed has the same true points.

    Args:
        data: the true distribution.
        seed: of true points.
    """

    def __init__(self, data: Fractal, seed: int = 0) -> None:
        self.data = data
        generator = torch.Generator().manual_seed(seed)
        true = data.sample(_FOR_LIMITS, generator)
        self.least_density = float(data.log_density(true).quantile(RARE))
        self.most_distance = float(data.distance(true).quantile(1 - RARE))
        self.truth = data.sample(_FOR_ENERGY, generator)

    def off_tree(self, points: Tensor) -> Tensor:
        """Which of the points `[N, 2]` are farther from every branch than true ones, bool `[N]`."""
        return self.data.distance(points) > self.most_distance

    def measure(self, points: Tensor) -> Figures:
        """The figures of points `[N, 2]`."""
        off = self.off_tree(points)
        on_branches = self.data.branches(points[~off]).double().sum(0) / len(points)
        expected = self.data.weight
        return Figures(
            off_tree=float(off.double().mean()),
            outside=float((self.data.log_density(points) < self.least_density).double().mean()),
            branches=float((on_branches >= REACHED * expected).double().mean()),
            overlap=float(torch.minimum(on_branches, expected).sum()),
            energy=energy_distance(points[:_FOR_ENERGY], self.truth),
        )


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a figure over repeats; the deviation of one is unknown."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of `values`."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std)

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """As a table shows it."""
        spread = "" if self.std is None else f" ± {self.std * scale:.{digits}f}"
        return f"{self.mean * scale:.{digits}f}{spread}"

    def above(self, other: Spread) -> bool:
        """Whether it lies above `other` by more than twice what the repeats scatter by."""
        scatter = np.hypot(self.std or 0.0, other.std or 0.0)
        return self.mean - other.mean > 2 * scatter


def spreads(figures: Sequence[Figures]) -> dict[str, Spread]:
    """Each figure over the repeats."""
    names = [field.name for field in dataclasses.fields(Figures)]
    return {name: Spread.of([getattr(f, name) for f in figures]) for name in names}
