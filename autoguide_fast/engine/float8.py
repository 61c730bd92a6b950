"""Convolutions in FP8 (e4m3): activations as they are, weights with their constant magnitude.

Magnitude preservation is what makes this possible without calibration: maps have about unit
magnitude everywhere (EDM2), e4m3 reaches from 0.002 to 448, and a prepared weight is one of unit
magnitude times a number that is known. Possible is not free: with three bits of mantissa an
evaluation errs tens of times as much as in float16 (tests/tolerances.py bounds both). "auto" never
chooses it.

torch has no FP8 convolution, but products of FP8 matrices (`torch._scaled_mm`, which needs
compute capability 8.9; a CPU has it too, in slow motion). A 3x3 convolution becomes one by
gathering the nine neighbours of each pixel: 18 bytes written and read for each channel that enters,
against 18 FLOP for each pair of channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Output channels from which the gathering should cost less than FP8 gains: at 4.8 TB/s it adds 5 to
# 6 ps a channel, and FP8 saves 18 (1 / 600 - 1 / 1200) TFLOP/s^-1 = 15 fs a pair of channels.
# Reckoned from the data sheet of an H200, not yet measured.
WIDTH = 512

_LARGEST = 448.0


def suits_float8(weight: Tensor, float8_width: int = WIDTH) -> bool:
    """Whether a block's convolution `[out, in, k, k]` is to be computed in FP8.

    Products of FP8 matrices take whole groups of 16 channels.
    """
    outputs, inputs = weight.shape[:2]
    return outputs >= float8_width and outputs % 16 == 0 and inputs % 16 == 0


class Float8Conv(torch.nn.Module):
    """A convolution in FP8 with float32 sums, of maps `[N, C, H, W]` of `dtype`, channels-last."""

    weight: Tensor
    magnitude: Tensor
    one: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_channels, self.kernel, self.dtype = len(weight), weight.shape[-1], dtype
        magnitude = weight.square().mean().sqrt()
        cells = (weight / magnitude).permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", cells.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn))
        self.register_buffer("magnitude", magnitude.float())
        self.register_buffer("one", torch.ones_like(self.magnitude))

    def forward(self, x: Tensor, gain: None = None) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        cells = pixels.clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        if self.kernel > 1:
            # Moved eight channels at a time.
            words = F.pad(cells.view(torch.int64), (0, 0, *[self.kernel // 2] * 4))
            words = words.unfold(1, self.kernel, 1).unfold(2, self.kernel, 1)
            words = words.permute(0, 1, 2, 4, 5, 3).flatten(3).contiguous()
            cells = words.view(torch.float8_e4m3fn)
        product = torch._scaled_mm(
            cells.flatten(0, 2),
            self.weight.t(),
            self.one,
            self.magnitude,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )
        return product.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
