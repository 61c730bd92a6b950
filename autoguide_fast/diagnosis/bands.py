"""Spatial frequencies in thirds, for data of any shape that has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BANDS = ("coarse", "middle", "fine")  # thirds of the spatial frequencies, in each direction


def bands_of(shape: Sequence[int]) -> tuple[str, ...]:
    """The bands of samples of this shape, what stands after N: none of vectors `(D,)`."""
    return BANDS if len(shape) > 1 else ()


def frequency_bands(shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What turns samples `[N, *shape]` into coefficients `[N, bands, all]`; lengths stay.

    The orthonormal cosine transform (DCT-II) along every axis behind the first, which is that of
    channels: of images, signals, volumes. A band's coefficients are 0 in the others' rows. Vectors
    have one row, of what they are.
    """
    sizes = tuple(shape)[1:]
    if not sizes:
        return lambda x: x[:, None]
    matrices = []
    band = torch.zeros(sizes, dtype=torch.int64, device="cpu")
    for axis, length in enumerate(sizes):
        frequency = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = torch.pi / length * frequency[:, None] * (frequency + 0.5)
        matrix = angle.cos() * (2 / length) ** 0.5
        matrix[0] *= 0.5**0.5
        matrices.append(matrix)
        third = (frequency * len(BANDS) / length).long()
        band = torch.maximum(band, third.reshape(-1, *[1] * (len(sizes) - axis - 1)))
    masks = torch.stack([band == i for i in range(len(BANDS))])

    def split(x: Tensor) -> Tensor:
        for axis, matrix in enumerate(matrices, start=2):
            x = torch.tensordot(x, matrix.to(x.device), dims=([axis], [1])).movedim(-1, axis)
        return (x[:, None] * masks.to(x.device)[:, None]).flatten(2)

    return split
