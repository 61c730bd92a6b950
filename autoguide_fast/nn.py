"""Magnitude-preserving layers: what the U-Net is built of (EDM2)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import ops, torch_functional


class MPConv(torch.nn.Module):
    """Convolution or linear layer that keeps the magnitude of what passes through.

    `y = x * w`, `w = gain * normalize(weight) / sqrt(fan_in)`: each output channel's weight
    vector has unit variance however the optimiser scales it (EDM2 eq. 47 and 66). In training mode
    the stored weight itself is replaced by its normalised value at every forward pass ("forced
    weight normalization", EDM2 section 2.3), so that gradient steps never grow it.

    Args:
        in_channels, out_channels: channels of `x` and of the result.
        kernel: `[]` for a linear layer on `[N, C]`, `[k, k]` for a convolution on `[N, C, H, W]`
            with zero padding `k // 2`. There is no bias: the U-Net appends a channel of ones
            instead.

    The weight is kept in the parameter's own type and cast to the type of `x` after the
    normalisation, so a float16 network keeps float32 weights. Differentiable as `ops` are, also in
    training mode, where the derivative is taken at the new weight; graph-capturable in evaluation
    mode.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = torch.nn.Parameter(_drawn(torch.randn, out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """Apply the layer to `x`; `gain` is a number or a 0-dim tensor."""
        prepare = ops.mp_weight_forced if self.training else ops.mp_weight
        weight: Tensor = self.weight
        # A channels-last weight keeps its layout: its rows are whole, in another order.
        channels_last = weight.ndim == 4 and not weight.is_contiguous()
        if channels_last:
            weight = weight.permute(0, 2, 3, 1)
        weight = prepare(weight, gain=gain, dtype=x.dtype)
        if channels_last:
            weight = weight.permute(0, 3, 1, 2)
        if weight.ndim == 2:
            return torch_functional.linear(x, weight)
        if weight.shape[-1] == 1 and x.stride(1) == 1:
            # On channels-last images a product of matrices, which libraries run faster.
            return torch_functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(
                0, 3, 1, 2
            )
        if self.training and ops.conv3x3_pays(x, weight):
            return ops.conv3x3(x, weight)
        return torch_functional.conv2d(x, weight)

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}"


class MPFourier(torch.nn.Module):
    """Random Fourier features of a number, each of unit variance.

    `y_i = sqrt(2) cos(x f_i + p_i)`, `f_i = 2 pi bandwidth N(0, 1)`, `p_i = 2 pi U(0, 1)`
    (EDM2 eq. 75). Frequencies and phases are drawn once and stored as buffers.

    `forward` takes `x [N]` and returns `[N, num_channels]` in the type of `x`, computed in
    float32. Differentiable, graph-capturable.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        normal, uniform = _drawn(torch.randn, num_channels), _drawn(torch.rand, num_channels)
        self.register_buffer("freqs", 2 * math.pi * normal * bandwidth)
        self.register_buffer("phases", 2 * math.pi * uniform)

    def forward(self, x: Tensor) -> Tensor:
        return ops.mp_fourier(x, self.freqs, self.phases)


def _drawn(draw: Callable[..., Tensor], *shape: int) -> Tensor:
    """Random float32 numbers; on the device meta, which holds none, just their place.

    There `torch.randn` takes a way through Python that costs as much as the rest of a net.
    """
    if torch.get_default_device().type == "meta":
        draw = torch.empty
    return draw(*shape, dtype=torch.float32)
