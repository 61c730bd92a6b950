"""`evaluate`: images in, figures out, with the protocol that they were taken by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from .detectors import Detector, of_callable
from .frechet import frechet_distance
from .manifold import density_coverage, precision_recall
from .memorisation import memorisation
from .mmd import clip_distance, kernel_distance
from .names import Metric, parse_metrics
from .protocol import versions
from .reference_file import Gaussian, ReferenceArrays, ReferenceFile
from .running import RunningStatistics


class Reference(Protocol):
    """What real images are like: `ReferenceFile` or `ReferenceArrays`."""

    def statistics(self, detector: Detector) -> Gaussian: ...

    def features(self, detector: Detector) -> np.ndarray: ...

    def labels(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Settings:
    """How metrics are taken.

    metrics: which. per_class: for each class besides. kid_subsets, kid_subset_size: of
    `kernel_distance`; no subsets take all rows. pr_neighbour, dc_neighbour: k of
    `precision_recall` and `density_coverage`. device: where pairs of features are compared.
    """

    metrics: tuple[Metric, ...]
    per_class: bool = False
    kid_subsets: int | None = 100
    kid_subset_size: int = 1000
    pr_neighbour: int = 3
    dc_neighbour: int = 5
    device: torch.device | str | None = field(default=None, compare=False)

    def detectors(self) -> list[str]:
        """Names of the features that the metrics are taken on."""
        return list(dict.fromkeys(metric.features for metric in self.metrics))

    def keeps(self, name: str) -> bool:
        """Whether each image's features of this name are needed, not only their statistics."""
        mine = (metric for metric in self.metrics if metric.features == name)
        return self.per_class or any(metric.needs_features for metric in mine)

    def fitting(self, fewest: int) -> Settings:
        """These, for sets of so many images at least: of too few, no subsets are drawn."""
        return self if fewest >= self.kid_subset_size else replace(self, kid_subsets=None)

    def about(self) -> dict:
        """The numbers that the figures depend on, by metric, for a protocol."""
        numbers = {
            "fd": {"covariance": "unbiased (N - 1), float64"},
            "kid": {
                "kernel": "(x.y / D + 1)^3, unbiased",
                "subsets": "all pairs"
                if self.kid_subsets is None
                else f"{self.kid_subsets} of {self.kid_subset_size}",
            },
            "pr": {"k": self.pr_neighbour},
            "dc": {"k": self.dc_neighbour},
            "near": {"nearer_than": "the held-out images' lowest 5 %"},
            "cmmd": {"kernel": "Gaussian, sigma 10, times 1000"},
        }
        return {metric.name: numbers[metric.kind] for metric in self.metrics}


class Collected:
    """What is gathered of images' features: running statistics, or each image's features.

    Args:
        settings: what they are gathered for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.count = 0
        self.running = {n: RunningStatistics(settings.device) for n in settings.detectors()}
        self._kept: list[tuple[int, dict[str, np.ndarray], np.ndarray | None]] = []

    def add(
        self, features: Mapping[str, torch.Tensor], labels: np.ndarray | None = None, place: int = 0
    ) -> None:
        """Take in features `[n, D]` by the detector's name.

        Args:
            features: of the same images each.
            labels: integers `[n]`, their classes, needed by class.
            place: where these images stand among all; where it differs, the order of calls does
                not matter.
        """
        self.count += len(next(iter(features.values())))
        for name, values in features.items():
            self.running[name].add(values)
        kept = {
            name: values.cpu().numpy()
            for name, values in features.items()
            if self.settings.keeps(name)
        }
        if kept:
            self._kept.append((place, kept, None if labels is None else np.asarray(labels)))

    def parts(self) -> list[tuple[int, dict[str, np.ndarray], np.ndarray | None]]:
        """What is kept of each call of `add`, to be handed to another's `take`."""
        return self._kept

    def take(self, parts: list[tuple[int, dict[str, np.ndarray], np.ndarray | None]]) -> None:
        """Take what another has kept; its running statistics are merged apart."""
        self._kept = sorted([*self._kept, *parts], key=lambda part: part[0])

    def kept(self, name: str) -> np.ndarray:
        """Each image's features of this name `[N, D]`, in the order of their places."""
        parts = sorted(self._kept, key=lambda part: part[0])
        return np.concatenate([features[name] for _, features, _ in parts])

    def labels(self) -> np.ndarray:
        """Each image's class, in the same order; raises ValueError where one is missing."""
        parts = sorted(self._kept, key=lambda part: part[0])
        labels = [labels for _, _, labels in parts if labels is not None]
        if len(labels) < len(parts) or not labels:
            raise ValueError(
                "evaluate: images must have labels for figures by class, got none; pass them, or "
                "leave out --per-class"
            )
        return np.concatenate(labels)

    def figures(
        self,
        reference: Reference,
        detectors: Mapping[str, Detector],
        heldout: Reference | None = None,
    ) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
        """All figures, and by class, where those are asked for.

        A class with too few images for a metric has None there.
        """
        whole: dict[str, float] = {}
        for metric in self.settings.metrics:
            detector = detectors[metric.features]
            if metric.kind == "fd":
                statistics = self.running[metric.features].statistics()
                whole |= {metric.name: frechet_distance(statistics, reference.statistics(detector))}
                continue
            new = heldout.features(detector) if heldout is not None else None
            real, fake = reference.features(detector), self.kept(metric.features)
            whole |= _figures(metric, self.settings, real, fake, new)
        if not self.settings.per_class:
            return whole, {}
        return whole, self._by_class(reference, detectors, heldout)

    def _by_class(
        self,
        reference: Reference,
        detectors: Mapping[str, Detector],
        heldout: Reference | None,
    ) -> dict[str, dict[str, float | None]]:
        mine, theirs = self.labels(), reference.labels()
        found: dict[str, dict[str, float | None]] = {str(c): {} for c in np.unique(mine)}
        for metric in self.settings.metrics:
            detector = detectors[metric.features]
            real, fake = reference.features(detector), self.kept(metric.features)
            new = heldout.features(detector) if heldout is not None else None
            for label in np.unique(mine):
                x, y = real[theirs == label], fake[mine == label]
                fits = min(len(x), len(y)) >= _least(metric, self.settings)
                figures: dict[str, float | None] = dict.fromkeys(metric.figures)
                if fits:
                    few = self.settings.fitting(min(len(x), len(y)))
                    figures |= _figures(metric, few, x, y, new)
                found[str(label)] |= figures
        return found


