"""Power-function averages of the weights: their profiles, and those made of others afterwards.

An average is named by `sigma_rel`, the width of its profile relative to the training time
(EDM2 section 3.1); its exponent `gamma` is what the arithmetic uses. What tracks them while
training is `trainer/ema.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import overload

import numpy as np
import torch

# Weights of snapshots whose float32 rounding, 2^-24 of each, adds up to less than half a percent.
_MOST_WEIGHT = 1e5

# The profile is narrowest as gamma -> infinity and widest, for gamma > -1, just below 12 ** -0.5.
SIGMA_REL_MAX = 12**-0.5


def check_sigma_rel(
    function: str, sigma_rel: float | Sequence[float] | np.ndarray, name: str = "sigma_rel"
) -> None:
    """Raises ValueError where a width, called `name`, is none that a profile has."""
    widths = np.atleast_1d(np.asarray(sigma_rel, np.float64))
    bad = widths[~((widths > 0) & (widths < SIGMA_REL_MAX))]
    if bad.size:
        raise ValueError(
            f"{function}: {name} must lie in (0, {SIGMA_REL_MAX:.4f}), got {bad[0]}; typical "
            "lengths are 0.01 to 0.25"
        )


def length_name(sigma_rel: float) -> str:
    """A width as file names and messages give it: `0.050`, `0.0125`.

    The fewest decimals, but three, that stand for this number alone: `float` gives it back.
    """
    return np.format_float_positional(sigma_rel, min_digits=3)


@overload
def sigma_rel_to_gamma(sigma_rel: float) -> float: ...
@overload
def sigma_rel_to_gamma(sigma_rel: np.ndarray) -> np.ndarray: ...
def sigma_rel_to_gamma(sigma_rel: float | np.ndarray) -> float | np.ndarray:
    """Exponent gamma of the profile whose relative width is `sigma_rel` (EDM2 eq. 126, alg. 2).

    Solves `gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s = 0` with `s = sigma_rel^-2`, the largest
    real root, which is the inverse of `gamma_to_sigma_rel`.

    Args:
        sigma_rel: float or array, in (0, 12^-0.5).

    Returns:
        float or float64 array of the same shape.

    Raises:
        ValueError: a width that no profile with gamma > 0 has.
    """
    widths = np.asarray(sigma_rel, dtype=np.float64)
    check_sigma_rel("sigma_rel_to_gamma", widths)
    roots = [np.roots([1, 7, 16 - s, 12 - s]).real.max() for s in widths.ravel() ** -2.0]
    gamma = np.asarray(roots, dtype=np.float64).reshape(widths.shape)
    return float(gamma) if gamma.ndim == 0 else gamma


@functools.lru_cache
def _gamma(sigma_rel: float) -> float:
    """`sigma_rel_to_gamma` of one number, solved once: every step of a training asks for it."""
    return sigma_rel_to_gamma(sigma_rel)


@overload
def gamma_to_sigma_rel(gamma: float) -> float: ...
@overload
def gamma_to_sigma_rel(gamma: np.ndarray) -> np.ndarray: ...
def gamma_to_sigma_rel(gamma: float | np.ndarray) -> float | np.ndarray:
    """Relative width `(gamma+1)^(1/2) (gamma+2)^-1 (gamma+3)^(-1/2)` (EDM2 eq. 123).

    Args:
        gamma: float or array, > -1.

    Returns:
        float or float64 array of the same shape.
    """
    g = np.asarray(gamma, dtype=np.float64)
    width = np.sqrt((g + 1) / (g + 3)) / (g + 2)
    return float(width) if width.ndim == 0 else width


def power_function_beta(sigma_rel: float, t_next: float, t_delta: float) -> float:
    """Decay of one EMA update, `(1 - t_delta / t_next)^(gamma + 1)` (EDM2 eq. 127).

    Args:
        sigma_rel: width of the profile.
        t_next: time after the update, > 0, in any unit (images here).
        t_delta: time that the update covers, in the same unit, 0 <= t_delta <= t_next.

    Returns:
        beta in `ema = beta * ema + (1 - beta) * weights`; 0 at the very first update.

    Raises:
        ValueError: times out of order.
    """
    if not 0 <= t_delta <= t_next or t_next <= 0:
        raise ValueError(
            f"power_function_beta: t_delta must lie in [0, t_next], got t_delta={t_delta}, "
            f"t_next={t_next}; pass the images of this step and the images seen after it"
        )
    return float((1 - t_delta / t_next) ** (_gamma(sigma_rel) + 1))


def _profile_products(
    t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    """Inner products of two sets of profiles (EDM2 eq. 150), [len(a), len(b)], float64.

    A profile is `p(t) = (gamma+1) t^gamma / T^(gamma+1)` on [0, T]. The product of two, integrated
    to the earlier end m, is `(ga+1)(gb+1)/(ga+gb+1) (m/Ta)^ga (m/Tb)^gb / max(Ta, Tb)`.
    """
    t_a, gamma_a = t_a[:, None], gamma_a[:, None]
    t_b, gamma_b = t_b[None, :], gamma_b[None, :]
    earlier = np.minimum(t_a, t_b)
    decay = (earlier / t_a) ** gamma_a * (earlier / t_b) ** gamma_b
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * decay / np.maximum(t_a, t_b)


def posthoc_coefficients(
    in_nimg: Sequence[float],
    in_sigma_rel: Sequence[float],
    out_nimg: Sequence[float],
    out_sigma_rel: Sequence[float],
) -> np.ndarray:
    """Weights with which stored averages add up to wanted ones, by least squares (EDM2 alg. 3).

    Args:
        in_nimg, in_sigma_rel: when each stored snapshot was taken and its width, length S.
        out_nimg, out_sigma_rel: the same for the averages wanted, length K.

    Returns:
        float64 [S, K]; column k holds the weights of the snapshots for wanted average k, scaled to
        sum to 1 as those of an average do (least squares alone falls short of that where the
        snapshots span the wanted profile badly).

    Raises:
        ValueError: lengths that differ, times <= 0, widths out of range, the same snapshot twice
            (the system would be singular), or a width so far from stored ones which lie so near
            each other that their rounding to float32 would show.
    """
    in_t, out_t = np.asarray(in_nimg, np.float64), np.asarray(out_nimg, np.float64)
    in_s, out_s = np.asarray(in_sigma_rel, np.float64), np.asarray(out_sigma_rel, np.float64)
    for side, t, s in (("in", in_t, in_s), ("out", out_t, out_s)):
        if t.ndim != 1 or t.shape != s.shape or not t.size:
            raise ValueError(
                f"posthoc_coefficients: {side}_nimg and {side}_sigma_rel must be lists of one "
                f"length >= 1, got shapes {t.shape} and {s.shape}; give one width per time"
            )
        if not (t > 0).all():
            raise ValueError(
                f"posthoc_coefficients: {side}_nimg must be > 0, got {t.min()}; leave out "
                "snapshots taken before the first step"
            )
    if len(set(zip(in_t, in_s, strict=True))) < len(in_t):
        raise ValueError(
            "posthoc_coefficients: snapshots must differ in time or width, got one of them twice; "
            "remove the duplicate"
        )
    in_g, out_g = sigma_rel_to_gamma(in_s), sigma_rel_to_gamma(out_s)
    a = _profile_products(in_t, in_g, in_t, in_g)
    b = _profile_products(in_t, in_g, out_t, out_g)
    weights = np.linalg.solve(a, b)
    weights = weights / weights.sum(axis=0)
    total = np.abs(weights).sum(axis=0)
    if not (total < _MOST_WEIGHT).all():
        raise ValueError(
            "posthoc_coefficients: out_sigma_rel must be near the stored "
            f"{', '.join(map(length_name, np.unique(in_s)))}, or those be farther apart, got "
            f"{length_name(out_s[total.argmax()])}, for which their weights add up to "
            f"{total.max():.2g} and magnify their rounding; ask for a length nearer to them"
        )
    return weights


State = dict[str, torch.Tensor]


@torch.no_grad()
def reconstruct(
    snapshots: Iterable[tuple[float, float, State | Callable[[], State]]],
    sigma_rels: Sequence[float],
    nimg: float | None = None,
) -> list[State]:
    """Weights of EMAs that were never tracked, from the snapshots of those that were.

    All that are wanted are summed in one pass over the snapshots. In memory are, however many
    snapshots there are, one of them and 8 bytes per parameter for each average wanted.

    Args:
        snapshots: `(nimg, sigma_rel, state)` of every stored average; `state` is its state dict,
            or a function that reads it, called once and in turn.
        sigma_rels: the widths wanted.
        nimg: the training time at which they end; default: the last snapshot's. Snapshots after
            it are left out.

    Returns:
        One state dict per wanted width; sums in float64, dtypes as in the snapshots.

    Raises:
        ValueError: no snapshot at or before `nimg`, or bad widths.
    """
    stored = sorted(snapshots, key=lambda s: (s[0], s[1]))
    end = nimg if nimg is not None else (stored[-1][0] if stored else 0)
    stored = [s for s in stored if s[0] <= end]
    if not stored:
        raise ValueError(
            f"reconstruct: snapshots must hold at least one taken by nimg={end}, got none; "
            "train with snapshots, or ask for a later time"
        )
    count = len(sigma_rels)
    weights = posthoc_coefficients(
        [s[0] for s in stored], [s[1] for s in stored], [end] * count, list(sigma_rels)
    )
    sums: list[State] = [{} for _ in sigma_rels]
    for (_, _, state), row in zip(stored, weights, strict=True):
        state = state() if callable(state) else state
        for name, value in state.items():
            for total, coefficient in zip(sums, row, strict=True):
                if not value.is_floating_point():
                    total[name] = value.clone()
                elif name not in total:
                    total[name] = value.to(torch.float64) * float(coefficient)
                else:
                    total[name].add_(value.to(torch.float64), alpha=float(coefficient))
    return [{name: value.to(state[name].dtype) for name, value in total.items()} for total in sums]
