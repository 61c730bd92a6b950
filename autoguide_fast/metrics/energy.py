"""Energy distance between two sets of features: zero only where their distributions are one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from .features import as_features

_ROWS = 1024  # of the matrix of distances, held at a time


def energy_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Return the energy distance between the distributions that two sets are drawn from.

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, X and X' of `a`, Y and Y' of `b` (Székely and Rizzo 2013,
    Energy statistics). Unlike the Fréchet distance it sees more than mean and covariance, and
    unlike that its estimate does not depend on the numbers of samples: pairs of one with itself
    are left out, so that it scatters around 0, also below, for two sets of one distribution.

    Args:
        a, b: features `[N, D]`, N >= 2, arrays or tensors; as many features, any numbers of rows.

    Returns:
        The distance, in units of the features.

    Raises:
        ValueError: wrong shapes, different widths, fewer than two rows, NaN or infinity.
    """
    a = as_features(a, "energy_distance", "a", at_least=2)
    b = as_features(b, "energy_distance", "b", at_least=2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"energy_distance: b must have as many features as a, got {b.shape[1]} and "
            f"{a.shape[1]}; compute both with the same features"
        )
    between = _total(a, b) / (len(a) * len(b))
    within = sum(_total(set_, set_) / (len(set_) * (len(set_) - 1)) for set_ in (a, b))
    return 2 * between - within


def _total(a: np.ndarray, b: np.ndarray) -> float:
    """The sum of all distances between a row of `a` and one of `b`."""
    x, y = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    exact = "donot_use_mm_for_euclid_dist"
    return sum(float(torch.cdist(rows, y, compute_mode=exact).sum()) for rows in x.split(_ROWS))
