"""Does a model invent images or repeat its training set? Nearest neighbours tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .features import as_features, check_same_width


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image, of samples and of images held out of training.

    Held-out images show how near to the training set a new image of the same kind lies. Samples
    much nearer than that are repeats; samples as near are as new as new data.

    Attributes:
        sample_distances: float64 `[N]`, Euclidean, in units of the features.
        heldout_distances: float64 `[M]`.
        nearest: int64 `[N]`, row of the training image nearest to each sample.
    """

    sample_distances: np.ndarray
    heldout_distances: np.ndarray
    nearest: np.ndarray

    @property
    def sample_median(self) -> float:
        """Median distance of a sample to its nearest training image."""
        return float(np.median(self.sample_distances))

    @property
    def heldout_median(self) -> float:
        """Median distance of a held-out image to its nearest training image."""
        return float(np.median(self.heldout_distances))

    @property
    def ratio(self) -> float:
        """`sample_median / heldout_median`: near 0 for a memorised set, 1 for new data."""
        return self.sample_median / self.heldout_median if self.heldout_median else float("nan")

    def share_nearer_than(self, quantile: float = 0.05) -> float:
        """Return the share of samples nearer than the held-out images' `quantile`.

        Equal to `quantile` for samples that lie like held-out images do; larger means repeats.
        """
        return float(np.mean(self.sample_distances < np.quantile(self.heldout_distances, quantile)))

    def summary(self) -> dict[str, float]:
        """Return the figures for a report, by name."""
        return {
            "sample_median": self.sample_median,
            "heldout_median": self.heldout_median,
            "ratio": self.ratio,
            "sample_q05": float(np.quantile(self.sample_distances, 0.05)),
            "heldout_q05": float(np.quantile(self.heldout_distances, 0.05)),
            "share_nearer_than_heldout_q05": self.share_nearer_than(0.05),
        }


def memorisation(samples: ArrayLike, training: ArrayLike, heldout: ArrayLike) -> Memorisation:
    """Compare how near samples and held-out images lie to the training set.

    Args:
        samples: features of generated images `[N, D]`, array or tensor.
        training: features of the training images `[T, D]`.
        heldout: features of images of the same kind that were not trained on `[M, D]`.

    Returns:
        A `Memorisation` with every distance and their summary.

    Raises:
        ValueError: wrong shapes, different widths, an empty set, NaN or infinity.
    """
    from sklearn.neighbors import NearestNeighbors

    samples = as_features(samples, "memorisation", "samples")
    training = as_features(training, "memorisation", "training")
    heldout = as_features(heldout, "memorisation", "heldout")
    check_same_width("memorisation", training=training, samples=samples, heldout=heldout)
    neighbours = NearestNeighbors(n_neighbors=1).fit(training)
    _, nearest = neighbours.kneighbors(samples)
    _, heldout_nearest = neighbours.kneighbors(heldout)
    # Distances are taken again as plain differences, so that a copy is at exactly 0.
    return Memorisation(
        sample_distances=np.linalg.norm(samples - training[nearest[:, 0]], axis=1),
        heldout_distances=np.linalg.norm(heldout - training[heldout_nearest[:, 0]], axis=1),
        nearest=nearest[:, 0],
    )
