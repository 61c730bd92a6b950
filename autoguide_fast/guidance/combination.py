"""Linear combinations of images that are put together before they are computed.

What ways of guiding make of the nets' outputs is mostly this: a sum of the state, the outputs and
what is remembered of earlier steps, with a coefficient for each image that follows from inner
products of these. So formulas are written on `Combination`s, which behave like the tensors that
they stand for. Adding them adds coefficients; `dot` takes all inner products in one pass over the
memory (`ops.inner_products`), and what comes out in the end is one pass more (`ops.combine`),
however long the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops

PerImage = float | Tensor  # a number, 0-dim, or `[N, 1, ...]`

Images = Any  # a tensor `[N, ...]` or a `Combination` that stands for one


class Basis:
    """The tensors of one evaluation that combinations are made of.

    Args:
        terms: `[N, ...]` each, of one shape and floating type.
    """

    def __init__(self, *terms: Tensor) -> None:
        self.terms = list(terms)
        self._products: Tensor | None = None

    def image(self, coefficients: Mapping[int, PerImage]) -> Combination:
        """The combination of the terms with these numbers."""
        return Combination(self, dict(coefficients))

    def of(self, value: Images) -> Combination:
        """`value` as a combination: a tensor becomes a term."""
        if isinstance(value, Combination):
            return value
        for i, term in enumerate(self.terms):
            if term is value:
                return self.image({i: 1.0})
        self.terms.append(value.to(self.terms[0].dtype))
        self._products = None
        return self.image({len(self.terms) - 1: 1.0})

    def products(self) -> Tensor:
        """`ops.inner_products` of the terms: float64 `[N, M + 1, M + 1]`."""
        if self._products is None:
            self._products = ops.inner_products(*self.terms)
        return self._products


class Combination:
    """A linear combination of the terms of a `Basis`; behaves like the tensor that it stands for.

    `tensor()` computes it, as any function of torch does that it is given to.
    """

    def __init__(self, basis: Basis, coefficients: dict[int, PerImage]) -> None:
        self.basis, self.coefficients = basis, coefficients

    @property
    def shape(self) -> torch.Size:
        """That of the tensor, `[N, ...]`."""
        return self.basis.terms[0].shape

    @property
    def ndim(self) -> int:
        """Number of dimensions of the tensor."""
        return self.basis.terms[0].ndim

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensor."""
        return self.basis.terms[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.basis.terms[0].device

    def __len__(self) -> int:
        return len(self.basis.terms[0])

    def tensor(self) -> Tensor:
        """The tensor; to be read only, for it may be one of the terms itself."""
        terms = self.basis.terms
        if len(self.coefficients) == 1:
            (index, factor), *_ = self.coefficients.items()
            if isinstance(factor, float) and factor == 1:
                return terms[index]
        wanted = list(self.coefficients.items()) or [(0, 0.0)]
        total: list[Tensor] = []
        while wanted:
            room = ops.MOST_TERMS - len(total)
            part, wanted = wanted[:room], wanted[room:]
            factors = [1.0] * len(total) + [factor for _, factor in part]
            rows = _rows(factors, self.device)
            total = [ops.combine(rows, *total, *(terms[i] for i, _ in part))]
        return total[0]

    def __add__(self, other: Images) -> Images:
        if not self._can_join(other):
            return self.tensor() + _tensor(other)
        joined = dict(self.coefficients)
        for i, factor in self.basis.of(other).coefficients.items():
            joined[i] = joined[i] + factor if i in joined else factor
        return Combination(self.basis, joined)

    def __mul__(self, other: Images) -> Images:
        if not self._can_scale(other):
            return self.tensor() * _tensor(other)
        scaled = {i: factor * other for i, factor in self.coefficients.items()}
        return Combination(self.basis, scaled)

    def __truediv__(self, other: Images) -> Images:
        if not self._can_scale(other):
            return self.tensor() / _tensor(other)
        return Combination(self.basis, {i: c / other for i, c in self.coefficients.items()})

    def __neg__(self) -> Combination:
        return self * -1.0

    def __sub__(self, other: Images) -> Images:
        return self + -other

    def __rsub__(self, other: Images) -> Images:
        return -self + other

    def __rtruediv__(self, other: Images) -> Tensor:
        return other / self.tensor()

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, exponent: Images) -> Tensor:
        return self.tensor() ** _tensor(exponent)

    def __abs__(self) -> Tensor:
        return self.tensor().abs()

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor()[index]

    def __lt__(self, other: Images) -> Tensor:
        return self.tensor() < _tensor(other)

    def __le__(self, other: Images) -> Tensor:
        return self.tensor() <= _tensor(other)

    def __gt__(self, other: Images) -> Tensor:
        return self.tensor() > _tensor(other)

    def __ge__(self, other: Images) -> Tensor:
        return self.tensor() >= _tensor(other)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("basis", "coefficients"):
            raise AttributeError(name)
        return getattr(self.tensor(), name)  # methods of tensors

    def _can_join(self, other: Images) -> bool:
        if isinstance(other, Combination):
            return other.basis is self.basis
        return (
            isinstance(other, Tensor) and other.shape == self.shape and other.device == self.device
        )

    def _can_scale(self, other: Images) -> bool:
        if isinstance(other, Tensor):
            per_image = other.ndim == self.ndim and other.shape[1:].numel() == 1
            return per_image or other.ndim == 0
        return isinstance(other, (int, float))

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if name in _OPERATORS and len(args) == 2 and not kwargs:
            reflected, left = _OPERATORS[name], args[0]
            if isinstance(left, Tensor) and hasattr(args[1], reflected):
                return getattr(args[1], reflected)(left)
        return func(*_tensors(args), **_tensors(kwargs or {}))


