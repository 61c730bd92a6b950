"""Fidelity and diversity on k-nearest-neighbour manifolds: precision, recall, density, coverage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .features import as_count, as_features, check_same_width
from .neighbours import Balls


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: generated samples that look real; real images that are covered."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely real images lie around samples, >= 0; the share of them that has a sample."""

    density: float
    coverage: float


def precision_recall(
    real: ArrayLike,
    fake: ArrayLike,
    k: int = 3,
    chunk: int = 2048,
    device: torch.device | str | None = None,
) -> PrecisionRecall:
    """Return the improved precision and recall of generated samples.

    The manifold of a set is the union of balls around its points, each reaching to that point's
    k-th nearest neighbour in the set. Precision is the share of `fake` inside the manifold of
    `real`, recall the share of `real` inside the manifold of `fake` (Kynkaanniemi et al. 2019,
    arXiv 1904.06991, eq. 1 and 2).

    Recall depends on how many fakes there are, since their balls shrink as they grow dense;
    the paper takes as many fakes as real images. See `Reference.quality`, which does.

    Args:
        real: features of real images `[N, D]`, N > k, array or tensor.
        fake: features of generated images `[M, D]`, M > k.
        k: which neighbour sets the radius, >= 1. The paper uses 3.
        chunk: rows compared at a time, >= 1; memory is about 16 * chunk * max(N, M) bytes.
        device: where to compute, in float64; None: the CPU.

    Returns:
        `PrecisionRecall(precision, recall)`.

    Raises:
        ValueError: wrong shapes, different widths, k or chunk below 1, a set not larger than k,
            NaN or infinity.
    """
    real, fake, k, chunk = _checked("precision_recall", real, fake, k, chunk)
    return PrecisionRecall(
        precision=_share_inside(fake, Balls(real, k, chunk, device)),
        recall=_share_inside(real, Balls(fake, k, chunk, device)),
    )


def density_coverage(
    real: ArrayLike,
    fake: ArrayLike,
    k: int = 5,
    chunk: int = 2048,
    device: torch.device | str | None = None,
) -> DensityCoverage:
    """Return density and coverage of generated samples (Naeem et al. 2020, arXiv 2002.09797).

    With balls around the real images that reach to each one's k-th nearest real neighbour, density
    is the mean over `fake` of the number of balls that hold a sample, divided by k, and coverage is
    the share of balls that hold at least one. Unlike precision and recall
    both take their radii from real images alone, so that one outlier among the samples makes no
    large ball. Real images against others of their kind have a density of 1 and a coverage of
    `1 - (N-1)...(N-k) / ((M+N-1)...(M+N-k))`, for N = M about `1 - 2^-k`.

    Args:
        real: features of real images `[N, D]`, N > k, array or tensor.
        fake: features of generated images `[M, D]`, M >= 1.
        k: which neighbour sets the radius, >= 1. The paper uses 5.
        chunk: rows compared at a time, >= 1; memory is about 16 * chunk * N bytes.
        device: where to compute, in float64; None: the CPU.

    Returns:
        `DensityCoverage(density, coverage)`.

    Raises:
        ValueError: as for `precision_recall`.
    """
    real, fake, k, chunk = _checked("density_coverage", real, fake, k, chunk, fakes=1)
    balls = Balls(real, k, chunk, device)
    pairs = 0
    covered = torch.zeros(len(balls), dtype=torch.bool, device=balls.device)
    for held in balls.holding(fake):
        pairs += int(held.sum())
        covered |= held.any(dim=0)
    return DensityCoverage(
        density=pairs / (k * len(fake)), coverage=int(covered.sum()) / len(covered)
    )


def _checked(
    function: str, real: ArrayLike, fake: ArrayLike, k: int, chunk: int, fakes: int | None = None
) -> tuple[np.ndarray, np.ndarray, int, int]:
    k, chunk = (as_count(value, function, name) for name, value in (("k", k), ("chunk", chunk)))
    real = as_features(real, function, "real", at_least=k + 1)
    fake = as_features(fake, function, "fake", at_least=k + 1 if fakes is None else fakes)
    check_same_width(function, real=real, fake=fake)
    return real, fake, k, chunk


def _share_inside(queries: np.ndarray, balls: Balls) -> float:
    """Return the share of `queries` that at least one ball holds."""
    inside = sum(int(held.any(dim=1).sum()) for held in balls.holding(queries))
    return inside / len(queries)
