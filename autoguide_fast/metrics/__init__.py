"""How good samples are: distance to the data, fidelity, diversity, memorisation, class agreement.

A *feature* is any vector that stands for an image; `pixel_features` makes the simplest kind, the
pixels themselves, `load_detector` brings the networks that FID and its kin are defined on.
Distances and shares are computed in float64, from NumPy arrays or tensors, on the CPU unless told
otherwise.
`evaluate` does it all, from images to figures and the protocol that they were taken by.
"""

from .classifier import class_agreement, train_classifier
from .detectors import Detector, load_detector
from .energy import energy_distance
from .evaluation import Evaluation, evaluate
from .features import pixel_features, two_scale_features
from .frechet import feature_statistics, frechet_distance
from .manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from .memorisation import Memorisation, memorisation
from .mmd import KernelDistance, clip_distance, kernel_distance
from .quality import Quality, Reference
from .reference_file import ReferenceFile, write_reference
from .running import RunningStatistics

__all__ = [
    "DensityCoverage",
    "Detector",
    "Evaluation",
    "KernelDistance",
    "Memorisation",
    "PrecisionRecall",
    "Quality",
    "Reference",
    "ReferenceFile",
    "RunningStatistics",
    "class_agreement",
    "clip_distance",
    "density_coverage",
    "energy_distance",
    "evaluate",
    "feature_statistics",
    "frechet_distance",
    "kernel_distance",
    "load_detector",
    "memorisation",
    "pixel_features",
    "precision_recall",
    "train_classifier",
    "two_scale_features",
    "write_reference",
]
