"""The handwritten digits that ship with scikit-learn, split once for training and for judging.

1,797 grey images of 8x8 pixels in ten classes (Alpaydin and Kaynak, "Optical Recognition of
Handwritten Digits", UCI repository, CC BY 4.0). They come with scikit-learn, so nothing is
downloaded.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

NUM_CLASSES = 10
RESOLUTION = 8
HELDOUT_SHARE = 0.2
SPLIT_SEED = 0


def load_digits(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the digits of one split as images and labels.

    The split is stratified: of every class, the same random fifth (`SPLIT_SEED`) is held out. Its
    random stream is NumPy's `RandomState`, which is frozen, so the split is the same everywhere.
    Pixel values 0 to 16 of the source become 0 to 255, rounded to the nearest.

    Args:
        split: 'train' (1,438 images), 'heldout' (359 images) or 'all' (1,797 images).

    Returns:
        images: uint8 `[N, 1, 8, 8]`, 0 is paper and 255 is ink.
        labels: int64 `[N]`, the digit 0 to 9. Both in the order of the source.

    Raises:
        ValueError: `split` is none of the three.
    """
    images, labels = (each.copy() for each in _source())
    return of_split(images, labels, split, "load_digits")


@functools.cache
def _source() -> tuple[np.ndarray, np.ndarray]:
    """All images and labels, which scikit-learn reads from text; not to be written to."""
    from sklearn.datasets import load_digits as load_source

    source = load_source()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)[:, None]
    return images, source.target.astype(np.int64)


def of_split(
    images: np.ndarray, labels: np.ndarray, split: str, function: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels of one split, in their order.

    Args:
        images: `[N, C, H, W]`. labels: int64 `[N]`, from 0 on.
        split: 'train', 'heldout' (a random `HELDOUT_SHARE` of every class) or 'all'.
        function: which a message names.

    Raises:
        ValueError: `split` is none of the three.
    """
    if split not in ("train", "heldout", "all"):
        raise ValueError(
            f"{function}: split must be 'train', 'heldout' or 'all', got {split!r}; pick one"
        )
    if split != "all":
        keep = _heldout_mask(labels) == (split == "heldout")
        images, labels = images[keep], labels[keep]
    return torch.from_numpy(images), torch.from_numpy(labels)


def _heldout_mask(labels: np.ndarray) -> np.ndarray:
    """Mark a random `HELDOUT_SHARE` of every class."""
    random = np.random.RandomState(SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label in range(labels.max() + 1):
        members = random.permutation(np.flatnonzero(labels == label))
        mask[members[: round(HELDOUT_SHARE * len(members))]] = True
    return mask
