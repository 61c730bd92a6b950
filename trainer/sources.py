"""Where training images come from: one protocol, the digits in it, and what feeds the step.

A dataset has the attributes `name, resolution, channels, num_classes (0: none), encoder_name
('pixels' or 'latents')`, a length, and `batch(indices)`, which gives images uint8 or float32
[n, C, H, W] and classes int64 [n] or None, both NumPy arrays, and may be called by several threads.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence

import numpy as np
import torch

from autoguide_fast import encoders

from .digits import DigitsData, batch_indices
from .options import TrainOptions


class DigitsSource:
    """The bundled digits in the protocol of this module."""

    name = "digits"
    encoder_name = "pixels"

    def __init__(self, split: str) -> None:
        data = DigitsData(split)
        self.num_classes = data.label_dim
        self.images, self.classes = data.images.numpy(), data.labels.argmax(1).numpy()
        self.channels, self.resolution = self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.classes[indices]


def open_source(options: TrainOptions):
    """The dataset that a run trains on, checked against the run's options.

    Raises:
        ValueError: there is none, or it does not fit; says what to change.
    """
    if options.data != "digits":
        raise ValueError(
            f"train: data must be 'digits', got {options.data!r}; other data are not read yet"
        )
    source = DigitsSource(options.split)
    check_source(source, options)
    return source


def check_source(source, options: TrainOptions) -> None:
    """Raises ValueError where a dataset does not fit the options of a run."""
    if options.labelled and not source.num_classes:
        raise ValueError(
            f"train: data must have class labels for a net with labels, got {source.name} without; "
            "add --no-labels, or a dataset.json or a folder for each class"
        )
    if options.resolution not in (0, source.resolution):
        raise ValueError(
            f"train: data must have resolution {options.resolution}, got {source.name} with "
            f"{source.resolution}; convert it with `autoguide-fast dataset convert`, or set "
            f"--resolution {source.resolution}"
        )
    channels = image_channels(source)
    if options.img_channels not in (0, channels):
        raise ValueError(
            f"train: data must have {options.img_channels} channels, got {source.name} with "
            f"{channels}; choose the preset that suits them, or set --img-channels {channels}"
        )
    if options.flip and source.encoder_name == "latents":
        raise ValueError(
            "train: flip must be off for latents, got flip=True; a mirrored latent is not the "
            "latent of the mirrored image: mirror before `autoguide-fast dataset encode`"
        )


def shape_of(options: TrainOptions) -> tuple[int, int, int]:
    """Resolution, channels and classes of what the net sees: what the options say, else the data.

    A preset says it all but the classes, ImageNet's 1000 unless the data are there to be asked.
    """
    if options.resolution and options.img_channels and options.data == "digits":
        return options.resolution, options.img_channels, 1000 if options.labelled else 0
    source = open_source(options)
    classes = source.num_classes if options.labelled else 0
    return source.resolution, image_channels(source), classes


def image_channels(source) -> int:
    """Channels of what the net sees: a stored latent holds its mean and its deviation."""
    return source.channels // 2 if source.encoder_name == "latents" else source.channels


def encode(source, images: torch.Tensor, normal: torch.Tensor | None) -> torch.Tensor:
    """What the net is trained on, float32, from what a dataset gives.

    Args:
        source: the dataset.
        images: what its `batch` returned, as a tensor.
        normal: standard normal numbers with which a latent is drawn from its distribution.
    """
    encoder = encoders.encoder(source.encoder_name)
    if normal is None:
        return encoder.encode(images)
    return encoder.encode(images, normal)


class Feed:
    """Batches in the order of the run, fetched by threads while the step before them computes.

    Args:
        source: the dataset.
        seed: of the order.
        offset, count: which images of each step are this process's.
        batch: images of a step, of all processes together.
        depth: steps fetched ahead.
    """

    def __init__(
        self, source, seed: int, batch: int, offset: int, count: int, depth: int = 3
    ) -> None:
        self.source, self.seed, self.batch = source, seed, batch
        self.offset, self.count, self.depth = offset, count, depth
        self._pool = concurrent.futures.ThreadPoolExecutor(2, "train-data")
        self._coming: dict[int, concurrent.futures.Future] = {}

    def __call__(self, nimg: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Images and classes of this process's share of the step that begins at `nimg`."""
        for k in range(self.depth):
            position = nimg + k * self.batch
            if position not in self._coming:
                self._coming[position] = self._pool.submit(self._fetch, position)
        images, classes = self._coming.pop(nimg).result()
        self._coming = {k: v for k, v in self._coming.items() if k > nimg}
        return images, classes

    def _fetch(self, nimg: int) -> Sequence:
        indices = batch_indices(len(self.source), nimg + self.offset, self.count, self.seed)
        return self.source.batch(indices.numpy())

    def close(self) -> None:
        """Lets go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
