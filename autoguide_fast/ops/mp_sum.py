"""Magnitude-preserving sum, with the clip that ends a U-Net block."""

from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op, promote_in_autocast

_mp_sum = op("mp_sum")
_mp_sum_backward = op("mp_sum_backward")


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5, clip: float | None = None) -> Tensor:
    """Weighted sum that keeps unit magnitude, then an optional clip, in one pass.

    `((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)` (EDM2 eq. 88), clamped to `[-clip, clip]`.

    Args:
        a: floating-point tensor of any shape and strides.
        b: tensor of the dtype of `a` whose shape broadcasts with that of `a`.
        t: weight of `b`, from 0 to 1.
        clip: largest magnitude let through, or None. NaN passes, so that it is noticed.

    Returns:
        A tensor of the common shape and of the dtype of `a`, dense as for `mp_silu`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in `a` and `b`.
    """
    if a.shape != b.shape:
        a, b = torch.broadcast_tensors(a, b)
    return _mp_sum(a, b, t, clip)


def mp_sum_reference(a: Tensor, b: Tensor, t: float = 0.5, clip: float | None = None) -> Tensor:
    """`mp_sum` in plain PyTorch."""
    y = a.lerp(b, t) / _magnitude(t)
    return y if clip is None else y.clamp(-clip, clip)


def _magnitude(t: float) -> float:
    return ((1 - t) ** 2 + t**2) ** 0.5


@fake("mp_sum")
def _(a: Tensor, b: Tensor, t: float, clip: float | None) -> Tensor:
    return dense_empty(a)


@fake("mp_sum_backward")
def _(grad: Tensor, a: Tensor, b: Tensor, t: float, clip: float | None) -> tuple[Tensor, Tensor]:
    return dense_empty(a), dense_empty(a)


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    a, b, ctx.t, ctx.clip = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_mp_sum_backward(grad, *ctx.saved_tensors, ctx.t, ctx.clip), None, None


def _gradients(
    grad: Tensor, a: Tensor, b: Tensor, t: float, clip: float | None
) -> tuple[Tensor, Tensor]:
    if clip is not None:
        grad = grad.masked_fill(mp_sum_reference(a, b, t).abs() > clip, 0)
    return grad * ((1 - t) / _magnitude(t)), grad * (t / _magnitude(t))


differentiable("mp_sum", mp_sum_reference, _backward, _save)
differentiable("mp_sum_backward", _gradients)
promote_in_autocast("mp_sum", 0, 1)
