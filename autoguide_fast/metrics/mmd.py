"""Maximum mean discrepancy between two sets of features: KID and CMMD."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .features import as_count, as_features, check_same_width

_CHUNK = 4096  # rows of a block of kernel values: 128 MiB each
_CMMD_WIDTH = 10.0  # sigma of the kernel, in units of embeddings of length 1
_CMMD_SCALE = 1000.0

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class KernelDistance(NamedTuple):
    """Mean and standard deviation over the subsets; the latter is 0 where all rows are one set."""

    mean: float
    std: float


def kernel_distance(
    real: ArrayLike,
    fake: ArrayLike,
    subsets: int | None = 100,
    subset_size: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> KernelDistance:
    """Return the squared maximum mean discrepancy for a cubic kernel; of Inception features, KID.

    The unbiased estimate of `E k(x, x') + E k(y, y') - 2 E k(x, y)` with
    `k(x, y) = (x . y / D + 1)^3` (Binkowski et al. 2018, arXiv 1801.01401),
    as a mean over random subsets, as the paper takes it, or of all rows. Unlike the Frechet
    distance it does not depend on the numbers of samples, only its noise does; it may be slightly
    below 0.

    Args:
        real: features of real images `[N, D]`, array or tensor.
        fake: features of generated images `[M, D]`.
        subsets: how many subsets are drawn, >= 1; None takes all rows at once, block by block.
        subset_size: rows of a subset from each side, >= 2, taken without repeats.
        seed: of the subsets, in 0..2^32-1.
        device: where to compute, in float64; None: the CPU.

    Returns:
        `KernelDistance(mean, std)`: over the subsets, std divided by their number.

    Raises:
        ValueError: wrong shapes, different widths, a side smaller than a subset, NaN or infinity.
    """
    function = "kernel_distance"
    if subsets is None:
        least = 2
    else:
        subsets = as_count(subsets, function, "subsets")
        least = as_count(subset_size, function, "subset_size")
        if least < 2:
            raise ValueError(f"{function}: subset_size must be >= 2, got {least}; 1000 is usual")
    real = as_features(real, function, "real", at_least=least)
    fake = as_features(fake, function, "fake", at_least=least)
    check_same_width(function, real=real, fake=fake)
    width = real.shape[1]

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / width + 1) ** 3

    x, y = (torch.from_numpy(each).to(device or "cpu") for each in (fake, real))
    if subsets is None:
        return KernelDistance(_unbiased(x, y, kernel), 0.0)
    random = np.random.RandomState(seed)  # its stream is frozen across NumPy versions
    values = []
    for _ in range(subsets):
        chosen = [
            torch.from_numpy(random.choice(len(each), least, replace=False)).to(each.device)
            for each in (x, y)
        ]
        values.append(_unbiased(x[chosen[0]], y[chosen[1]], kernel))
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def clip_distance(
    real: ArrayLike, fake: ArrayLike, device: torch.device | str | None = None
) -> float:
    """Return CMMD: 1000 times the squared discrepancy of CLIP's embeddings for a Gaussian kernel.

    `E k(x, x') + E k(y, y') - 2 E k(x, y)` with `k(x, y) = exp(-|x - y|^2 / (2 * 10^2))`, the
    means over all pairs, those of a row with itself included (Jayasumana et al. 2024,
    arXiv 2401.09603), of embeddings scaled to length 1.

    Args:
        real, fake: embeddings `[N, D]` and `[M, D]`, arrays or tensors; scaled to length 1 here.
        device: where to compute, in float64; None: the CPU.

    Raises:
        ValueError: wrong shapes, different widths, no rows, a row of zeros, NaN or infinity.
    """
    function = "clip_distance"
    sides = []
    for name, value in (("real", real), ("fake", fake)):
        rows = as_features(value, function, name)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        if not length.all():
            raise ValueError(
                f"{function}: {name} must have embeddings that are not 0, got "
                f"{np.count_nonzero(length == 0)} that are; look at the images first"
            )
        sides.append(rows / length)
    check_same_width(function, real=sides[0], fake=sides[1])
    y, x = (torch.from_numpy(each).to(device or "cpu") for each in sides)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        squared = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
        return torch.exp(-squared / (2 * _CMMD_WIDTH**2))

    means = [_sum(a, b, kernel) / (len(a) * len(b)) for a, b in ((x, x), (y, y), (x, y))]
    return _CMMD_SCALE * (means[0] + means[1] - 2 * means[2])


def _unbiased(x: torch.Tensor, y: torch.Tensor, kernel: Kernel) -> float:
    """`E k(x, x') + E k(y, y') - 2 E k(x, y)`, a row never paired with itself."""
    own = sum(_sum(s, s, kernel, without_self=True) / (len(s) * (len(s) - 1)) for s in (x, y))
    return own - 2 * _sum(x, y, kernel) / (len(x) * len(y))


def _sum(a: torch.Tensor, b: torch.Tensor, kernel: Kernel, without_self: bool = False) -> float:
    """The sum of a kernel over all pairs, block by block."""
    total = a.new_zeros(())
    for i in range(0, len(a), _CHUNK):
        for j in range(0, len(b), _CHUNK):
            block = kernel(a[i : i + _CHUNK], b[j : j + _CHUNK])
            if without_self and i == j:
                block.fill_diagonal_(0)
            total += block.sum()
    return float(total)
