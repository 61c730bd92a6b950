"""The last round of `--guide auto`: finalists are sampled, and their samples held against the data.

What a diagnosis foretells orders guides only in part (docs/prediction.md); what they do to samples
decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from autoguide_fast import encoders, sample
from autoguide_fast.metrics import feature_statistics, frechet_distance, kernel_distance
from autoguide_fast.metrics.features import two_scales
from autoguide_fast.networks import Precond

from .auto_guide import AutoGuide
from .estimate import PASSES
from .feature_parts import FeatureParts, Part
from .guide_scores import PAST, Candidate, drawn_batches
from .options import TrainOptions
from .training_data import image_channels, open_training_data
from .yardstick import SMALL, WIDEST

# One evaluation of each net a step. With fewer, guidance is judged by what it does to the sampler's
# own errors: a net of the digits that hardly guides came 13 % nearer in 12 steps, in 24 4 %, and in
# 63 evaluations of Heun's method 3 %.
SAMPLER, STEPS = "dpmpp_2m", 24
FEWEST, MOST = 256, 2048  # images of each finalist
REAL = 2048  # training images that they are compared with, at most
_PAIRED = 1024  # likewise by the kernel distance, which takes all pairs
FIRST_SEED = 70_000_000
PASTS = 2  # finalists among the main net's own past
GROUPS = 16  # of images, each of which is left out once
SURE = 2.0  # standard errors by which a trained guide must be nearer than one that costs nothing
_PER_FEATURE = 4  # images that a Frechet distance wants for each feature
_PART = 256  # images that are sampled before anything else is looked at
_AT_ONCE = 64  # images in memory


def finalists(candidates: Sequence[Candidate], gains: Sequence[float]) -> list[int]:
    """The best-scored candidate of each run, and of the main net's past that of another time, too.

    Those that cost nothing come first.
    """
    taken: list[int] = []
    for i in sorted(range(len(candidates)), key=lambda i: (-gains[i], candidates[i].cost)):
        net, nimg = candidates[i].net, candidates[i].nimg
        times = [candidates[k].nimg for k in taken if candidates[k].net == net]
        if len(times) < (PASTS if net == PAST else 1) and nimg not in times:
            taken.append(i)
    return sorted(taken, key=lambda i: candidates[i].cost)


def images_of_each(main: TrainOptions, auto: AutoGuide) -> tuple[int, float]:
    """How many images are sampled with each finalist, and without a guide, and what that costs.

    As many as cost no more than the candidates' training may, but at least `FEWEST`, of which less
    could hardly be told, and at most `MOST`; twice as many where noise decides. The cost is in
    shares of the main net's training.
    """
    past = min(PASTS, len(auto.past))
    own = 1 / main.duration  # of one image in training
    evaluations = (1 + 2 * past + len(auto.runs)) * own + sum(auto.costs.values())
    each = STEPS * evaluations / PASSES
    count = min(max(int(auto.budget / each), FEWEST), MOST)
    return count, count * each


@dataclass(frozen=True)
class Measured:
    """How far samples lie from the data: all of them, and without each group in turn.

    Those that are not finite lie infinitely far.
    """

    whole: float
    without: tuple[float, ...] = ()


def nearer(a: Measured, b: Measured) -> tuple[float, float]:
    """By how much `a` is nearer to the data than `b`, on the same seeds, and the standard error.

    The error is the jackknife's over groups of images (Efron and Stein 1981): what changes in the
    difference when a group is left out, so that noise which both share does not count.
    """
    if math.inf in (a.whole, b.whole):
        return (b.whole - a.whole if a.whole != b.whole else 0.0), 0.0
    differences = np.subtract(b.without, a.without)
    spread = np.square(differences - differences.mean()).sum()
    return b.whole - a.whole, math.sqrt((1 - 1 / len(differences)) * spread)


class Verdict(NamedTuple):
    """Which finalist is kept, whether noise had a part in it or in what it gains, and why."""

    best: int
    told: bool
    why: list[str]


def decide(measured: Sequence[Measured], unguided: Measured, costs: Sequence[float]) -> Verdict:
    """Which finalist is kept, and why, in sentences.

    The nearest of those that cost nothing, unless one that was trained is nearer by more than
    `SURE` standard errors.

    Args:
        measured, costs: of each finalist, at least one of which costs nothing.
        unguided: of samples without a guide.
    """
    free = [i for i, cost in enumerate(costs) if not cost]
    trained = [i for i, cost in enumerate(costs) if cost]
    past = best = min(free, key=lambda i: measured[i].whole)
    surely = [i for i in trained if _is_surely(nearer(measured[i], measured[past]))]
    why, told = [], True
    if surely:
        best = min(surely, key=lambda i: measured[i].whole)
        why.append(
            "the trained guide that is kept comes nearer to the data than the main net's own past "
            f"by {_shown(nearer(measured[best], measured[past]))}"
        )
    elif any(measured[i].whole < measured[past].whole for i in trained):
        told = False
        why.append(
            "no trained guide could be told from the main net's own past, which costs nothing and "
            "is kept"
        )
    elif trained:
        why.append("no trained guide comes as near to the data as the main net's own past")
    gain = nearer(measured[best], unguided)
    if _is_surely(gain):
        why.append(
            f"with it samples come nearer to the data than without a guide by {_shown(gain)}"
        )
    elif gain[0] > 0:
        why.append(
            "it gains nothing that could be told from noise: samples come nearer to the data than "
            f"without a guide by {_shown(gain)}"
        )
    else:
        why.append(
            "it gains nothing: samples come no nearer to the data than without a guide, by "
            f"{_shown(gain)}"
        )
    return Verdict(best, told and abs(gain[0]) > SURE * gain[1], why)


def _is_surely(difference: tuple[float, float]) -> bool:
    return difference[0] > SURE * difference[1]


def _shown(difference: tuple[float, float]) -> str:
    return f"{difference[0]:.3g} ± {difference[1]:.2g}"


class Comparison:
    """The data of a main net, and how far samples lie from them.

    In what `judge` compares images by where no features are named: all numbers of small ones, two
    scales of larger ones; latents as the net sees them. By Frechet's distance where there are
    enough images for it, otherwise by the kernel distance, whose mean does not depend on their
    number.

    Args:
        main: options of the main net.
        images: that are sampled each time.
    """

    def __init__(self, main: TrainOptions, images: int) -> None:
        dataset = open_training_data(main)
        self.images = images
        self.latents = dataset.encoder_name == "latents"
        channels, side = image_channels(dataset), dataset.resolution
        parts = [
            (_features(images), labels)
            for images, labels in drawn_batches(dataset, REAL, main.seed, _AT_ONCE)
        ]
        self.real = np.concatenate([features for features, _ in parts])
        labels = [labels for _, labels in parts if labels is not None]
        # Samples have the classes of data.
        self.classes = np.resize(np.concatenate(labels), images) if labels else None
        self.frechet = images >= _PER_FEATURE * self.real.shape[1]
        if not self.frechet:
            self.real = self.real[:_PAIRED]
        self._statistics = feature_statistics(self.real) if self.frechet else None
        whole = self.real.shape[1] == channels * side**2
        of = "latents" if self.latents else "pixels"
        self.name = (
            f"{'Frechet' if self.frechet else 'kernel'} distance in {of}"
            f"{'' if whole else ' at two scales'}"
        )

    def about(self) -> dict:
        """What the distances are, as JSON holds it."""
        return {
            "name": self.name,
            "images": self.images,
            "training_images": len(self.real),
            **self.drawn_by(),
        }

    def drawn_by(self) -> dict:
        """What samples depend on besides the nets, whatever their number."""
        return {"sampler": SAMPLER, "steps": STEPS, "first_seed": FIRST_SEED}

    def sampled(
        self, model: Precond, guide: Precond | None, guidance: Any, parts: FeatureParts
    ) -> Iterator[None]:
        """Samples, and leaves their features in `parts`, one after each time that it is asked.

        What is there already is not made again.
        """
        encoder = encoders.encoder("latents" if self.latents else "pixels")
        assert encoder is not None
        for chosen in self.ranges:
            if parts.load(chosen) is not None:
                continue
            classes = None
            if self.classes is not None and model.label_dim:
                classes = self.classes[chosen.start : chosen.stop]
            found: list[np.ndarray] = []

            def keep(indices: range, images: torch.Tensor, found: list = found) -> None:
                values = images if self.latents else encoder.encode(images)
                found.append(_features(values.cpu()))

            sample(
                model,
                guide,
                guidance,
                class_labels=classes,
                seeds=range(FIRST_SEED + chosen.start, FIRST_SEED + chosen.stop),
                num_steps=STEPS,
                sampler=SAMPLER,
                batch_size=_AT_ONCE,
                raw=self.latents,
                on_batch=keep,
            )
            parts.store(chosen, Part({"compared": np.concatenate(found)}, None, ""))
            yield

    @property
    def ranges(self) -> list[range]:
        """Of the images, what is sampled at a time."""
        return [
            range(first, min(first + _PART, self.images)) for first in range(0, self.images, _PART)
        ]

    def measured(self, parts: FeatureParts) -> Measured:
        """How far the samples in `parts` lie from the data."""
        found = []
        for chosen in self.ranges:
            part = parts.load(chosen)
            assert part is not None  # just stored
            found.append(part.features["compared"])
        features = np.concatenate(found)
        group = np.arange(len(features)) % GROUPS
        without = (self._distance(features[group != i]) for i in range(GROUPS))
        return Measured(self._distance(features), tuple(without))

    def _distance(self, features: np.ndarray) -> float:
        if self._statistics is not None:
            return frechet_distance(feature_statistics(features), self._statistics)
        return kernel_distance(self.real, features, subsets=None).mean


def _features(images: torch.Tensor) -> np.ndarray:
    """What images `[n, C, H, W]`, as a net sees them, are compared by, float64 `[n, D]`."""
    channels, side = images.shape[1:3]
    if channels * side**2 > SMALL:
        # Halved until two scales of them are few enough, and of sides that have quarters.
        while channels * ((side // 4) ** 2 + 64) > WIDEST:
            images = torch.nn.functional.avg_pool2d(images, 2)
            side //= 2
        side -= side % 4
        return two_scales(images[..., :side, :side].double().numpy())
    return images.double().flatten(1).numpy()
