"""Weights in the order in which the engine's loops read them.

The loops take 16 output channels at a time (a panel) and four bytes of input at a step: one
float32, two bfloat16 or four int8. So a packed weight is `[panel, tap, step, 16, values of a
step]`, each step 64 bytes, where bf16's Winograd, already transformed, has points for taps; float32
Winograd's is `[panel, channel, 9, 16]`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._C import ALIGNMENT, LANES, Storage, Winograd, winograd_weight_matrix
from .algorithms import Algorithm

STEP_BYTES = 4
DTYPES = {Storage.F32: torch.float32, Storage.BF16: torch.bfloat16, Storage.U8: torch.int8}


def padded(channels: int) -> int:
    """`channels` rounded up to whole panels."""
    return math.ceil(channels / LANES) * LANES


def spread(weight: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Place a weight `[K, C, kh, kw]` among zeros.

    Args:
        weight: prepared, float32.
        rows, columns: how many outputs and inputs each run has, in order; each is padded to whole
            panels. They add up to `K` and `C`.

    Returns:
        `[padded K, padded C, kh * kw]`.
    """
    k, c = (sum(padded(count) for count in runs) for runs in (rows, columns))
    out = weight.new_zeros(k, c, weight[0, 0].numel())
    weight = weight.flatten(2)
    row = to_row = 0
    for row_count in rows:
        column = to_column = 0
        for count in columns:
            block = weight[row : row + row_count, column : column + count]
            out[to_row : to_row + row_count, to_column : to_column + count] = block
            column, to_column = column + count, to_column + padded(count)
        row, to_row = row + row_count, to_row + padded(row_count)
    return out


def direct(weight: Tensor, storage: Storage) -> Tensor:
    """Pack `[K, C, taps]` for maps of that storage; float32, bfloat16, or int8 as it is."""
    values = STEP_BYTES // storage.bytes
    k, c, taps = weight.shape
    weight = weight.reshape(k // LANES, LANES, c // values, values, taps)
    return weight.permute(0, 4, 2, 1, 3).to(DTYPES[storage]).contiguous()


def winograd(weight: Tensor) -> Tensor:
    """Pack `[K, C, 9]` for Winograd's convolution, which transforms it as it goes; float32."""
    k, c, taps = weight.shape
    return weight.reshape(k // LANES, LANES, c, taps).permute(0, 2, 3, 1).contiguous()


def winograd_bf16(weight: Tensor, tile: int) -> Tensor:
    """Transform `[K, C, 9]` to the points of F(tile x tile, 3x3), in float64; pack as bfloat16."""
    g = torch.tensor(winograd_weight_matrix(tile), dtype=torch.float64, device=weight.device)
    weight = weight.double().unflatten(2, (3, 3))
    points = torch.einsum("ia,kcab,jb->kcij", g, weight, g).flatten(2)
    return direct(points, Storage.BF16)


def weight_bytes(algorithm: Algorithm, taps: int, inputs: int, outputs: int) -> int:
    """Of the packed weights of a convolution: transformed in bf16, else as they are."""
    points = taps
    if algorithm.winograd != Winograd.DIRECT and algorithm.storage == Storage.BF16:
        points = (int(algorithm.winograd) + 2) ** 2
    return points * inputs * outputs * algorithm.storage.bytes


def quantised(weight: Tensor, zero: int) -> tuple[Tensor, Tensor]:
    """Round `[K, C, taps]` to int8 with one scale for each output.

    Returns:
        The integers as a float32 tensor like `weight`, and float32 `[2, K]`: what a sum of products
        must be multiplied with (apart from the input's scale), and what must be subtracted before,
        because the input's integers stand `zero` too high.
    """
    scale = weight.abs().amax(dim=(1, 2)).clamp_min(1e-12) / 127
    integers = (weight / scale[:, None, None]).round()
    return integers, torch.stack([scale, zero * integers.sum(dim=(1, 2))])


class Packer:
    """Collects packed weights into one block of bytes."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []
        self.bytes = 0

    def add(self, tensor: Tensor) -> int:
        """Append `tensor`; return its offset."""
        offset = self.bytes
        data = tensor.flatten().view(torch.uint8)
        filler = -len(data) % ALIGNMENT
        self.parts += [data, data.new_zeros(filler)]
        self.bytes += len(data) + filler
        return offset

    def block(self) -> Tensor:
        """All of it, uint8 `[bytes]`."""
        return torch.cat(self.parts)
