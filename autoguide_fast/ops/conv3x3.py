"""3x3 convolution in training on a CPU: a fraction of the products, forward and backward."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from .. import cpu
from ._library import differentiable, fake, op, promote_in_autocast
from .conv3x3_choice import ours_is_faster

_conv3x3 = op("conv3x3")
_conv3x3_backward_x = op("conv3x3_backward_x")
_conv3x3_backward_weight = op("conv3x3_backward_weight")

_CHANNELS = 16  # of which the operator takes multiples


def conv3x3(x: Tensor, weight: Tensor, widen: bool | None = None) -> Tensor:
    """Convolve images with a 3x3 kernel, zeros around them, by Winograd's minimal products.

    `torch.nn.functional.conv2d(x, weight, padding=1)`; forward and the gradients of images and
    weights each take 36 products for every 16 results instead of 144 in float32, by F(4x4, 3x3),
    which loses about twice what a plain sum does; in bfloat16 16 for every 4 results instead of
    36, by F(2x2, 3x3), which rounds once more than a plain sum.

    Args:
        x: `[N, C, H, W]` float32 or bfloat16, on the CPU; C divisible by 16, H and W by 4 or, in
            products of bfloat16, by 2.
        weight: `[K, C, 3, 3]` of the same dtype, K divisible by 16.
        widen: whether bfloat16 is multiplied as float32 is, by F(4x4, 3x3), and rounded once; None
            for where the processor does not multiply it.

    Returns:
        `[N, K, H, W]`, channels-last.

    Raises:
        RuntimeError: shapes or dtypes do not fit.
        NotImplementedError: on another device.

    Differentiable.
    """
    return _conv3x3(x, weight, _widens() if widen is None else widen)


def conv3x3_reference(x: Tensor, weight: Tensor, widen: bool | None = None) -> Tensor:
    """`conv3x3` in plain PyTorch."""
    return F.conv2d(x, weight, padding=1)


def conv3x3_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` can take these, and is faster there than `torch.nn.functional.conv2d`."""
    if x.device.type != "cpu" or weight.shape[2:] != (3, 3):
        return False
    if x.dtype not in (torch.float32, torch.bfloat16):
        return False
    # Fewer pixels do not make up for the transforms of the weights, which are several times their
    # size; in float32 beside oneDNN's convolutions for AVX-512 later than beside those for AVX2.
    tile, least_pixels = 4, 512 if cpu.isa() == "avx2" else 2048
    if x.dtype == torch.bfloat16 and not _widens():
        tile, least_pixels = 2, 512
    (n, c, h, w), k = x.shape, weight.shape[0]
    fits = c % _CHANNELS == k % _CHANNELS == h % tile == w % tile == 0
    if not (fits and x.stride(1) == 1 and n * h * w >= least_pixels):
        return False
    if x.dtype == torch.bfloat16 and cpu.has_tiles() and not _widens():
        return ours_is_faster(x.shape, k, conv3x3)
    return True


def _widens() -> bool:
    """Whether bfloat16 is multiplied as float32 is, because the processor does not multiply it."""
    return torch.bfloat16 not in cpu.native_types()


def _channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@fake("conv3x3")
def _(x: Tensor, weight: Tensor, widen: bool) -> Tensor:
    return _channels_last((x.shape[0], weight.shape[0], *x.shape[2:]), x)


@fake("conv3x3_backward_x")
def _(grad: Tensor, x: Tensor, weight: Tensor, widen: bool) -> Tensor:
    return _channels_last(x.shape, x)


@fake("conv3x3_backward_weight")
def _(grad: Tensor, x: Tensor, weight: Tensor, widen: bool) -> Tensor:
    return _channels_last(weight.shape, x)


def _save(ctx: Any, inputs: tuple, output: object) -> None:
    *tensors, ctx.widen = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    wanted_x, wanted_weight, *_ = ctx.needs_input_grad
    return (
        _conv3x3_backward_x(grad, x, weight, ctx.widen) if wanted_x else None,
        _conv3x3_backward_weight(grad, x, weight, ctx.widen) if wanted_weight else None,
        None,
    )


def _gradient_x(grad: Tensor, x: Tensor, weight: Tensor, widen: bool) -> Tensor:
    return conv2d_input(x.shape, weight, grad, padding=1)


def _gradient_weight(grad: Tensor, x: Tensor, weight: Tensor, widen: bool) -> Tensor:
    return conv2d_weight(x, weight.shape, grad, padding=1)


differentiable("conv3x3", conv3x3_reference, _backward, _save)
differentiable("conv3x3_backward_x", _gradient_x)
differentiable("conv3x3_backward_weight", _gradient_weight)
promote_in_autocast("conv3x3", 0, 1)
