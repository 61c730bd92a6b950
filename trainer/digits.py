"""The digits as training data: one-hot labels, in an order set by seed and position alone."""

from __future__ import annotations

import numpy as np
import torch

from autoguide_fast.digits import NUM_CLASSES, load_digits


class DigitsData:
    """Training images with their labels, served in a reproducible order.

    Args:
        split: 'train', 'heldout' or 'all', as `autoguide_fast.digits.load_digits`.
        labelled: False leaves the labels out, for an unconditional net.

    images: uint8 [N, 1, 8, 8]; labels: float32 one-hot [N, label_dim], where label_dim is 10, or 0
    without labels.
    """

    def __init__(self, split: str = "train", labelled: bool = True) -> None:
        self.images, classes = load_digits(split)
        self.label_dim = NUM_CLASSES if labelled else 0
        self.labels = torch.zeros([len(classes), 0])
        if labelled:
            self.labels = torch.nn.functional.one_hot(classes, NUM_CLASSES).to(torch.float32)

    def __len__(self) -> int:
        return len(self.images)

    def batch(
        self, position: int, batch_size: int, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and labels (None if unlabelled) of the batch that starts at `position`."""
        chosen = batch_indices(len(self), position, batch_size, seed)
        return self.images[chosen], self.labels[chosen] if self.label_dim else None


def batch_indices(num_images: int, position: int, batch_size: int, seed: int) -> torch.Tensor:
    """Which images make up the batch that starts at `position`, int64 [batch_size].

    The order is a function of seed and position alone: an endless row of passes over the data,
    each in its own permutation. Nothing needs storing to resume, and any split of a batch over
    processes sees the same images.

    Args:
        num_images: size of the data set, >= 1.
        position: images seen so far, >= 0.
        batch_size: >= 1.
        seed: >= 0.

    Raises:
        ValueError: an argument lies outside its range.
    """
    for name, value, least in (
        ("num_images", num_images, 1),
        ("position", position, 0),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"batch_indices: {name} must be >= {least}, got {value}; raise it")
    parts = []
    while batch_size > 0:
        epoch, offset = divmod(position, num_images)
        # RandomState: its stream is frozen across NumPy versions.
        order = np.random.RandomState([seed % 2**32, epoch]).permutation(num_images)
        parts.append(order[offset : offset + batch_size])
        position += len(parts[-1])
        batch_size -= len(parts[-1])
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
