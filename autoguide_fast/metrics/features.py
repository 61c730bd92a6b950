"""From images to the float64 feature matrices that every metric takes."""

from __future__ import annotations

import operator
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

FINITE_BELOW = 1e100  # beyond, squares leave the range of float64


def pixel_features(images: ArrayLike) -> np.ndarray:
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


def two_scale_features(images: ArrayLike) -> np.ndarray:
    """Flatten images too large to compare pixel by pixel: what they show, and how fine it is.

    That is the image at a quarter of its size, each pixel the mean of 4x4, and its middle 8x8
    pixels as they are, all on the scale of `pixel_features`.

    Args:
        images: uint8 `[N, C, H, W]`, array or tensor, H and W divisible by 4 and >= 8.

    Returns:
        float64 `[N, C * (H/4 * W/4 + 64)]` in [-1, 1].

    Raises:
        TypeError: `images` is not uint8.
        ValueError: another shape.
    """
    images = to_numpy(images)
    if images.ndim != 4 or min(images.shape[2:]) < 8 or images.shape[2] % 4 or images.shape[3] % 4:
        raise ValueError(
            "two_scale_features: images must be [N, C, H, W] with H and W divisible by 4 and >= 8, "
            f"got {list(images.shape)}; use pixel_features"
        )
    return two_scales(pixel_features(images).reshape(images.shape))


def two_scales(values: np.ndarray) -> np.ndarray:
    """`two_scale_features` of numbers as they are, `[N, C, H, W]`, such as latents."""
    n, c, h, w = values.shape
    small = values.reshape(n, c, h // 4, 4, w // 4, 4).mean(axis=(3, 5))
    middle = values[:, :, h // 2 - 4 : h // 2 + 4, w // 2 - 4 : w // 2 + 4]
    return np.concatenate([small.reshape(n, -1), middle.reshape(n, -1)], axis=1)


def as_features(values: ArrayLike, function: str, argument: str, at_least: int = 1) -> np.ndarray:
    """Return `values` as a finite float64 matrix `[N, D]`, or raise in the name of `function`.

    Raises:
        ValueError: not two-dimensional, fewer than `at_least` rows, no columns, or not finite.
    """
    matrix = to_numpy(values)
    if matrix.dtype.kind not in "biuf":
        raise ValueError(
            f"{function}: {argument} must be real numbers, got {matrix.dtype}; pass a matrix of "
            "floats"
        )
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
    finite = (np.abs(matrix) < FINITE_BELOW).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{function}: {argument} must be finite, got NaN, infinity or more than 1e100 in "
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


def to_numpy(values: ArrayLike) -> np.ndarray:
    """Return an array or a tensor, on any device, as a NumPy array."""
    if hasattr(values, "detach"):  # a tensor, on any device
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.double()  # NumPy knows no bfloat16
        return values.numpy()
    return np.asarray(values)


def as_count(value: SupportsIndex, function: str, argument: str) -> int:
    """Return `value` as an int >= 1, or raise in the name of `function`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(
            f"{function}: {argument} must be a whole number, got {value!r}; round it"
        ) from None
    if count < 1:
        raise ValueError(f"{function}: {argument} must be >= 1, got {count}; raise it")
    return count
