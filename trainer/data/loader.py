"""Batches read ahead by threads, so that a training step finds its data waiting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from .datasets import Dataset
from .order import flips, order
from .threads import map_ahead


class Batch(NamedTuple):
    """What stands at positions `start` and on: images [n, C, H, W], and int64 labels [n] or None.

    Images are uint8 pixels or float32 latents, on the CPU.
    """

    start: int
    images: torch.Tensor
    labels: torch.Tensor | None


class Loader:
    """An iterator over batches of a dataset, made ahead of time by threads.

    What a batch holds depends on seed and position alone, whatever the number of threads. Use it
    as a context manager, or call `close`.

    Args:
        dataset: as the package's docstring describes it.
        ranges: (start, count) of each batch in the stream of `order`; may be endless. A process of
            several asks for its own parts of the stream.
        seed: of order and flips, >= 0.
        mirror: turn a random half of the images left to right; pixels only, since the latent of a
            mirrored image is not the mirrored latent.
        workers: threads, >= 1.
        ahead: batches ready or in work, >= 1; default: two for each thread.
        pin: put batches into page-locked memory, from which a GPU copies while it computes.

    Raises:
        ValueError: an argument lies outside its range, at once; an image cannot be read or does
            not fit, when the turn of its batch comes.
    """

    def __init__(
        self,
        dataset: Dataset,
        ranges: Iterable[tuple[int, int]],
        seed: int,
        mirror: bool = False,
        workers: int = 2,
        ahead: int | None = None,
        pin: bool = False,
    ) -> None:
        ahead = 2 * workers if ahead is None else ahead
        for name, value in (("workers", workers), ("ahead", ahead)):
            if value < 1:
                raise ValueError(f"Loader: {name} must be >= 1, got {value}; raise it")
        if mirror and dataset.encoder_name != "pixels":
            raise ValueError(
                f"Loader: mirror must be False for {dataset.encoder_name}, got True; only pixels "
                "can be mirrored, so train without flips"
            )
        if not len(dataset):
            raise ValueError(
                f"Loader: dataset must hold images, got none in {dataset.name}; add some"
            )
        self.dataset, self.seed, self.mirror, self.pin = dataset, seed, mirror, pin
        self._batches = map_ahead(self._load, ranges, workers, ahead)

    def _load(self, position: tuple[int, int]) -> Batch:
        start, count = position
        indices = order(self.seed, len(self.dataset), start, count)
        images, labels = self._checked(indices, *self.dataset.batch(indices))
        if self.mirror:
            chosen = flips(self.seed, start, count)
            images[chosen] = images[chosen][..., ::-1]
        images = torch.from_numpy(images)
        labels = None if labels is None else torch.from_numpy(labels)
        if self.pin:
            images = images.pin_memory()
            labels = None if labels is None else labels.pin_memory()
        return Batch(start, images, labels)

    def _checked(
        self, indices: np.ndarray, images: np.ndarray, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """What a dataset gave, laid out for PyTorch; raises ValueError where it is wrong."""
        d = self.dataset
        images = _native(images)
        shape = (len(indices), d.channels, d.resolution, d.resolution)
        if images.shape != shape or images.dtype not in (np.uint8, np.float32):
            self._refuse(
                f"images uint8 or float32 {list(shape)}", f"{images.dtype} {list(images.shape)}"
            )
        if images.dtype == np.float32:
            bad = ~np.isfinite(images).all(axis=(1, 2, 3))
            if bad.any():
                self._refuse("finite numbers", f"nan or inf in number {indices[bad.argmax()]}")
        if labels is None:
            return images, None
        labels = _native(labels)
        if labels.shape != (len(indices),) or labels.dtype.kind not in "iu":
            self._refuse(f"labels int64 [{len(indices)}]", f"{labels.dtype} {list(labels.shape)}")
        bad = (labels < 0) | (labels >= d.num_classes)
        if bad.any():
            self._refuse(
                f"labels from 0 to {d.num_classes - 1}",
                f"{labels[bad.argmax()]} for number {indices[bad.argmax()]}",
            )
        return images, labels.astype(np.int64, copy=False)

    def _refuse(self, rule: str, got: str) -> None:
        raise ValueError(
            f"Loader: dataset must give {rule}, got {got} from {self.dataset.name}; correct it"
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the threads; the iterator is then exhausted."""
        self._batches.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _native(array: ArrayLike) -> np.ndarray:
    """An array that may be written to, in this machine's byte order and C's order of elements."""
    array = np.asarray(array)
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
