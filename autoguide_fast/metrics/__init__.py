"""How good samples are: distance to the data, fidelity, diversity, memorisation, class agreement.

Everything here runs on the CPU in float64, on NumPy arrays or tensors. A *feature* is any vector
that stands for an image; `pixel_features` makes the simplest kind, the pixels themselves.
"""

from .classifier import class_agreement, train_classifier
from .energy import energy_distance
from .features import pixel_features, two_scale_features
from .frechet import feature_statistics, frechet_distance
from .manifold import PrecisionRecall, precision_recall
from .memorisation import Memorisation, memorisation
from .quality import Quality, Reference

__all__ = [
    "Memorisation",
    "PrecisionRecall",
    "Quality",
    "Reference",
    "class_agreement",
    "energy_distance",
    "feature_statistics",
    "frechet_distance",
    "memorisation",
    "pixel_features",
    "precision_recall",
    "train_classifier",
    "two_scale_features",
]
