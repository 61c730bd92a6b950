"""Frechet distance between two sets of features, each seen as one Gaussian."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .features import as_features, to_numpy

# Features `[N, D]`, or their mean and covariance.
Statistics = ArrayLike | tuple[ArrayLike, ArrayLike]


def feature_statistics(features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the unbiased covariance of a set of features.

    Args:
        features: `[N, D]`, N >= 2, array or tensor of any real type.

    Returns:
        mu: float64 `[D]`.
        sigma: float64 `[D, D]`, divided by N - 1.

    Raises:
        ValueError: wrong shape, fewer than two rows, NaN or infinity.
    """
    features = as_features(features, "feature_statistics", "features", at_least=2)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Return the squared 2-Wasserstein distance between Gaussians fitted to two sets of features.

    `|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` (Dowson and Landau 1982; Heusel et al.
    2017, arXiv 1706.08500, eq. 6, where it is named FID).

    The result depends on the numbers of samples: fewer samples read as a larger distance. Compare
    only values that were taken with the same numbers.

    Args:
        a, b: each a matrix of features `[N, D]`, N >= 2, or a pair `(mu, sigma)` of shapes `[D]`
            and `[D, D]`. Arrays or tensors. Covariances may be singular.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        ValueError: wrong shapes, different widths, too few rows, NaN or infinity, a covariance
            that is not symmetric or has a negative variance.
    """
    mu_a, sigma_a = _statistics(a, "a")
    mu_b, sigma_b = _statistics(b, "b")
    if len(mu_a) != len(mu_b):
        raise ValueError(
            f"frechet_distance: b must have as many features as a, got {len(mu_b)} and "
            f"{len(mu_a)}; compute both with the same features"
        )
    # tr (S_a S_b)^(1/2) is the sum of singular values of S_a^(1/2) S_b^(1/2): the eigenvalues of
    # S_a S_b are those of M M^T with M = S_a^(1/2) S_b^(1/2). Unlike a matrix square root of the
    # unsymmetric product, that is real and exact to rounding for singular covariances too.
    cross = np.linalg.svd(_root(sigma_a) @ _root(sigma_b), compute_uv=False).sum()
    distance = np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a) + np.trace(sigma_b) - 2 * cross
    return max(float(distance), 0.0)


def _statistics(value: Statistics, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Turn an argument, features or a (mu, sigma) pair, into checked statistics."""
    if not isinstance(value, tuple):
        features = as_features(value, "frechet_distance", name, at_least=2)
        return feature_statistics(features)
    if len(value) != 2:
        raise ValueError(
            f"frechet_distance: {name} must be features or a pair (mu, sigma), got a tuple of "
            f"{len(value)}; pass feature_statistics(features)"
        )
    sigma = as_features(value[1], "frechet_distance", f"{name}[1]")
    mu = to_numpy(value[0]).astype(np.float64)
    if mu.shape != (len(sigma),) or sigma.shape[0] != sigma.shape[1] or not np.isfinite(mu).all():
        raise ValueError(
            f"frechet_distance: {name} must be finite (mu, sigma) of shapes [D] and [D, D], got "
            f"{list(mu.shape)} and {list(sigma.shape)}; pass feature_statistics(features)"
        )
    if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-8 * np.abs(sigma).max()):
        raise ValueError(
            f"frechet_distance: {name}[1] must be symmetric, got a difference of "
            f"{np.abs(sigma - sigma.T).max():g}; pass a covariance"
        )
    if np.diag(sigma).min() < 0:
        raise ValueError(
            f"frechet_distance: {name}[1] must have variances >= 0, got "
            f"{np.diag(sigma).min():g}; pass a covariance"
        )
    return mu, sigma


def _root(sigma: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance; eigenvalues below 0 are rounding."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
