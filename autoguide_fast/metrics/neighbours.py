"""Which points lie within reach of which others, some rows at a time, on any device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

# Squared distances come from |p|^2 + |q|^2 - 2 p.q in float64; what cancels is of the order of
# 2^-52 times the squared norms times a few tens. 1e-13 of them is more than rounding and far
# less than any distance that matters.
_ROUNDING = 1e-13


class Balls:
    """Balls around points, each reaching to that point's k-th nearest neighbour among them.

    Args:
        points: float64 `[N, D]`, N > k.
        k: which neighbour sets the radius, >= 1; a point is not its own.
        chunk: rows compared at a time; memory is about 16 * chunk * N bytes.
        device: where to compute; None: the CPU.
    """

    def __init__(
        self, points: np.ndarray, k: int, chunk: int, device: torch.device | str | None = None
    ) -> None:
        self.chunk, self.device = chunk, torch.device(device or "cpu")
        # Distances do not change with the origin; near the points' mean they cancel least.
        self._origin = points.mean(axis=0)
        self._points = torch.from_numpy(points - self._origin).to(self.device)
        self._norms = self._points.square().sum(dim=1)
        reach = []
        for start in range(0, len(points), chunk):
            rows = self._points[start : start + chunk]
            squared = self._squared(rows, self._norms[start : start + chunk])
            own = torch.arange(len(rows), device=self.device)
            squared[own, start + own] = torch.inf
            reach.append(squared.kthvalue(k, dim=1).values)
        self._reach = torch.cat(reach).clamp(min=0) + _ROUNDING * self._norms

    def __len__(self) -> int:
        return len(self._points)

    def holding(self, queries: np.ndarray) -> Iterator[torch.Tensor]:
        """For some queries `[M, D]` after the other: bool `[rows, N]`, which balls hold them."""
        for start in range(0, len(queries), self.chunk):
            rows = queries[start : start + self.chunk] - self._origin
            part = torch.from_numpy(rows).to(self.device)
            norms = part.square().sum(dim=1) * (1 - _ROUNDING)
            yield self._squared(part, norms) <= self._reach

    def _squared(self, rows: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        return torch.addmm(norms[:, None] + self._norms, rows, self._points.T, alpha=-2)
