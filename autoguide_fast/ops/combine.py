"""Linear combinations of images, and their inner products: what ways of guiding are made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._library import dense_empty, differentiable, fake, op

_combine = op("combine")
_inner_products = op("inner_products")

MOST_TERMS = 8


def combine(coefficients: Tensor, *terms: Tensor) -> Tensor:
    """Linear combination of images, image by image: `y[n] = sum_m coefficients[n, m] terms[m][n]`.

    Args:
        coefficients: float64 `[N, M]`, or `[1, M]` for the same in all images.
        terms: M batches `[N, ...]`, 8 at most, of one shape and floating type, any strides.

    Returns:
        A batch of the shape and type of the terms, dense as for `mp_silu`. Computed in float32
        (float64 for float64 terms).

    Raises:
        RuntimeError: shapes or types do not fit.

    Differentiable in all tensors, by plain PyTorch.
    """
    return _combine(coefficients, terms)


def combine_reference(coefficients: Tensor, *terms: Tensor) -> Tensor:
    """`combine` in plain PyTorch."""
    shape = [-1, *[1] * (terms[0].ndim - 1)]
    factors = [column.reshape(shape) for column in coefficients.double().unbind(1)]
    total = sum(factor * term.double() for factor, term in zip(factors, terms, strict=True))
    assert isinstance(total, Tensor)
    return total.to(terms[0].dtype)


def inner_products(term: Tensor, *terms: Tensor) -> Tensor:
    """Inner products of images with each other, image by image, and their sums.

    Args:
        term, terms: M batches `[N, ...]`, 8 at most, of one shape and floating type, any strides.

    Returns:
        float64 `[N, M + 1, M + 1]`, symmetric: `y[n, a, b] = <terms[a][n], terms[b][n]>`, with
        images of ones as the last term, so that `y[n, a, M]` is a sum and `y[n, M, M]` the number
        of elements. Computed in float64.

    Raises:
        RuntimeError: shapes or types do not fit.

    Differentiable in all tensors, by plain PyTorch.
    """
    return _inner_products((term, *terms))


def inner_products_reference(term: Tensor, *terms: Tensor) -> Tensor:
    """`inner_products` in plain PyTorch."""
    flat = torch.stack([t.double().flatten(1) for t in (term, *terms)], dim=1)
    extended = torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1)
    return extended @ extended.mT


@fake("combine")
def _(coefficients: Tensor, terms: Sequence[Tensor]) -> Tensor:
    return dense_empty(terms[0])


@fake("inner_products")
def _(terms: Sequence[Tensor]) -> Tensor:
    side = len(terms) + 1
    return terms[0].new_empty([len(terms[0]), side, side], dtype=torch.float64)


def _types_of_combine(coefficients: Tensor, terms: Sequence[Tensor]) -> list[torch.dtype]:
    return [terms[0].dtype]


def _float64(*inputs: Any) -> list[torch.dtype]:
    return [torch.float64]


differentiable(
    "combine",
    lambda coefficients, terms: combine_reference(coefficients, *terms),
    dtypes=_types_of_combine,
)
differentiable("inner_products", lambda terms: inner_products_reference(*terms), dtypes=_float64)
