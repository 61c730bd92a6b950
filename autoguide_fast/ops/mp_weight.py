"""Weight preparation: forced and traditional normalisation, gain, 1/sqrt(fan-in) and cast."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import differentiable, fake, op
from .normalize import normalize_gradient, normalize_plain, normalize_reference

_mp_weight = op("mp_weight")
_mp_weight_forced = op("mp_weight_forced")
_mp_weight_backward = op("mp_weight_backward")

_EPS = 1e-4


def _gain_tensor(gain: float | Tensor, weight: Tensor) -> Tensor | None:
    """Return a number as the operator wants it; None stands for 1, which is most weights'."""
    if isinstance(gain, torch.Tensor):
        return gain.float() if gain.dtype in (torch.bfloat16, torch.float16) else gain
    if gain == 1:
        return None
    return torch.full((), float(gain), dtype=torch.float64, device=weight.device)


def mp_weight(
    weight: Tensor, gain: float | Tensor = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Prepare a weight for its convolution or product, in one pass.

    `normalize(weight) * gain / sqrt(fan_in)` (EDM2 eq. 47 and 66), cast to `dtype`.

    Args:
        weight: `[out, in, ...]`, floating point, any strides.
        gain: a number, or a float32 or float64 tensor of one element (EDM2's learned gains).
        dtype: dtype of the result; None keeps that of `weight`.

    Returns:
        A contiguous tensor of the shape of `weight`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in `weight` and `gain`.
    """
    return _mp_weight(weight, _gain_tensor(gain, weight), _EPS, dtype)


def mp_weight_reference(
    weight: Tensor, gain: float | Tensor = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """`mp_weight` in plain PyTorch."""
    w = normalize_reference(weight, eps=_EPS) * (gain / weight[0].numel() ** 0.5)
    return w if dtype is None else w.to(dtype)


def mp_weight_forced(
    weight: Tensor, gain: float | Tensor = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """Replace a weight by its normalised self, then prepare it as `mp_weight` does, in one pass.

    The forced normalisation of training (EDM2 eq. 66 and the text after it): without it the
    magnitude of a weight, which has no effect on the output, would grow and slow its learning.

    Args:
        weight: as for `mp_weight`; overwritten by `normalize(weight)`, outside autograd.
        gain, dtype: as for `mp_weight`.

    Returns:
        `mp_weight` of the new weight; its gradient is taken at the new weight.

    Raises and differentiability: as for `mp_weight`.
    """
    return _mp_weight_forced(weight, _gain_tensor(gain, weight), _EPS, dtype)


def mp_weight_forced_reference(
    weight: Tensor, gain: float | Tensor = 1.0, dtype: torch.dtype | None = None
) -> Tensor:
    """`mp_weight_forced` in plain PyTorch."""
    with torch.no_grad():
        weight.copy_(normalize_reference(weight, eps=_EPS))
    return mp_weight_reference(weight, gain, dtype)


@fake("mp_weight")
def _(weight: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


@fake("mp_weight_forced")
def _(weight: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(weight.shape, dtype=dtype or weight.dtype, device=weight.device)


@fake("mp_weight_backward")
def _(grad: Tensor, weight: Tensor, gain: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    shape, dtype = ((), torch.float64) if gain is None else (gain.shape, gain.dtype)
    return (
        torch.empty(weight.shape, dtype=weight.dtype, device=weight.device),
        torch.empty(shape, dtype=dtype, device=weight.device),
    )


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    weight, gain, ctx.eps, _ = inputs
    ctx.save_for_backward(weight, gain)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, gain = ctx.saved_tensors
    grad_weight, grad_gain = _mp_weight_backward(grad, weight, gain, ctx.eps)
    return grad_weight, None if gain is None else grad_gain, None, None


def _prepared(weight: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype | None) -> Tensor:
    y = normalize_plain(weight, None, eps) / _root_fan_in(weight)
    return y if gain is None else y * gain.reshape([])


def _gradients(
    grad: Tensor, weight: Tensor, gain: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    grad = grad.to(weight.dtype) / _root_fan_in(weight)
    grad_gain = (grad * normalize_plain(weight, None, eps)).sum()
    if gain is None:
        return normalize_gradient(grad, weight, None, eps), grad_gain
    grad_weight = normalize_gradient(grad * gain.reshape([]), weight, None, eps)
    return grad_weight, grad_gain.reshape(gain.shape)


def _root_fan_in(weight: Tensor) -> float:
    return math.prod(weight.shape[1:]) ** 0.5


def _prepared_dtypes(
    weight: Tensor, gain: Tensor | None, eps: float, dtype: torch.dtype | None
) -> Sequence[torch.dtype]:
    return [dtype or weight.dtype]


def _gradients_dtypes(
    grad: Tensor, weight: Tensor, gain: Tensor | None, eps: float
) -> Sequence[torch.dtype]:
    return weight.dtype, torch.float64 if gain is None else gain.dtype


differentiable("mp_weight", _prepared, _backward, _save, dtypes=_prepared_dtypes)
# Its gradient is that of `mp_weight` of the weight as it left it.
differentiable("mp_weight_forced", _prepared, _backward, _save, dtypes=_prepared_dtypes)
differentiable("mp_weight_backward", _gradients, dtypes=_gradients_dtypes)
