"""Fidelity and diversity: improved precision and recall on k-nearest-neighbour manifolds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .features import as_count, as_features, check_same_width

# Squared distances come from |p|^2 + |q|^2 - 2 p.q in float64; what cancels is of the order of
# 2^-52 times the squared norms times a few tens. 1e-13 of them is more than rounding and far
# less than any distance that matters.
_ROUNDING = 1e-13


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: generated samples that look real; real images that are covered."""

    precision: float
    recall: float


def precision_recall(
    real: ArrayLike, fake: ArrayLike, k: int = 3, chunk: int = 2048
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
        chunk: rows compared at a time, >= 1; memory is about 8 * chunk * max(N, M) bytes.

    Returns:
        `PrecisionRecall(precision, recall)`.

    Raises:
        ValueError: wrong shapes, different widths, k or chunk below 1, a set not larger than k,
            NaN or infinity.
    """
    k, chunk = (
        as_count(value, "precision_recall", name) for name, value in (("k", k), ("chunk", chunk))
    )
    real = as_features(real, "precision_recall", "real", at_least=k + 1)
    fake = as_features(fake, "precision_recall", "fake", at_least=k + 1)
    check_same_width("precision_recall", real=real, fake=fake)
    # Distances do not change with the origin; near the data's mean they cancel least.
    origin = real.mean(axis=0)
    real, fake = real - origin, fake - origin
    return PrecisionRecall(
        precision=_share_inside(fake, real, k, chunk),
        recall=_share_inside(real, fake, k, chunk),
    )


def _share_inside(queries: np.ndarray, points: np.ndarray, k: int, chunk: int) -> float:
    """Return the share of `queries` that lie in the k-nearest-neighbour manifold of `points`."""
    from sklearn.neighbors import NearestNeighbors

    # Without an argument, kneighbors leaves each point out of its own neighbours.
    distances, _ = NearestNeighbors(n_neighbors=k).fit(points).kneighbors()
    squared_norms = np.sum(points**2, axis=1)
    reach = distances[:, -1] ** 2 + _ROUNDING * squared_norms
    inside = 0
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        norms = np.sum(rows**2, axis=1)[:, None]
        squared = norms * (1 - _ROUNDING) + squared_norms - 2 * rows @ points.T
        inside += np.count_nonzero((squared <= reach).any(axis=1))
    return inside / len(queries)
