"""Attention's normalise-and-split: queries, keys and values of unit magnitude per head."""

from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op
from .normalize import normalize_gradient, normalize_plain, normalize_reference

_attention_split = op("attention_split")
_attention_split_backward = op("attention_split_backward")

_EPS = 1e-4


def attention_split(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split the output of attention's first convolution and normalise it, in one pass.

    Channel `(head * ch + c) * 3 + part` holds part 0 (query), 1 (key) or 2 (value); each vector of
    `ch` values is normalised as by `normalize` (EDM2 fig. 21, cosine attention).

    Args:
        qkv: image batch `[N, 3 * num_heads * ch, H, W]`, floating point, any strides.
        num_heads: number of attention heads.

    Returns:
        `(q, k, v)`, each `[N, num_heads, H * W, ch]` and contiguous, as
        `torch.nn.functional.scaled_dot_product_attention` wants them.

    Raises:
        RuntimeError: the channels do not divide, or not a floating-point image batch.

    Differentiable.
    """
    return _attention_split(qkv, num_heads, _EPS)


def attention_split_reference(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_split` in plain PyTorch."""
    return _parts(normalize_reference(_vectors(qkv, num_heads), dim=2, eps=_EPS))


def _vectors(qkv: Tensor, num_heads: int) -> Tensor:
    """`[N, heads, ch, 3, pixels]`."""
    n, c3, h, w = qkv.shape
    return qkv.reshape(n, num_heads, c3 // (3 * num_heads), 3, h * w)


def _parts(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (part.transpose(2, 3).contiguous() for part in y.unbind(3))
    return q, k, v


def _plain(qkv: Tensor, num_heads: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _parts(normalize_plain(_vectors(qkv, num_heads), 2, eps))


def _gradient(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, qkv: Tensor, num_heads: int, eps: float
) -> Tensor:
    grad = torch.stack([g.transpose(2, 3) for g in (grad_q, grad_k, grad_v)], dim=3)
    return normalize_gradient(grad, _vectors(qkv, num_heads), 2, eps).reshape(qkv.shape)


@fake("attention_split")
def _(qkv: Tensor, num_heads: int, eps: float) -> tuple[Tensor, ...]:
    n, c3, h, w = qkv.shape
    shape = (n, num_heads, h * w, c3 // (3 * num_heads))
    return tuple(torch.empty(shape, dtype=qkv.dtype, device=qkv.device) for _ in range(3))


@fake("attention_split_backward")
def _(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, qkv: Tensor, num_heads: int, eps: float
) -> Tensor:
    return dense_empty(qkv)


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    qkv, ctx.num_heads, ctx.eps = inputs
    ctx.save_for_backward(qkv)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
    grad = _attention_split_backward(*grads, *ctx.saved_tensors, ctx.num_heads, ctx.eps)
    return grad, None, None


differentiable("attention_split", _plain, _backward, _save)
differentiable("attention_split_backward", _gradient)
