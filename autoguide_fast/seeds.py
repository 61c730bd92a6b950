"""Per-image random streams: noise, labels and churn that depend on an image's seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import image_arguments


class StackedRandom:
    """One random generator per image, drawn from side by side.

    Image `i` has its own generator, seeded `seeds[i] mod 2^32`. In the order of the reference
    implementation a stream yields the initial noise `randn([C, H, W])`, then the class
    `randint(label_dim)` (not for networks without labels), then the churn noise of each step. So
    what an image is made from never depends on the batch that it is part of.

    The generators live on the CPU whatever the device, and the numbers are copied to it: CUDA's
    generators would give other numbers for the same seed.

    Args:
        device: where the drawn tensors go.
        seeds: one seed >= 0 per image; equal seeds give equal streams.

    Raises TypeError or ValueError for seeds that are no whole numbers >= 0.
    """

    def __init__(self, device: torch.device | str, seeds: Sequence[int] | Tensor) -> None:
        self.device = torch.device(device)
        numbers = image_arguments.image_seeds(seeds, "StackedRandom")
        self.generators = [torch.Generator("cpu").manual_seed(s % (1 << 32)) for s in numbers]

    def randn(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers `[N, *shape]`, each image's from its own stream."""
        return self._stack(
            [
                torch.randn(list(shape), generator=g, dtype=dtype, device="cpu")
                for g in self.generators
            ],
            shape,
            dtype,
        )

    def randint(self, high: int) -> Tensor:
        """Integers in `[0, high)`, int64 `[N]`, each image's from its own stream."""
        draws = [torch.randint(high, [], generator=g, device="cpu") for g in self.generators]
        return self._stack(draws, [], torch.int64)

    def _stack(self, draws: list[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        if not draws:
            return torch.empty([0, *shape], dtype=dtype, device=self.device)
        return torch.stack(draws).to(self.device)