def _least(metric: Metric, settings: Settings) -> int:
    """Images that a metric needs on both sides."""
    return {"pr": settings.pr_neighbour + 1, "dc": settings.dc_neighbour + 1}.get(metric.kind, 2)


def _figures(
    metric: Metric,
    settings: Settings,
    real: np.ndarray,
    fake: np.ndarray,
    heldout: np.ndarray | None,
) -> dict[str, float]:
    """The figures of one metric, by name."""
    device = settings.device
    values: Sequence[float]
    if metric.kind == "fd":
        values = [frechet_distance(fake, real)]
    elif metric.kind == "kid":
        subsets, size = settings.kid_subsets, settings.kid_subset_size
        values = [kernel_distance(real, fake, subsets, size, device=device).mean]
    elif metric.kind == "pr":
        values = precision_recall(real, fake, settings.pr_neighbour, device=device)
    elif metric.kind == "dc":
        values = density_coverage(real, fake, settings.dc_neighbour, device=device)
    elif metric.kind == "cmmd":
        values = [clip_distance(real, fake, device=device)]
    else:
        if heldout is None:
            raise ValueError(
                f"evaluate: {metric.name} must be judged by images that were not trained on, got "
                "none; name a file of theirs with --heldout"
            )
        near = memorisation(fake, real, heldout)
        values = near.share_nearer_than(0.05), near.ratio
    return dict(zip(metric.figures, values, strict=True))


@dataclass(frozen=True)
class Evaluation:
    """Figures, and the protocol that they were taken by.

    protocol: as JSON holds it. values: of each metric, one for each repeat. per_class: likewise,
    by class; None where a class has too few images.
    """

    protocol: dict
    values: dict[str, list[float]]
    per_class: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """The mean of a metric over the repeats."""
        return float(np.mean(self.values[name]))

    def as_dict(self) -> dict:
        """`{"protocol", "metrics": {name: {"mean", "std", "values"}}, "per_class"}`.

        std is that of the values (divided by their number less 1), null for a single one.
        """
        return {
            "protocol": self.protocol,
            "metrics": {name: summary(values) for name, values in self.values.items()},
            "per_class": {
                label: {name: summary(values) for name, values in figures.items()}
                for label, figures in self.per_class.items()
            },
        }


