"""Magnitude-preserving concatenation, alone and with the MP-SiLU that follows it."""

from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, dense_format, differentiable, fake, op, promote_in_autocast
from .mp_silu import mp_silu_plain, mp_silu_reference, mp_silu_slope

_mp_cat = op("mp_cat")
_mp_cat_mp_silu = op("mp_cat_mp_silu")
_mp_cat_backward = op("mp_cat_backward")


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Concatenate channels so that `a` and `b` contribute in the ratio `1 - t` to `t`.

    `c [(1 - t) / sqrt(N_a) a, t / sqrt(N_b) b]`, `c = sqrt((N_a + N_b) / ((1 - t)^2 + t^2))`
    (EDM2 eq. 103).

    Args:
        a: tensor `[N, N_a, ...]`, floating point, any strides.
        b: tensor `[N, N_b, ...]` of the dtype of `a`.
        t: weight of `b`, from 0 to 1.

    Returns:
        A tensor `[N, N_a + N_b, ...]`, dense as for `mp_silu` of `a`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in `a` and `b`.
    """
    return _mp_cat(a, b, t)


def mp_cat_reference(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """`mp_cat` in plain PyTorch."""
    factor_a, factor_b = _factors(a, b, t)
    return torch.cat([a * factor_a, b * factor_b], dim=1)


def _factors(a: Tensor, b: Tensor, t: float) -> tuple[float, float]:
    n_a, n_b = a.shape[1], b.shape[1]
    c = ((n_a + n_b) / ((1 - t) ** 2 + t**2)) ** 0.5
    return c / n_a**0.5 * (1 - t), c / n_b**0.5 * t


def mp_cat_mp_silu(a: Tensor, b: Tensor, t: float = 0.5) -> tuple[Tensor, Tensor]:
    """`mp_cat` and its `mp_silu`, as a decoder block wants them, in one pass.

    Args:
        a, b, t: as for `mp_cat`.

    Returns:
        `(y, mp_silu(y))` with `y = mp_cat(a, b, t)`.

    Raises: as for `mp_cat`. Differentiable in `a` and `b`.
    """
    return _mp_cat_mp_silu(a, b, t)


def mp_cat_mp_silu_reference(a: Tensor, b: Tensor, t: float = 0.5) -> tuple[Tensor, Tensor]:
    """`mp_cat_mp_silu` in plain PyTorch."""
    y = mp_cat_reference(a, b, t)
    return y, mp_silu_reference(y)


def _empty(a: Tensor, b: Tensor) -> Tensor:
    return dense_empty(a, (a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:]))


@fake("mp_cat")
def _(a: Tensor, b: Tensor, t: float) -> Tensor:
    return _empty(a, b)


@fake("mp_cat_mp_silu")
def _(a: Tensor, b: Tensor, t: float) -> tuple[Tensor, Tensor]:
    return _empty(a, b), _empty(a, b)


@fake("mp_cat_backward")
def _(
    grad: Tensor, grad_silu: Tensor | None, a: Tensor, b: Tensor, t: float
) -> tuple[Tensor, Tensor]:
    return dense_empty(a), torch.empty_like(b, memory_format=dense_format(a))


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    a, b, ctx.t = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_mp_cat_backward(grad, None, *ctx.saved_tensors, ctx.t), None


def _backward_with_silu(ctx: Any, grad: Tensor, grad_silu: Tensor) -> tuple[Tensor | None, ...]:
    return *_mp_cat_backward(grad, grad_silu, *ctx.saved_tensors, ctx.t), None


def _plain_with_silu(a: Tensor, b: Tensor, t: float) -> tuple[Tensor, Tensor]:
    y = mp_cat_reference(a, b, t)
    return y, mp_silu_plain(y)


def _gradients(
    grad: Tensor, grad_silu: Tensor | None, a: Tensor, b: Tensor, t: float
) -> tuple[Tensor, ...]:
    if grad_silu is not None:
        grad = grad + grad_silu * mp_silu_slope(mp_cat_reference(a, b, t))
    parts = grad.split([a.shape[1], b.shape[1]], dim=1)
    return tuple(part * factor for part, factor in zip(parts, _factors(a, b, t), strict=True))


differentiable("mp_cat", mp_cat_reference, _backward, _save)
differentiable("mp_cat_mp_silu", _plain_with_silu, _backward_with_silu, _save)
differentiable("mp_cat_backward", _gradients)
promote_in_autocast("mp_cat", 0, 1)
promote_in_autocast("mp_cat_mp_silu", 0, 1)
