"""What tune and judge measure samples against: a dataset, and how its images are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from autoguide_fast import metrics
from autoguide_fast.digits import NUM_CLASSES, load_digits

from .data import Dataset, open_dataset
from .data.datasets import BUNDLED
from .data.photos import CLASSES, PhotosData

# The photos overlap in all but a column; so many of each class say what all of them would.
CROPS = {"train": 2000, "heldout": 1000}
MOST_IMAGES = 10_000  # of a set of files: precision and recall compare all pairs
MOST_CLASSES = 50  # that a classifier of features is trained for
SMALL = 1024  # numbers of an image that are compared pixel by pixel
WIDEST = 4096  # columns of two_scale_features
_AT_ONCE = 64  # images that go through a network

NAMES = BUNDLED
Labelled = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class Data:
    """What to judge by, as it was asked for.

    data: 'digits', 'photos', 'mnist', or a folder or ZIP file of pictures. heldout: such of images
    that were not trained on; None takes those of what is bundled, and of files none. features: of
    `metrics.names.FEATURES`, or None for pixels, at two scales where the images are larger.
    detector_file: of `features`. command: which messages name.
    """

    data: str
    heldout: str | None = None
    features: str | None = None
    detector_file: str | None = None
    command: str = field(default="judge", compare=False)


class Yardstick:
    """A dataset to judge by; what is needed is loaded once.

    Args:
        asked: see `Data`.

    Raises:
        ValueError: there are no such data, or nothing to compare them by.

    num_classes: 0 where there are no labels. extract: from uint8 images to features that are
    compared.
    """

    def __init__(self, asked: Data) -> None:
        self.asked, self.data = asked, asked.data
        self._sets = {"train": self._open(asked.data, "train")}
        if asked.heldout is not None:
            self._sets["heldout"] = self._open(asked.heldout, "heldout")
        elif asked.data in BUNDLED:
            self._sets["heldout"] = self._open(asked.data, "heldout")
        self.num_classes = {"digits": NUM_CLASSES, "photos": len(CLASSES)}.get(
            asked.data, self._sets["train"].num_classes
        )
        self.extract = self._extractor()

    def _open(self, source: str, split: str) -> Dataset:
        try:
            dataset = open_dataset(source, split if source in BUNDLED else "train")
        except ValueError as error:
            raise ValueError(f"{self.asked.command}: {error}") from None
        if dataset.encoder_name != "pixels":
            raise ValueError(
                f"{self.asked.command}: data must be pictures to be compared, got {source} with "
                "latents; name the pictures that they were encoded from with --data"
            )
        return dataset

    def _extractor(self) -> Callable[..., np.ndarray]:
        """What the images are compared by."""
        asked = self.asked
        if asked.features is not None:
            detector = metrics.load_detector(asked.features, asked.detector_file)

            def extract(images: torch.Tensor | np.ndarray) -> np.ndarray:
                parts = torch.as_tensor(images).split(_AT_ONCE)
                return np.concatenate([detector(part).cpu().numpy() for part in parts])

            return extract
        channels, side = self._sets["train"].channels, self._sets["train"].resolution
        if channels * side**2 <= SMALL:
            return metrics.pixel_features
        if side % 4 == 0 and channels * ((side // 4) ** 2 + 64) <= WIDEST:
            return metrics.two_scale_features
        raise ValueError(
            f"{asked.command}: --features must be named for images of {side}x{side} pixels, got "
            "none; efficientnet is one that needs no download"
        )

    def load(self, split: str) -> Labelled:
        """Images of 'train' or 'heldout' and their classes, or None; the same every time."""
        dataset = self._sets[split]
        if isinstance(dataset, PhotosData):
            return _crops(dataset, split)
        if self.data == "digits" and self.asked.heldout is None:
            return load_digits(split)
        chosen = np.arange(len(dataset))
        if len(chosen) > MOST_IMAGES:
            chosen = np.sort(np.random.RandomState(0).permutation(len(chosen))[:MOST_IMAGES])
        images, labels = dataset.batch(chosen)
        return torch.from_numpy(images), None if labels is None else torch.from_numpy(labels)

    def _reference(self, split: str) -> metrics.Reference:
        images, labels = self.load(split)
        tellable = labels is not None and 2 <= len(labels.unique()) <= MOST_CLASSES
        return metrics.Reference(images, labels if tellable else None, extract=self.extract)

    @cached_property
    def training(self) -> metrics.Reference:
        """The images that nets are trained on."""
        return self._reference("train")

    @cached_property
    def heldout(self) -> metrics.Reference | None:
        """Those that they never saw, or None."""
        return self._reference("heldout") if "heldout" in self._sets else None

    def classes(self, count: int) -> list[int]:
        """Labels of `count` samples, the classes in turn."""
        return [i % self.num_classes for i in range(count)]

    def identity(self) -> dict:
        """What figures depend on besides the nets, as plain values."""
        found: dict = {"data": self.data}
        if self.data not in BUNDLED:
            digest = getattr(self._sets["train"], "digest", None)
            found["contents"] = digest() if digest is not None else None
        if self.asked.features is not None:
            found["features"] = self.asked.features
        return found


def net_names(data: str) -> dict[str, str]:
    """Names of a dataset's nets by role: 'main', 'guide' and, for CFG, 'uncond'."""
    if data not in BUNDLED:
        return {role: role for role in ("main", "guide", "uncond")}
    roles = {"main": "", "guide": "-guide", "uncond": "-uncond"}
    return {role: data + suffix for role, suffix in roles.items()}


def classes_of(net: object, count: int) -> list[int] | None:
    """Labels of `count` samples of a net, its classes in turn; None where it has none."""
    label_dim = getattr(net, "label_dim", 0)
    return [i % label_dim for i in range(count)] if label_dim else None


def _crops(data: PhotosData, split: str) -> Labelled:
    """Equally many random crops of each photo, always the same."""
    random = np.random.RandomState(0)
    chosen = np.concatenate(
        [
            random.choice(np.flatnonzero(data.labels == label), CROPS[split], replace=False)
            for label in range(len(CLASSES))
        ]
    )
    images, labels = data.batch(chosen)
    return torch.from_numpy(images), torch.from_numpy(labels)


@functools.lru_cache(maxsize=4)
def _made(asked: Data) -> Yardstick:
    return Yardstick(asked)


def yardstick(asked: Data | str) -> Yardstick:
    """The yardstick of what was asked for, or of a dataset by its name; made once.

    Raises:
        ValueError: there are no such data.
    """
    return _made(Data(asked) if isinstance(asked, str) else asked)