# Operators between a tensor on the left and a combination on the right.
_OPERATORS = {"add": "__radd__", "sub": "__rsub__", "mul": "__rmul__"}


def _tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Combination) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_tensors, value))
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return _tensor(value)


def _on_host(factors: Sequence[PerImage], device: torch.device) -> np.ndarray | None:
    """Coefficients as `[N or 1, M]`, where no derivative is asked for; None elsewhere.

    NumPy does the same to a few numbers in a fifth of the time.
    """
    tensors = [f for f in factors if isinstance(f, Tensor)]
    if device.type != "cpu" or any(f.requires_grad for f in tensors):
        return None
    rows = np.empty((max((f.numel() for f in tensors), default=1), len(factors)))
    for i, f in enumerate(factors):
        rows[:, i] = f.numpy().reshape(-1) if isinstance(f, Tensor) else f
    return rows


def _rows(factors: Sequence[PerImage], device: torch.device) -> Tensor:
    """Coefficients as `[N or 1, M]`, float64."""
    if (numbers := _on_host(factors, device)) is not None:
        return torch.from_numpy(numbers)
    columns = [
        factor.reshape(-1).to(torch.float64)
        if isinstance(factor, Tensor)
        # Filled on the device: a copy to it could not be recorded.
        else torch.full([1], factor, dtype=torch.float64, device=device)
        for factor in factors
    ]
    return torch.stack(torch.broadcast_tensors(*columns), dim=1)


def as_tensor(value: Images) -> Tensor:
    """A tensor that nobody else holds, of what a formula returned."""
    if isinstance(value, Combination):
        found = value.tensor()
        held = any(found is term for term in value.basis.terms)
        return found.clone() if held else found
    return value


def remembered(value: Images) -> Tensor:
    """A tensor of `value` that keeps its numbers while the sampler goes on."""
    found = value.tensor() if isinstance(value, Combination) else value
    return found.detach().clone()


def dot(a: Images, b: Images) -> Tensor:
    """Inner product `<a, b>` of images, image by image: float64 `[N, 1, ...]`.

    `a` and `b` are batches `[N, ...]` of one shape. Differentiable.
    """
    basis = next((v.basis for v in (a, b) if isinstance(v, Combination)), None)
    shape = [len(a), *[1] * (a.ndim - 1)]
    if basis is None or len(basis.terms) >= ops.MOST_TERMS:
        a, b = _tensor(a), _tensor(b)
        return (a.double() * b.double()).flatten(1).sum(1).reshape(shape)
    known = [basis.of(value) for value in (a, b)]  # before rows are as long as the basis
    products = basis.products()
    a, b = (_on_host(_factors(value), value.device) for value in known)
    if not products.requires_grad and a is not None and b is not None:
        found = np.einsum("nij,ni,nj->n", products.numpy()[:, :-1, :-1], a, b)
        return torch.from_numpy(found).view(shape)
    left, right = map(_row_of, known)
    return (left[:, None] @ products[:, :-1, :-1] @ right[:, :, None]).reshape(shape)


def norm(a: Images) -> Tensor:
    """Euclidean length of each image, float64 `[N, 1, ...]`."""
    return dot(a, a).clamp_min(0).sqrt()


def std(a: Images) -> Tensor:
    """Standard deviation over the elements of each image, float64 `[N, 1, ...]`, by N not N - 1."""
    if not isinstance(a, Combination) or len(a.basis.terms) > ops.MOST_TERMS:
        flat = _tensor(a).double().flatten(1)
        return flat.std(1, correction=0).reshape(len(a), *[1] * (a.ndim - 1))
    squares = dot(a, a).flatten()
    row = _row_of(a)
    products = a.basis.products()
    sums = (row * products[:, : row.shape[1], -1]).sum(1)
    count = products[:, -1, -1]
    variance = (squares / count - (sums / count) ** 2).clamp_min(0)
    return variance.sqrt().reshape(len(a), *[1] * (a.ndim - 1))


def _factors(value: Combination) -> list[PerImage]:
    """Coefficients of all terms."""
    return [value.coefficients.get(i, 0.0) for i in range(len(value.basis.terms))]


def _row_of(value: Combination) -> Tensor:
    """Coefficients of all terms, `[N or 1, M]`."""
    return _rows(_factors(value), value.device)
