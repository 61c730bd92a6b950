"""3x3 convolution in training on a CPU: a quarter of the products, forward and backward."""

import torch
import torch.nn.functional as F

from ._library import backward, fake, op

_conv3x3 = op("conv3x3")
_conv3x3_backward_x = op("conv3x3_backward_x")
_conv3x3_backward_weight = op("conv3x3_backward_weight")

_CHANNELS = 16  # of which the operator takes multiples
# Fewer 4x4 tiles do not make up for the transforms of the weights, four times their size.
_LEAST_TILES = 128


def conv3x3(x, weight):
    """Convolve images with a 3x3 kernel, zeros around them, by Winograd's F(4x4, 3x3).

    `torch.nn.functional.conv2d(x, weight, padding=1)`; forward and the gradients of images and
    weights each take 36 products for every 16 results instead of 144. Float32 loses about twice
    what a plain sum does.

    Args:
        x: `[N, C, H, W]` float32, on the CPU, H and W divisible by 4, C by 16.
        weight: `[K, C, 3, 3]` float32, K divisible by 16.

    Returns:
        `[N, K, H, W]`, channels-last.

    Raises:
        RuntimeError: shapes or dtypes do not fit.
        NotImplementedError: on another device.

    Differentiable (once).
    """
    return _conv3x3(x, weight)


def conv3x3_reference(x, weight):
    """`conv3x3` in plain PyTorch."""
    return F.conv2d(x, weight, padding=1)


def conv3x3_pays(x, weight):
    """Whether `conv3x3` can take these, and is faster there than `torch.nn.functional.conv2d`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.shape[2:] != (3, 3):
        return False
    (n, c, h, w), k = x.shape, weight.shape[0]
    fits = c % _CHANNELS == k % _CHANNELS == h % 4 == w % 4 == 0
    return fits and x.stride(1) == 1 and n * h * w >= 16 * _LEAST_TILES


def _channels_last(shape, like):
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


@fake("conv3x3")
def _(x, weight):
    return _channels_last((x.shape[0], weight.shape[0], *x.shape[2:]), x)


@fake("conv3x3_backward_x")
def _(grad, x, weight):
    return _channels_last(x.shape, x)


@fake("conv3x3_backward_weight")
def _(grad, x, weight):
    return _channels_last(weight.shape, x)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    x, weight = ctx.saved_tensors
    wanted_x, wanted_weight = ctx.needs_input_grad
    return (
        _conv3x3_backward_x(grad, x, weight) if wanted_x else None,
        _conv3x3_backward_weight(grad, x, weight) if wanted_weight else None,
    )


backward("conv3x3", _backward, _save)
