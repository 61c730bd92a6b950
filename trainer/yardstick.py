"""What search and judge measure samples against: a bundled dataset and how its images compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from autoguide_fast import metrics
from autoguide_fast.digits import NUM_CLASSES, load_digits

from .data.photos import CLASSES, PhotosData

# The photos overlap in all but a column; so many of each class say what all of them would.
CROPS = {"train": 2000, "heldout": 1000}

Labelled = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Yardstick:
    """A dataset to judge by.

    data: its name. num_classes: of which samples are drawn equally many. extract: from uint8
    images to the features that are compared. load: from 'train' or 'heldout' to images and labels.
    """

    data: str
    num_classes: int
    extract: Callable[..., np.ndarray]
    load: Callable[[str], Labelled]

    @cached_property
    def training(self) -> metrics.Reference:
        """The images that nets are trained on."""
        return metrics.Reference(*self.load("train"), extract=self.extract)

    @cached_property
    def heldout(self) -> metrics.Reference:
        """Those that they never saw."""
        return metrics.Reference(*self.load("heldout"), extract=self.extract)

    def classes(self, count: int) -> list[int]:
        """Labels of `count` samples, the classes in turn."""
        return [i % self.num_classes for i in range(count)]

    def nets(self) -> dict[str, str]:
        """Names of the nets by role: 'main', 'guide' and, for CFG, 'uncond'."""
        roles = {"main": "", "guide": "-guide", "uncond": "-uncond"}
        return {role: self.data + suffix for role, suffix in roles.items()}


def _crops(split: str) -> Labelled:
    """Equally many random crops of each photo, always the same."""
    data, random = PhotosData(split), np.random.RandomState(0)
    chosen = np.concatenate(
        [
            random.choice(np.flatnonzero(data.labels == label), CROPS[split], replace=False)
            for label in range(len(CLASSES))
        ]
    )
    images, labels = data.batch(chosen)
    return torch.from_numpy(images), torch.from_numpy(labels)


_YARDSTICKS = {
    "digits": Yardstick("digits", NUM_CLASSES, metrics.pixel_features, load_digits),
    "photos": Yardstick("photos", len(CLASSES), metrics.two_scale_features, _crops),
}
NAMES = tuple(_YARDSTICKS)


def yardstick(data: str) -> Yardstick:
    """The yardstick of a bundled dataset.

    Raises:
        ValueError: nothing is known to judge nets of these data by.
    """
    if data not in _YARDSTICKS:
        raise ValueError(
            f"judge: data must be one of {', '.join(NAMES)}, got {data!r}; other nets are judged "
            "with autoguide_fast.metrics and images of your own"
        )
    return _YARDSTICKS[data]
