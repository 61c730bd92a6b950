"""How the pairs of each data set are diagnosed and judged: a row for each in `STUDIES`.

Samples are always of the same seeds, or true points the same, so that weights differ by what they
do and not by chance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from prediction_features import blurred, learned
from prediction_likelihood import negative_log_likelihood
from prediction_nets import toy_points
from prediction_pairs import Pair

import autoguide_fast
from autoguide_fast.metrics import Reference, energy_distance, kernel_distance
from autoguide_fast.toy import fractal
from autoguide_fast.trainer.yardstick import yardstick

FIRST_SEED = 50_000_000
POINTS = 3072  # of the toy
Sets = tuple[dict[str, Any], dict[str, Any] | None]  # of 'training' and 'heldout'; their labels
Distances = dict[str, float]  # 'train' is the one that pairs are judged by


@dataclass(frozen=True)
class Study:
    """What is done with a data set's pairs.

    levels: noise levels of the diagnosis. constants: weights that are tried, besides 1.
    sets: what a pair is diagnosed on. distances: from the data to what main, guide and weight make.
    truth: what is known of main and guide from the data's true score alone.
    """

    levels: list[float]
    constants: tuple[float, ...]
    sets: Callable[[Pair], Sets]
    distances: Callable[[Any, Any, Any], Distances]
    truth: Callable[[Any, Any, Pair], dict[str, list[float]]] | None = None


def between(low: float, high: float, count: int) -> list[float]:
    """Noise levels, evenly spread in their logarithm."""
    return [float(f"{s:.3g}") for s in np.geomspace(low, high, count)]


@dataclass(frozen=True)
class Images:
    """Images of a data set, by its name: `diagnosed` of each set, `count` samples in `steps`."""

    data: str
    diagnosed: int
    count: int
    steps: int
    compare: Callable[[torch.Tensor], Distances]

    def sets(self, pair: Pair) -> Sets:
        """The same images for all pairs."""
        images, labels = {}, {}
        for name, split in (("training", "train"), ("heldout", "heldout")):
            all_images, all_labels = yardstick(self.data).load(split)
            assert all_labels is not None
            order = np.random.default_rng(0).permutation(len(all_images))
            chosen = torch.from_numpy(order[: self.diagnosed])
            images[name], labels[name] = all_images[chosen], all_labels[chosen]
        return images, labels

    def distances(self, main: Any, guide: Any, weight: Any) -> Distances:
        """Of samples, equally many of each class."""
        samples = autoguide_fast.sample(
            main,
            None if weight == 1 else guide,
            weight,
            class_labels=yardstick(self.data).classes(self.count),
            seeds=range(FIRST_SEED, FIRST_SEED + self.count),
            sampler="dpmpp_2m",
            num_steps=self.steps,
        )
        return self.compare(samples)


def _digits(samples: torch.Tensor) -> Distances:
    """Frechet distances in pixels."""
    measure = yardstick("digits")
    assert measure.heldout is not None
    return {
        "energy": energy_distance(measure.extract(samples), measure.training.features),
        "train": measure.training.frechet(samples),
        "heldout": measure.heldout.frechet(samples),
    }


def _mnist(samples: torch.Tensor) -> Distances:
    """Frechet distances by learned features, and in pixels of images of a quarter of the size."""
    found = {}
    for suffix, extract in (("", learned), (" pixels", blurred)):
        for split in ("train", "heldout"):
            reference = _references(split, extract)
            found[split + suffix] = reference.frechet(samples)
    return found


def _photos(samples: torch.Tensor) -> Distances:
    """Kernel distances and Frechet distances, of features at two scales."""
    measure = yardstick("photos")
    assert measure.heldout is not None
    features = measure.extract(samples)
    found = {}
    for split, reference in (("train", measure.training), ("heldout", measure.heldout)):
        found[split] = kernel_distance(reference.features, features, subsets=None).mean
        found[split + " frechet"] = reference.frechet(samples)
    return found


@functools.cache
def _references(split: str, extract: Callable[[Any], np.ndarray]) -> Reference:
    """The MNIST digits of a split."""
    return Reference(yardstick("mnist").load(split)[0], None, extract=extract)


def _points(pair: Pair) -> Sets:
    """Points of the toy: those that the main net was trained on, or new ones."""
    assert not isinstance(pair.main, str)
    fresh = fractal("A").sample(POINTS, torch.Generator().manual_seed(5))
    points = toy_points(pair.main.run)
    training = fresh if points is None else points.repeat(POINTS // len(points), 1)
    heldout = fractal("A").sample(POINTS, torch.Generator().manual_seed(6))
    return {"training": training, "heldout": heldout}, None


def _likelihood(main: Any, guide: Any, weight: Any) -> Distances:
    return {"train": negative_log_likelihood(main, guide, weight)}


@torch.no_grad()
def _against_truth(main: Any, guide: Any, pair: Pair) -> dict[str, list[float]]:
    """`<D* - D1, D1 - D0>` and `|D* - D1|^2` per point of the toy, whose perfect denoiser is D*."""
    y, data = _points(pair)[0]["training"], fractal("A")
    generator = torch.Generator().manual_seed(31)
    found: dict[str, list[float]] = {"along": [], "error": []}
    for level in STUDIES["toy"].levels:
        x = y + level * torch.randn(y.shape, generator=generator)
        d1, d0 = (net(x, torch.tensor(level)).double() for net in (main, guide))
        lacks = data.denoised(x.double(), level) - d1
        found["along"].append(float((lacks * (d1 - d0)).sum()) / len(y))
        found["error"].append(float(lacks.square().sum()) / len(y))
    return found


def _of(images: Images, levels: list[float], constants: tuple[float, ...]) -> Study:
    return Study(levels, constants, images.sets, images.distances)


STUDIES = {
    "digits": _of(
        Images("digits", 512, 640, 12, _digits), between(0.03, 8, 8), (0.8, 1.3, 1.7, 2.4)
    ),
    "mnist": _of(Images("mnist", 192, 320, 8, _mnist), between(0.03, 20, 8), (0.8, 1.3, 1.7, 2.4)),
    "photos": _of(
        Images("photos", 192, 192, 8, _photos), between(0.03, 20, 8), (0.85, 1.15, 1.3, 1.7)
    ),
    "toy": Study(
        between(0.005, 4, 9), (0.85, 1.15, 1.3), _points, _likelihood, truth=_against_truth
    ),
}