def summary(values: Sequence[float | None]) -> dict:
    """Mean, standard deviation and values of a figure, as JSON holds them."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if len(known) < len(values):
        return {
            "mean": None,
            "std": None,
            "values": [None if v not in known else v for v in values],
        }
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": spread, "values": list(known)}


def joined(
    repeats: Sequence[tuple[dict[str, float], dict[str, dict]]], protocol: dict
) -> Evaluation:
    """One `Evaluation` of what `Collected.figures` gave in each repeat."""
    values = {name: [whole[name] for whole, _ in repeats] for name in repeats[0][0]}
    classes = dict.fromkeys(label for _, by_class in repeats for label in by_class)
    per_class = {
        label: {
            name: [by_class.get(label, {}).get(name) for _, by_class in repeats] for name in values
        }
        for label in classes
    }
    return Evaluation(protocol, values, per_class)


def evaluate(
    images: Any,
    reference: Any,
    features: Callable[[torch.Tensor], Any] | Detector,
    metrics: Iterable[str] = ("fd",),
    labels: Any = None,
    reference_labels: Any = None,
    heldout: Any = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    per_class: bool = False,
    kid_subsets: int | None = 100,
    kid_subset_size: int = 1000,
) -> Evaluation:
    """Measure images against real ones, on features of any kind.

        evaluate(images, real, features=net, metrics=("fd", "kid", "pr"))["fd"]
        evaluate(batches, "ref.npz", features=load_detector("inception"))["fid"]

    Args:
        images: uint8 `[N, C, H, W]`, array or tensor, or an iterable of such batches, as
            `sample(..., on_batch=)` hands them out; memory then does not grow with their number
            where Frechet distances alone are asked for.
        reference: real images likewise, or a file of reference statistics
            (`autoguide-fast evaluate ref`; those of the reference implementation and of ADM).
        features: a function or module that turns uint8 images `[n, C, H, W]` into `[n, D]`, or one
            of the networks that metrics are defined on (`load_detector`).
        metrics: kinds, of `names.KINDS`: "fd", "kid", "pr", "dc", "near". Figures have names of
            their own: "fd", "kid", "precision", "recall" and so on, and on the features of a
            `Detector` "fid", "fd_dinov2", "recall_dinov2".
        labels, reference_labels: integers `[N]`, needed by class.
        heldout: real images that were not trained on, likewise, needed for "near".
        batch_size: images at a time, of arrays.
        device: where to compute; None: where the images, or the module's weights, are.
        per_class: figures for each class, too.
        kid_subsets, kid_subset_size: as for `kernel_distance`; of fewer images than a subset has,
            all are taken.

    Returns:
        An `Evaluation`: `[name]` is a figure, `as_dict()` all of it, with the protocol.

    Raises:
        TypeError, ValueError: bad input, such as images that are not uint8.
    """
    detector = features if isinstance(features, Detector) else of_callable(features, device)
    wanted = parse_metrics(metrics, detector.name)
    if other := {metric.features for metric in wanted} - {detector.name}:
        raise ValueError(
            f"evaluate: metrics must be taken on {detector.name}, got one on {min(other)}; call "
            "evaluate again with those features"
        )
    settings = Settings(tuple(wanted), per_class, kid_subsets, kid_subset_size, device=device)
    detectors = {detector.name: detector}
    known = _reference(reference, detector, batch_size, reference_labels)
    unseen = None if heldout is None else _reference(heldout, detector, batch_size, None)
    collected = Collected(settings)
    size: tuple[int, ...] = ()
    place = 0
    for part in _batches(images, batch_size):
        size = tuple(part.shape[1:])
        mine = None if labels is None else np.asarray(labels)[place : place + len(part)]
        collected.add({detector.name: detector(part)}, mine, place)
        place += len(part)
    if not collected.count:
        raise ValueError("evaluate: images must hold at least two, got none; pass some")
    if per_class and (labels is None or len(np.asarray(labels)) != place):
        raise ValueError(
            f"evaluate: labels must be one for each of the {place} images, got "
            f"{'none' if labels is None else len(np.asarray(labels))}; pass them"
        )
    fewest = collected.count
    if not isinstance(known, ReferenceFile) and settings.keeps(detector.name):
        fewest = min(fewest, len(known.features(detector)))
    collected.settings = settings = settings.fitting(fewest)
    protocol = {
        "versions": versions(),
        "images": {"count": collected.count, "size": list(size), "rounding": "uint8, as given"},
        "features": {detector.name: {**detector.about, "width": detector.width}},
        "metrics": settings.about(),
        "reference": {"file": known.path.name, "sha256": known.sha256, "protocol": known.protocol}
        if isinstance(known, ReferenceFile)
        else {"file": None},
    }
    return joined([collected.figures(known, detectors, unseen)], protocol)


def _reference(value: Any, detector: Detector, batch_size: int, labels: Any) -> Reference:
    if isinstance(value, (ReferenceFile, ReferenceArrays)):
        return value
    if isinstance(value, (str, bytes)) or hasattr(value, "__fspath__"):
        return ReferenceFile(value)
    parts = [detector(part).cpu().numpy() for part in _batches(value, batch_size)]
    if not parts:
        raise ValueError("evaluate: reference must hold at least two images, got none; pass some")
    return ReferenceArrays({detector.name: np.concatenate(parts)}, labels)


def _batches(images: Any, batch_size: int) -> Iterator[torch.Tensor]:
    """Images `[n, C, H, W]` at a time, of one array or of an iterable of such."""
    if isinstance(images, (torch.Tensor, np.ndarray)):
        images = torch.as_tensor(images)
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
        return
    for part in images:
        yield torch.as_tensor(part)
