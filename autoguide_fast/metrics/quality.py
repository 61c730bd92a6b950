"""One yardstick for many sets of samples: a reference set prepared once, then asked repeatedly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from .classifier import class_agreement, train_classifier
from .features import as_features, pixel_features
from .frechet import feature_statistics, frechet_distance
from .manifold import precision_recall


@dataclass(frozen=True)
class Quality:
    """What was measured on one set of samples.

    Attributes:
        nimg: number of samples.
        frechet: Frechet distance to the reference in pixels; lower is better.
        precision, recall: shares in [0, 1]; higher is better.
        agreement: share of samples that show the class asked for; NaN without labels.
    """

    nimg: int
    frechet: float
    precision: float
    recall: float
    agreement: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name, ready for JSON but for NaN."""
        return asdict(self)


class Reference:
    """Real images against which samples are judged, in pixels scaled to [-1, 1].

    Args:
        images: uint8 `[N, C, H, W]`, array or tensor.
        labels: integers `[N]`, or None.
        k: neighbour that sets the radii of precision and recall.
        extract: turns images into the features `[N, D]` that are compared.

    Raises:
        ValueError, TypeError: as the metrics that it prepares.
    """

    def __init__(
        self,
        images: ArrayLike,
        labels: ArrayLike | None,
        k: int = 3,
        extract: Callable[[ArrayLike], np.ndarray] = pixel_features,
    ) -> None:
        self.extract = extract
        # Copied: `extract` may return the same buffer every time.
        self.features = as_features(extract(images), "Reference", "extract's features")
        self.statistics = feature_statistics(self.features)
        self.classifier = None if labels is None else train_classifier(self.features, labels)
        self.k = k

    def frechet(self, images: ArrayLike) -> float:
        """Return the Frechet distance between the reference and uint8 images `[M, C, H, W]`."""
        return frechet_distance(feature_statistics(self.extract(images)), self.statistics)

    def quality(self, images: ArrayLike, labels: ArrayLike | None) -> Quality:
        """Judge samples.

        Precision and recall want as many samples as there are reference images. If there are
        more, they are judged in equal groups of the reference's size, in their order, and the
        figures averaged; what fills no group is left out of these two figures.

        Args:
            images: uint8 `[M, C, H, W]`, M > k, array or tensor.
            labels: integers `[M]`, the classes asked for, or None.

        Returns:
            A `Quality`.
        """
        features = as_features(self.extract(images), "Reference", "extract's features")
        size = min(len(self.features), len(features))
        groups = [
            precision_recall(self.features, features[start : start + size], self.k)
            for start in range(0, len(features) - size + 1, max(size, 1))
        ]
        agreement = float("nan")
        if self.classifier is not None and labels is not None:
            agreement = class_agreement(self.classifier, features, labels)
        return Quality(
            nimg=len(features),
            frechet=frechet_distance(feature_statistics(features), self.statistics),
            precision=float(np.mean([group.precision for group in groups])),
            recall=float(np.mean([group.recall for group in groups])),
            agreement=agreement,
        )
