"""The datasets that training reads: files anywhere, and those that come with packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np

from autoguide_fast.digits import load_digits
from autoguide_fast.mnist import load_mnist

from .digest import digest
from .photos import PhotosData
from .pictures import decode
from .sources import Source, open_source

BUNDLED = ("digits", "photos", "mnist")


class Dataset(Protocol):
    """What training reads, as the package's docstring describes it; `digest`, `stamp` may be there.

    name: str, what messages call it. resolution, channels: of what it serves. num_classes: 0 where
    there are no labels. encoder_name: 'pixels' or 'latents'.
    """

    name: str
    resolution: int
    channels: int
    num_classes: int
    encoder_name: str

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images [n, C, H, W], uint8 or float32, and labels int64 [n], or None."""


class FilesData:
    """Images or latents of one shape, in files.

    Args:
        source: see `open_source`.
        name: what messages call it.

    Raises:
        ValueError: the first file is broken, or not square.
    """

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        first = self._decode(0)
        self.channels, self.resolution, width = first.shape
        self.encoder_name = "pixels" if first.dtype == np.uint8 else "latents"
        self.num_classes, self.classes = source.num_classes, source.classes
        self.notes, self.renumbered = source.notes, source.renumbered
        if self.resolution != width:
            raise ValueError(
                f"dataset: {source.where(0)} must be square, got {width}x{self.resolution} pixels; "
                "run `autoguide-fast dataset convert` with --resolution and --transform"
            )
        self._dtype = first.dtype

    def __len__(self) -> int:
        return len(self.source.names)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Images [n, C, H, W] and labels int64 [n], or None.

        Raises:
            ValueError: a file is broken, or of another shape than the first; it is named.
        """
        images = np.empty([len(indices), *self.shape], self._dtype)
        for row, index in enumerate(indices):
            image = self._decode(index)
            if image.shape != self.shape or image.dtype != self._dtype:
                raise ValueError(
                    f"dataset: {self.source.where(index)} must be as the first file, "
                    f"{_form(images[0])}, got {_form(image)}; run `autoguide-fast dataset convert`"
                )
            images[row] = image
        labels = self.source.labels
        return images, None if labels is None else labels[indices]

    def digest(self) -> str:
        """See `Source.digest`."""
        return self.source.digest()

    def stamp(self) -> str | None:
        """See `Source.stamp`."""
        return self.source.stamp()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.channels, self.resolution, self.resolution

    def _decode(self, index: int) -> np.ndarray:
        return decode(self.source.read(index), self.source.where(index))


class LabelledDigits:
    """Handwritten digits in memory, of one split.

    Args:
        name: what messages call them.
        images: uint8 [N, 1, H, H]. labels: int64 [N].
    """

    channels, num_classes, encoder_name = 1, 10, "pixels"
    classes = tuple("0123456789")

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.name, self.images, self.labels = name, images, labels
        self.resolution = images.shape[-1]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [n, 1, H, H] and labels int64 [n]."""
        return self.images[indices], self.labels[indices]

    def digest(self) -> str:
        """A checksum of images and labels."""
        return digest(self.images, self.labels)


def open_bundled(name: str | os.PathLike, split: str = "train") -> LabelledDigits | PhotosData:
    """Opens one of `BUNDLED`; raises ValueError where it has no such split, or no package."""
    if name == "photos":
        return PhotosData(split)
    images, labels = load_digits(split) if name == "digits" else load_mnist(split)
    return LabelledDigits(str(name), images.numpy(), labels.numpy())


def open_dataset(
    source: str | os.PathLike, split: str = "train"
) -> LabelledDigits | PhotosData | FilesData:
    """Opens training data, as the package's docstring describes them.

    Args:
        source: 'digits', 'photos' or 'mnist', which come with packages, or a path: see
            `open_source`. A path of such a name is written ./digits.
        split: 'train', 'heldout' or 'all' of what is bundled. Files have no split.

    Raises:
        ValueError: there is no such thing, it is damaged, or its labels do not fit.
    """
    if source in BUNDLED:
        return open_bundled(source, split)
    if split != "train":
        raise ValueError(
            f"dataset: split must be left out for files, got {split!r} for {source}; name the "
            "folder or ZIP file that holds the split"
        )
    path = Path(source)
    return FilesData(open_source(path), path.name or str(path))


def _form(image: np.ndarray) -> str:
    channels, height, width = image.shape
    what = "pixels" if image.dtype == np.uint8 else "latents"
    return f"{width}x{height} {what} with {channels} channel{'s' if channels > 1 else ''}"
