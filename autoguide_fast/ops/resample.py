"""Resampling by two with the filter [1, 1], alone and fused with pixel norm and MP-SiLU."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op
from .mp_silu import mp_silu_plain, mp_silu_reference, mp_silu_slope
from .normalize import normalize_gradient, normalize_plain, normalize_reference

_resample = op("resample")
_resample_normalize_mp_silu = op("resample_normalize_mp_silu")
_normalize_mp_silu_backward = op("normalize_mp_silu_backward")

_MODES = {"down": -1, "keep": 0, "up": 1}
# The adjoint of the 2x2 mean repeats a quarter; that of the repetition is four times the mean.
_ADJOINT_GAIN = {-1: 0.25, 0: 1.0, 1: 4.0}


def _mode(function: str, mode: str) -> int:
    if mode not in _MODES:
        raise ValueError(f"{function}: mode must be one of {', '.join(_MODES)}, got {mode!r}")
    return _MODES[mode]


def resample(x: Tensor, mode: str) -> Tensor:
    """Halve or double an image with the filter [1, 1] (EDM2's U-Net).

    `down` is the mean of each 2x2 pixels, `up` repeats each pixel 2x2, `keep` returns `x`.

    Args:
        x: image batch `[N, C, H, W]`, floating point, any strides.
        mode: `"down"`, `"keep"` or `"up"`.

    Returns:
        The resampled batch, dense as for `mp_silu`.

    Raises:
        ValueError: unknown mode.
        RuntimeError: not an image batch, or an odd height or width to be halved.

    Differentiable.
    """
    mode = _mode("resample", mode)
    return x if mode == 0 else _resample(x, mode, 1.0)


def resample_reference(x: Tensor, mode: str) -> Tensor:
    """`resample` in plain PyTorch."""
    if mode == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if mode == "down" else x


def resample_normalize_mp_silu(
    x: Tensor, mode: str = "keep", eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """Resample, pixel norm and MP-SiLU, as an encoder block begins, in one pass.

    Args:
        x, mode: as for `resample`.
        eps: as for `normalize`.

    Returns:
        `(n, mp_silu(n))` with `n = normalize(resample(x, mode), dim=1)`, dense as for `mp_silu`.

    Raises: as for `resample`. Differentiable.
    """
    return _resample_normalize_mp_silu(x, _mode("resample_normalize_mp_silu", mode), eps)


def resample_normalize_mp_silu_reference(
    x: Tensor, mode: str = "keep", eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """`resample_normalize_mp_silu` in plain PyTorch."""
    y = normalize_reference(resample_reference(x, mode), dim=1, eps=eps)
    return y, mp_silu_reference(y)


def _empty(x: Tensor, mode: int) -> Tensor:
    n, c, h, w = x.shape
    if mode == 1:
        h, w = 2 * h, 2 * w
    elif mode == -1:
        h, w = h // 2, w // 2
    return dense_empty(x, (n, c, h, w))


@fake("resample")
def _(x: Tensor, mode: int, gain: float) -> Tensor:
    return _empty(x, mode)


@fake("resample_normalize_mp_silu")
def _(x: Tensor, mode: int, eps: float) -> tuple[Tensor, Tensor]:
    return _empty(x, mode), _empty(x, mode)


@fake("normalize_mp_silu_backward")
def _(grad_y: Tensor, grad_silu: Tensor, x: Tensor, eps: float) -> Tensor:
    return dense_empty(x)


def _save_resample(ctx: Any, inputs: tuple, output: object) -> None:
    _, ctx.mode, ctx.gain = inputs


def _resample_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _resample(grad, -ctx.mode, ctx.gain * _ADJOINT_GAIN[ctx.mode]), None, None


def _save_fused(ctx: Any, inputs: tuple, output: object) -> None:
    x, ctx.mode, ctx.eps = inputs
    ctx.save_for_backward(x)


def _fused_backward(ctx: Any, grad_y: Tensor, grad_silu: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    # Resampled once more: cheaper than to have kept it.
    resampled = x if ctx.mode == 0 else _resample(x, ctx.mode, 1.0)
    grad = _normalize_mp_silu_backward(grad_y, grad_silu, resampled, ctx.eps)
    if ctx.mode != 0:
        grad = _resample(grad, -ctx.mode, _ADJOINT_GAIN[ctx.mode])
    return grad, None, None


def _resampled(x: Tensor, mode: int) -> Tensor:
    if mode == -1 and (x.shape[2] % 2 or x.shape[3] % 2):
        raise RuntimeError(
            f"resample: x must have an even height and width to be halved, got {list(x.shape)}; "
            "pad it"
        )
    return resample_reference(x, {number: name for name, number in _MODES.items()}[mode])


def _fused(x: Tensor, mode: int, eps: float) -> tuple[Tensor, Tensor]:
    y = normalize_plain(_resampled(x, mode), 1, eps)
    return y, mp_silu_plain(y)


def _gradient(grad_y: Tensor, grad_silu: Tensor, x: Tensor, eps: float) -> Tensor:
    grad = grad_y + grad_silu * mp_silu_slope(normalize_plain(x, 1, eps))
    return normalize_gradient(grad, x, 1, eps)


differentiable(
    "resample", lambda x, mode, gain: _resampled(x, mode) * gain, _resample_backward, _save_resample
)
differentiable("resample_normalize_mp_silu", _fused, _fused_backward, _save_fused)
differentiable("normalize_mp_silu_backward", _gradient)
