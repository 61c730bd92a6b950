"""Mean and standard deviation of data, as nets see them."""

from __future__ import annotations

import numpy as np

from autoguide_fast.encoders import LatentEncoder


class Spread:
    """Sums over the numbers of images, by channel, in float64.

    count: numbers of each channel. total, squares: [C], of them and of their squares.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = np.zeros(0)

    def add(self, other: Spread) -> None:
        """Takes in what another has summed of images of the same form."""
        if not self.count:
            self.total, self.squares = np.zeros((2, len(other.total)))
        self.count += other.count
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    def summary(self) -> dict:
        """Mean and deviation of all numbers, and of each channel's."""
        means, squares = self.total / self.count, self.squares / self.count
        spreads = np.sqrt(np.maximum(squares - means**2, 0))
        mean = float(means.mean())
        return {
            "mean": mean,
            "deviation": float(np.sqrt(max(squares.mean() - mean**2, 0.0))),
            "channel_means": means.tolist(),
            "channel_deviations": spreads.tolist(),
        }


def spread_of(images: np.ndarray) -> Spread:
    """The sums of images [n, C, H, W]: pixels uint8, or moments of latents float32, C = 8.

    Nets see pixels as x / 127.5 - 1, and latents drawn from their moments and scaled: the square of
    a drawn number is on average mean^2 + deviation^2.
    """
    found = Spread()
    found.count = len(images) * images.shape[2] * images.shape[3]
    if images.dtype == np.uint8:
        numbers = images.astype(np.int64)
        total, squares = (each.sum(axis=(0, 2, 3)) for each in (numbers, numbers**2))
        # Of x / 127.5 - 1, from whole sums, which round nothing.
        found.total = total / 127.5 - found.count
        found.squares = squares / 127.5**2 - 2 * total / 127.5 + found.count
        return found
    mean, deviation = np.split(images.astype(np.float64), 2, axis=1)
    shape = (1, -1, 1, 1)
    scale = 0.5 / np.reshape(LatentEncoder.raw_std, shape)
    mean = (mean - np.reshape(LatentEncoder.raw_mean, shape)) * scale
    found.total = mean.sum(axis=(0, 2, 3))
    found.squares = (mean**2 + (deviation * scale) ** 2).sum(axis=(0, 2, 3))
    return found
