"""Crops of the two photographs that scikit-learn ships: a pagoda (0) and a dahlia (1).

`sklearn.datasets.load_sample_images` has china.jpg by danielbuechele and flower.jpg by vultilion,
both CC BY 2.0, 640x427 pixels. They are halved, so that 32x32 pixels show a piece of roof or a few
petals, and a dataset is every window of 32x32 pixels that shows more than a blurred background or
a clear sky.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .digest import digest

CLASSES = ("pagoda", "dahlia")
SIZE = 32
# Columns of each halved photo that are held out: the right ends of the pagoda's roofs with lake and
# sky, and the right quarter of the dahlia. No training crop touches a pixel of them.
HELDOUT = ((144, 200), (176, 232))
LEAST_DEVIATION = 20  # of the mean of the three colours, in bytes


class PhotosData:
    """Every 32x32 crop of one split that has something to show.

    Args:
        split: 'train', 'heldout' (both inside or both outside the columns `HELDOUT`), or 'all'.

    Raises:
        ValueError: `split` is none of the three.
    """

    name, resolution, channels, num_classes, encoder_name = "photos", SIZE, 3, 2, "pixels"
    classes = CLASSES

    def __init__(self, split: str = "train") -> None:
        if split not in ("train", "heldout", "all"):
            raise ValueError(
                f"dataset: split must be 'train', 'heldout' or 'all', got {split!r}; pick one"
            )
        self.photos = _halved_photos()
        corners = [_corners(*each, split) for each in zip(self.photos, HELDOUT, strict=True)]
        self.labels = np.repeat(np.arange(len(CLASSES)), [len(c) for c in corners])
        self.corners = np.concatenate(corners)

    def __len__(self) -> int:
        return len(self.corners)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 3, 32, 32] and labels int64 [n]."""
        labels, (top, left) = self.labels[indices], self.corners[indices].T
        # [photo, top, left, 3, 32, 32], a view of the photos
        windows = sliding_window_view(self.photos, (SIZE, SIZE), axis=(1, 2))
        return np.ascontiguousarray(windows[labels, top, left]), labels

    def digest(self) -> str:
        """A checksum of what the crops are cut from, and where."""
        return digest(self.photos, self.corners, self.labels)


@functools.cache
def _halved_photos() -> np.ndarray:
    """Both photos, uint8 [2, 213, 320, 3]; each pixel is the rounded mean of 2x2."""
    from sklearn.datasets import load_sample_images

    photos = np.stack(load_sample_images().images).astype(np.int32)[:, :426]
    count, height, width, channels = photos.shape
    blocks = photos.reshape(count, height // 2, 2, width // 2, 2, channels)
    return ((blocks.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)


def _corners(photo: np.ndarray, heldout: tuple[int, int], split: str) -> np.ndarray:
    """Top left corners of a photo's crops, int64 [n, 2], row by row."""
    grey = photo.astype(np.int64).sum(axis=2)
    # Sums over all windows in integers, so that the choice is the same on every machine:
    # n sum(x^2) - sum(x)^2 = (n sd)^2.
    count = SIZE * SIZE
    deviation = count * _window_sums(grey**2) - _window_sums(grey) ** 2
    keep = deviation >= (count * 3 * LEAST_DEVIATION) ** 2
    left = np.arange(keep.shape[1])
    if split == "train":
        keep &= (left + SIZE <= heldout[0]) | (left >= heldout[1])
    elif split == "heldout":
        keep &= (left >= heldout[0]) & (left + SIZE <= heldout[1])
    return np.argwhere(keep)


def _window_sums(values: np.ndarray) -> np.ndarray:
    """Sums over every window of SIZE x SIZE, by differences of running sums."""
    for axis in (0, 1):
        total = np.insert(values.cumsum(axis), 0, 0, axis=axis)
        values = np.take(total, np.arange(SIZE, total.shape[axis]), axis) - np.take(
            total, np.arange(total.shape[axis] - SIZE), axis
        )
    return values
