"""From images to the float64 feature matrices that every metric takes."""

from __future__ import annotations

import numpy as np


def pixel_features(images) -> np.ndarray:
    """Flatten images to one vector of pixels each: `x / 127.5 - 1`.

    The scale is the one in which pixel models work, so black is -1 and white is +1.

    Args:
        images: uint8 `[N, C, H, W]` (or any shape `[N, ...]`), array or tensor.

    Returns:
        float64 `[N, C*H*W]` in [-1, 1].

    Raises:
        TypeError: `images` is not uint8.
    """
    images = to_numpy(images)
    if images.dtype != np.uint8:
        raise TypeError(
            f"pixel_features: images must be uint8, got {images.dtype}; "
            "pass decoded images, or flatten other features yourself"
        )
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def as_features(values, function: str, argument: str, at_least: int = 1) -> np.ndarray:
    """Return `values` as a finite float64 matrix `[N, D]`, or raise in the name of `function`.

    Raises:
        ValueError: not two-dimensional, fewer than `at_least` rows, no columns, or not finite.
    """
    matrix = to_numpy(values)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(
            f"{function}: {argument} must have shape [N, D], got {list(matrix.shape)}; "
            "flatten each image or feature map to one row (see pixel_features)"
        )
    if len(matrix) < at_least:
        raise ValueError(
            f"{function}: {argument} must have at least {at_least} rows, got {len(matrix)}; "
            "pass more samples"
        )
    matrix = matrix.astype(np.float64)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{function}: {argument} must be finite, got NaN or infinity in "
            f"{np.count_nonzero(~finite)} of {len(matrix)} rows; look at the samples first"
        )
    return matrix


def check_same_width(function: str, **matrices: np.ndarray) -> None:
    """Raise a ValueError unless all matrices, given by argument name, have as many columns."""
    (first, one), *others = matrices.items()
    for name, other in others:
        if other.shape[1] != one.shape[1]:
            raise ValueError(
                f"{function}: {name} must have as many columns as {first}, got "
                f"{other.shape[1]} and {one.shape[1]}; compute both with the same features"
            )


def to_numpy(values) -> np.ndarray:
    """Return an array or a tensor, on any device, as a NumPy array."""
    if hasattr(values, "detach"):  # a tensor, on any device
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()  # NumPy knows no bfloat16
        return values.numpy()
    return np.asarray(values)
