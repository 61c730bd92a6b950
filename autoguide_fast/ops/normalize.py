"""Normalisation to unit magnitude: pixel norm and weight norm."""

import math
from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op

_normalize = op("normalize")
_normalize_backward = op("normalize_backward")


def normalize(x: Tensor, dim: int | None = None, eps: float = 1e-4) -> Tensor:
    """Scale vectors to unit magnitude: `x / (eps + |x| / sqrt(n))` over `n` values.

    EDM2 eq. 30 (pixel norm, `dim=1`) and eq. 66 (weights, `dim=None`).

    Args:
        x: floating-point tensor of two or more dimensions, any strides.
        dim: 1 normalises over the channels of each pixel of `[N, C, ...]`; None over everything
            but dimension 0, one vector for each output of a weight.
        eps: added to the magnitude.

    Returns:
        A tensor of the shape and dtype of `x`; dense as for `mp_silu` with `dim=1`, contiguous
        with `dim=None`.

    Raises:
        RuntimeError: another `dim`, fewer than two dimensions, not floating point.

    Differentiable.
    """
    return _normalize(x, dim, eps)


def normalize_reference(x: Tensor, dim: int | None = None, eps: float = 1e-4) -> Tensor:
    """`normalize` in plain PyTorch."""
    return x / (eps + _magnitude(x, _dims(x, dim)))


def normalize_plain(x: Tensor, dim: int | None, eps: float) -> Tensor:
    """`normalize_reference` with derivatives of every order at zero vectors, too.

    There the norm has none; as usual it counts as 0. PyTorch's own second one is NaN.
    """
    return x / (eps + _plain_magnitude(x, _dims(x, dim))[0])


def normalize_gradient(grad: Tensor, x: Tensor, dim: int | None, eps: float) -> Tensor:
    """The gradient of `normalize_plain` in plain PyTorch."""
    dims = _dims(x, dim)
    magnitude, zero = _plain_magnitude(x, dims)
    factor = 1 / (eps + magnitude)
    dot = (grad * x).mean(dims, keepdim=True) / magnitude.masked_fill(zero, 1)
    return grad * factor - x * (dot.masked_fill(zero, 0) * factor**2)


def _dims(x: Tensor, dim: int | None) -> list[int]:
    return list(range(1, x.ndim)) if dim is None else [dim]


def _magnitude(x: Tensor, dims: list[int]) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return norm / math.prod([x.shape[d] for d in dims]) ** 0.5


def _plain_magnitude(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    zero = _magnitude(x, dims) == 0
    return _magnitude(x.masked_fill(zero, 1), dims).masked_fill(zero, 0), zero


def _empty(x: Tensor, dim: int | None) -> Tensor:
    if dim is None:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dense_empty(x)


@fake("normalize")
def _(x: Tensor, dim: int | None, eps: float) -> Tensor:
    return _empty(x, dim)


@fake("normalize_backward")
def _(grad: Tensor, x: Tensor, dim: int | None, eps: float) -> Tensor:
    return _empty(x, dim)


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    x, ctx.dim, ctx.eps = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _normalize_backward(grad, *ctx.saved_tensors, ctx.dim, ctx.eps), None, None


differentiable("normalize", normalize_plain, _backward, _save)
differentiable("normalize_backward", normalize_gradient)
