"""Does a sample show the class that was asked for? A classifier of pixels is the judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .features import as_features, to_numpy

if TYPE_CHECKING:
    from sklearn.svm import SVC


def train_classifier(features: ArrayLike, labels: ArrayLike) -> SVC:
    """Train a support vector machine with radial basis functions on labelled features.

    On the digits' pixels it is fast (a fraction of a second) and right on about 99 % of held-out
    images, which is the ceiling for `class_agreement` there. The same input gives the same
    classifier.

    Args:
        features: `[N, D]`, array or tensor.
        labels: integers `[N]`, at least two classes.

    Returns:
        A fitted `sklearn.svm.SVC`.

    Raises:
        ValueError: wrong shapes, NaN or infinity, fewer than two classes.
    """
    from sklearn.svm import SVC

    features = as_features(features, "train_classifier", "features")
    labels = _check_labels(labels, len(features), "train_classifier")
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"train_classifier: labels must hold at least two classes, got "
            f"{np.unique(labels).tolist()}; pass the whole training set"
        )
    return SVC(C=10.0, gamma="scale").fit(features, labels)


def class_agreement(classifier: SVC, features: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of samples whose predicted class is the one that was asked for.

    Args:
        classifier: anything with a scikit-learn `predict`, such as `train_classifier` returns.
        features: `[N, D]` of the samples, the kind of features the classifier was trained on.
        labels: integers `[N]`, the classes that the samples were asked to show.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity.
    """
    features = as_features(features, "class_agreement", "features")
    labels = _check_labels(labels, len(features), "class_agreement")
    return float(np.mean(classifier.predict(features) == labels))


def _check_labels(labels: ArrayLike, count: int, function: str) -> np.ndarray:
    labels = to_numpy(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{function}: labels must be integers of shape [{count}], got {labels.dtype} of shape "
            f"{list(labels.shape)}; pass one class per row of features"
        )
    return labels
