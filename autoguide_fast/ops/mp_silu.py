"""Magnitude-preserving SiLU, alone and after the embedding modulation."""

from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op, promote_in_autocast

_mp_silu = op("mp_silu")
_mp_silu_backward = op("mp_silu_backward")
_modulate_mp_silu = op("modulate_mp_silu")
_modulate_mp_silu_backward = op("modulate_mp_silu_backward")

# Root mean square of silu(x) for x ~ N(0, 1), as rounded by EDM2 eq. 81.
MP_SILU_GAIN = 0.596


def mp_silu(x: Tensor) -> Tensor:
    """SiLU scaled to keep unit magnitude: `silu(x) / 0.596` (EDM2 eq. 81).

    Args:
        x: floating-point tensor of any shape and strides.

    Returns:
        A tensor of the shape and dtype of `x`, dense: channels-last where the channels of `x` lie
        next to each other, else contiguous.

    Raises:
        RuntimeError: `x` is not float32, float64, bfloat16 or float16.

    Differentiable.
    """
    return _mp_silu(x)


def mp_silu_reference(x: Tensor) -> Tensor:
    """`mp_silu` in plain PyTorch."""
    return torch.nn.functional.silu(x) / MP_SILU_GAIN


def mp_silu_plain(x: Tensor) -> Tensor:
    """`mp_silu` of what has derivatives of every order: forward mode cannot pass silu's first."""
    return x * x.sigmoid() / MP_SILU_GAIN


def mp_silu_slope(x: Tensor) -> Tensor:
    """The derivative of `mp_silu_plain`."""
    s = x.sigmoid()
    return s * (1 + x * (1 - s)) / MP_SILU_GAIN


def modulate_mp_silu(x: Tensor, scale: Tensor) -> Tensor:
    """Scale each channel by the embedding, then MP-SiLU, in one pass (EDM2 fig. 21).

    `mp_silu(x * scale[:, :, None, None])`

    Args:
        x: image batch `[N, C, H, W]`.
        scale: `[N, C]` or `[1, C]`, of the dtype of `x`.

    Returns:
        A tensor of the shape and dtype of `x`, dense as for `mp_silu`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in both arguments.
    """
    if scale.shape[0] != x.shape[0]:
        scale = scale.expand(x.shape[0], -1)
    return _modulate_mp_silu(x, scale)


def modulate_mp_silu_reference(x: Tensor, scale: Tensor) -> Tensor:
    """`modulate_mp_silu` in plain PyTorch."""
    return mp_silu_reference(x * scale[:, :, None, None])


@fake("mp_silu")
def _(x: Tensor) -> Tensor:
    return dense_empty(x)


@fake("mp_silu_backward")
def _(grad: Tensor, x: Tensor) -> Tensor:
    return dense_empty(x)


@fake("modulate_mp_silu")
def _(x: Tensor, scale: Tensor) -> Tensor:
    return dense_empty(x)


@fake("modulate_mp_silu_backward")
def _(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return dense_empty(x), torch.empty(scale.shape, dtype=scale.dtype, device=scale.device)


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    ctx.save_for_backward(*inputs)


def _modulate_plain(x: Tensor, scale: Tensor) -> Tensor:
    return mp_silu_plain(x * scale[:, :, None, None])


def _modulate_gradients(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    factor = scale[:, :, None, None]
    grad = grad * mp_silu_slope(x * factor)
    return grad * factor, (grad * x).sum([2, 3])


differentiable(
    "mp_silu",
    mp_silu_plain,
    lambda ctx, grad: _mp_silu_backward(grad, *ctx.saved_tensors),
    _save,
)
differentiable("mp_silu_backward", lambda grad, x: grad * mp_silu_slope(x))
differentiable(
    "modulate_mp_silu",
    _modulate_plain,
    lambda ctx, grad: _modulate_mp_silu_backward(grad, *ctx.saved_tensors),
    _save,
)
differentiable("modulate_mp_silu_backward", _modulate_gradients)
promote_in_autocast("modulate_mp_silu", 0, 1)
