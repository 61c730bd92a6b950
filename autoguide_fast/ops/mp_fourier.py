"""Magnitude-preserving Fourier features."""

from typing import Any

import torch
from torch import Tensor

from ._library import differentiable, fake, op

_mp_fourier = op("mp_fourier")


def mp_fourier(x: Tensor, freqs: Tensor, phases: Tensor) -> Tensor:
    """Fourier features of unit magnitude: `sqrt(2) cos(x f + phi)` (EDM2 eq. 75).

    Args:
        x: `[N]`, floating point, any strides.
        freqs: `[F]`, radians per unit of `x`.
        phases: `[F]`, radians.

    Returns:
        `[N, F]` in the dtype of `x`, computed in float32 (float64 for float64 `x`).

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in all three arguments.
    """
    return _mp_fourier(x, freqs, phases)


def mp_fourier_reference(x: Tensor, freqs: Tensor, phases: Tensor) -> Tensor:
    """`mp_fourier` in plain PyTorch."""
    return (_angle(x, freqs, phases).cos() * 2**0.5).to(x.dtype)


def _angle(x: Tensor, freqs: Tensor, phases: Tensor) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.outer(x.to(dtype), freqs.to(dtype)) + phases.to(dtype)


@fake("mp_fourier")
def _(x: Tensor, freqs: Tensor, phases: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], freqs.shape[0])


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # A few hundred values: plain PyTorch.
    x, freqs, phases = ctx.saved_tensors
    angle = _angle(x, freqs, phases)
    slope = grad.to(angle.dtype) * angle.sin() * -(2**0.5)
    return (
        (slope * freqs.to(angle.dtype)).sum(1).to(x.dtype),
        (slope * x.to(angle.dtype)[:, None]).sum(0).to(freqs.dtype),
        slope.sum(0).to(phases.dtype),
    )


differentiable("mp_fourier", mp_fourier_reference, _backward, _save)
