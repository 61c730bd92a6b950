"""The guided Heun step: preconditioning of both nets, guidance and a half step in one pass."""

from typing import Any

import torch
from torch import Tensor

from ..preconditioning import c_skip_and_c_out
from ._library import dense_empty, differentiable, fake, op, promote_in_autocast

_guided_heun_first = op("guided_heun_first")
_guided_heun_second = op("guided_heun_second")


def guided_heun_first(
    x: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None = None,
) -> tuple[Tensor, Tensor]:
    """First half of a guided Heun step: an Euler step along the guided slope (EDM alg. 1).

    `D = D0 + w (D1 - D0)` (autoguidance), `slope = (x - D) / sigma`,
    `x_next = x + (sigma_next - sigma) slope`, where
    `D_i = c_skip(sigma) x + c_out(sigma) raw_i` (EDM table 1) if `sigma_data` is given.

    Args:
        x: the sampler's state at `sigma`, any shape, float32 or float64.
        raw: output of the main net, of the shape of `x`: the network's own output if
            `sigma_data` is given, the denoised image if not.
        guide_raw: the same of the guide, of the dtype of `raw`; None for no guidance.
        sigma: noise level of `x`, 0-dim float64 tensor on its device.
        sigma_next: noise level to step to, likewise.
        guidance: the weight w, likewise; ignored without a guide.
        sigma_data: standard deviation of the data in the nets' preconditioning, or None.

    Returns:
        `(x_next, slope)`, of the shape and dtype of `x`, dense as for `mp_silu`.

    Raises:
        RuntimeError: shapes or dtypes do not fit.

    Differentiable in all tensors.
    """
    return _guided_heun_first(x, raw, guide_raw, sigma, sigma_next, guidance, sigma_data)


def guided_heun_second(
    x: Tensor,
    x_next: Tensor,
    slope: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None = None,
) -> Tensor:
    """Second half of a guided Heun step: the trapezoidal correction (EDM alg. 1).

    `x + (sigma_next - sigma) (slope + slope') / 2`, where `slope' = (x_next - D') / sigma_next`
    and `D'` is the guided denoiser at `x_next` and `sigma_next`, as in `guided_heun_first`.

    Args:
        x: the state at `sigma`, before the step.
        x_next, slope: what `guided_heun_first` returned.
        raw, guide_raw: outputs of the nets at `x_next` and `sigma_next`.
        sigma, sigma_next, guidance, sigma_data: as for `guided_heun_first`.

    Returns:
        The state at `sigma_next`.

    Raises: as for `guided_heun_first`.

    Differentiable in all tensors.
    """
    return _guided_heun_second(
        x, x_next, slope, raw, guide_raw, sigma, sigma_next, guidance, sigma_data
    )


def _coefficients(
    sigma: Tensor, sigma_data: float | None, dtype: torch.dtype
) -> tuple[Tensor | float, Tensor | float]:
    """Return c_skip and c_out of EDM table 1, or 0 and 1 for nets that return D itself."""
    if sigma_data is None:
        return 0.0, 1.0
    c_skip, c_out = c_skip_and_c_out(sigma, sigma_data)
    return c_skip.to(dtype), c_out.to(dtype)


def _slope(
    x: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    guidance: Tensor,
    sigma_data: float | None,
) -> Tensor:
    c_skip, c_out = _coefficients(sigma, sigma_data, x.dtype)
    denoised = c_skip * x + c_out * raw.to(x.dtype)
    if guide_raw is not None:
        guide_denoised = c_skip * x + c_out * guide_raw.to(x.dtype)
        denoised = guide_denoised + guidance.to(x.dtype) * (denoised - guide_denoised)
    return (x - denoised) / sigma.to(x.dtype)


def guided_heun_first_reference(
    x: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`guided_heun_first` in plain PyTorch."""
    slope = _slope(x, raw, guide_raw, sigma, guidance, sigma_data)
    return x + (sigma_next - sigma).to(x.dtype) * slope, slope


def guided_heun_second_reference(
    x: Tensor,
    x_next: Tensor,
    slope: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None = None,
) -> Tensor:
    """`guided_heun_second` in plain PyTorch."""
    slope_next = _slope(x_next, raw, guide_raw, sigma_next, guidance, sigma_data)
    return x + (sigma_next - sigma).to(x.dtype) * 0.5 * (slope + slope_next)


@fake("guided_heun_first")
def _(
    x: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None,
) -> tuple[Tensor, Tensor]:
    return dense_empty(x), dense_empty(x)


@fake("guided_heun_second")
def _(
    x: Tensor,
    x_next: Tensor,
    slope: Tensor,
    raw: Tensor,
    guide_raw: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
    guidance: Tensor,
    sigma_data: float | None,
) -> Tensor:
    return dense_empty(x)


def _slope_backward(
    ctx: Any, grad_slope: Tensor, sigma: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, raw and guide_raw; the slope is linear in them."""
    c_skip, c_out = _coefficients(sigma, ctx.sigma_data, grad_slope.dtype)
    scaled = grad_slope / sigma.to(grad_slope.dtype)
    grad_x = scaled * (1 - c_skip)
    if not ctx.guided:
        return grad_x, (scaled * -c_out).to(ctx.raw_dtype), None
    w = guidance.to(grad_slope.dtype)
    grad_raw = (scaled * (-c_out * w)).to(ctx.raw_dtype)
    return grad_x, grad_raw, (scaled * (-c_out * (1 - w))).to(ctx.raw_dtype)


def _save_first(ctx: Any, inputs: tuple, output: object) -> None:
    _, raw, guide_raw, sigma, sigma_next, guidance, ctx.sigma_data = inputs
    ctx.guided, ctx.raw_dtype = guide_raw is not None, raw.dtype
    ctx.save_for_backward(sigma, sigma_next, guidance)


def _first_backward(ctx: Any, grad_next: Tensor, grad_slope: Tensor) -> tuple[Tensor | None, ...]:
    sigma, sigma_next, guidance = ctx.saved_tensors
    grad_slope = grad_slope + (sigma_next - sigma).to(grad_next.dtype) * grad_next
    grad_x, grad_raw, grad_guide = _slope_backward(ctx, grad_slope, sigma, guidance)
    return grad_next + grad_x, grad_raw, grad_guide, None, None, None, None


def _save_second(ctx: Any, inputs: tuple, output: object) -> None:
    _, _, _, raw, guide_raw, sigma, sigma_next, guidance, ctx.sigma_data = inputs
    ctx.guided, ctx.raw_dtype = guide_raw is not None, raw.dtype
    ctx.save_for_backward(sigma, sigma_next, guidance)


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    sigma, sigma_next, guidance = ctx.saved_tensors
    grad_slope = (sigma_next - sigma).to(grad.dtype) * 0.5 * grad
    grad_x, grad_raw, grad_guide = _slope_backward(ctx, grad_slope, sigma_next, guidance)
    return grad, grad_x, grad_slope, grad_raw, grad_guide, None, None, None, None


differentiable(
    "guided_heun_first",
    guided_heun_first_reference,
    _first_backward,
    _save_first,
    constants=(3, 4, 5),
)
differentiable(
    "guided_heun_second",
    guided_heun_second_reference,
    _second_backward,
    _save_second,
    constants=(5, 6, 7),
)
promote_in_autocast("guided_heun_first", 1, 2)
promote_in_autocast("guided_heun_second", 3, 4)
