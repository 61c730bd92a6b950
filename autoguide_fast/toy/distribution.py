"""The toy's data: two classes of points in the plane, each a fractal tree of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

PER_BRANCH = 8  # Gaussians of one weight and covariance, evenly spaced on a line
CLASSES = ("A", "B", "AB")
_CHUNK = 512  # points at a time: what is computed for them stays in a core's cache
_LEAST = -80.0  # exponents below the largest by more count so: processors are slow with less
_TINY = 1e-30


class Fractal:
    """A mixture of Gaussians along the branches of trees: `fractal` makes those of the toy.

    Noisy points are those of the distribution with Gaussian noise of standard deviation `sigma`
    added, so that density and score are known exactly at every noise level.

    Args:
        weight: probability of each branch, `[B]`, with sum 1.
        first, last: means of the first and the last of its 8 Gaussians, `[B, 2]`.
        covariance: of each of its Gaussians, `[B, 2, 2]`.

    All in float64. The branches of a tree are in depth-first order: seven levels, 127 of them.
    """

    def __init__(self, weight: Tensor, first: Tensor, last: Tensor, covariance: Tensor) -> None:
        self.weight, self.first, self.last = weight, first, last
        self.covariance = covariance

    @property
    def means(self) -> Tensor:
        """Means of all Gaussians, `[B, 8, 2]`."""
        place = torch.linspace(0, 1, PER_BRANCH, dtype=self.first.dtype)[:, None]
        return torch.lerp(self.first[:, None], self.last[:, None], place)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` points, float32 `[count, 2]` on the CPU."""
        gaussians = (self.weight / PER_BRANCH).repeat_interleave(PER_BRANCH)
        chosen = torch.multinomial(gaussians, count, replacement=True, generator=generator)
        factor = torch.linalg.cholesky(self.covariance)[chosen // PER_BRANCH]
        noise = torch.randn(count, 2, 1, dtype=factor.dtype, generator=generator, device="cpu")
        return (self.means.flatten(0, 1)[chosen] + (factor @ noise)[..., 0]).float()

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Log-density `[N]` of noisy points `x [N, 2]`, at one noise level or one each, `[N]`."""
        return self._evaluate(x, sigma)[0]

    def score(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """Gradient `[N, 2]` of the log-density with respect to `x`."""
        return self._evaluate(x, sigma)[1]

    def denoised(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """What a perfect denoiser says of `x [N, 2]`: the mean of all points that it may be."""
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1)
        return x + level**2 * self.score(x, sigma)

    def branches(self, x: Tensor) -> Tensor:
        """The probability that each of the points `x [N, 2]` is of each branch, `[N, B]`."""
        return torch.cat([total / total.sum(1, keepdim=True) for total, *_ in self._parts(x, 0.0)])

    def distance(self, x: Tensor) -> Tensor:
        """Distance `[N]` from the points `x [N, 2]` to the nearest branch's middle line."""
        first, along = self.first.to(x), (self.last - self.first).to(x)
        nearest = []
        for points in x.split(_CHUNK):
            seen = points[:, None] - first
            place = ((seen * along).sum(2) / (along**2).sum(1)).clamp(0, 1)
            nearest.append((seen - place[..., None] * along).norm(dim=2).amin(1))
        return torch.cat(nearest)

    def _evaluate(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """Log-density and score."""
        logs, scores = [], []
        for total, peak, slope in self._parts(x, sigma):
            mass = total.sum(1)
            logs.append(peak + mass.log())
            scores.append(slope / mass[:, None])
        return torch.cat(logs), torch.cat(scores)

    def _parts(self, x: Tensor, sigma: Tensor | float) -> Iterator[tuple[Tensor, ...]]:
        """Each branch's share in the density, over `exp(peak)`; `peak [n]`; the slope `[n, 2]`.

        For some of the points at a time; the shares are `[n, B]`.

        Along the axes of a branch's covariance, of variances v_1 and v_2, with d the place of the
        point seen from the first Gaussian and t the step to the next, the exponent of the k-th is
        `-sum_i (d_i - k t_i)^2 / (2 (v_i + sigma^2))`: a parabola in k, whose three coefficients
        are the same work for a branch as for one of its Gaussians.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        variances, axes = torch.linalg.eigh(self.covariance)
        steps = (self.last - self.first) / (PER_BRANCH - 1)
        v1, v2 = variances.to(x).unbind(1)
        ends = [axes[:, :, i] for i in (0, 1)]  # unit vectors, [B, 2]
        t1, t2 = ((steps * axis).sum(1).to(x) for axis in ends)
        origins = [-(self.first * axis).sum(1).to(x) for axis in ends]
        axis1, axis2 = (axis.to(x) for axis in ends)
        constant = (self.weight / (PER_BRANCH * 2 * math.pi)).log().to(x)
        for points, levels in zip(x.split(_CHUNK), sigma.split(_CHUNK), strict=True):
            variance = levels[:, None] ** 2
            m1, m2 = (v1 + variance).reciprocal_(), (v2 + variance).reciprocal_()
            d1 = torch.addmm(origins[0], points, axis1.T)
            d2 = torch.addmm(origins[1], points, axis2.T)
            md1, md2 = m1 * d1, m2 * d2
            squares = (d1 * md1).addcmul_(d2, md2).sub_((m1 * m2).log_())
            c0 = torch.add(constant, squares, alpha=-0.5)
            c1 = (t1 * md1).addcmul_(t2, md2)
            c2 = (m1 * (t1**2 / -2)).addcmul_(m2, t2**2 / -2)
            top = (c1 / (-2 * c2).clamp_(min=_TINY)).round_().clamp_(0, PER_BRANCH - 1)
            peak = top.mul(c2).add_(c1).mul_(top).add_(c0).amax(dim=1)
            c0 -= peak[:, None]
            total, weighted = c0.clamp(min=_LEAST).exp_(), torch.zeros_like(c0)
            density, exponent, slope = torch.empty_like(c0), c0, c1.add_(c2)
            for k in range(1, PER_BRANCH):
                exponent += slope  # c0 + k c1 + k^2 c2, from one k to the next
                slope.add_(c2, alpha=2)
                torch.clamp(exponent, min=_LEAST, out=density).exp_()
                total += density
                weighted.add_(density, alpha=k)
            slope1 = (m1 * t1).mul_(weighted).addcmul_(md1, total, value=-1)
            slope2 = (m2 * t2).mul_(weighted).addcmul_(md2, total, value=-1)
            yield total, peak, torch.addmm(slope1 @ axis1, slope2, axis2)


def fractal(classes: str = "A") -> Fractal:
    """The toy's distribution: one class, `"A"` or `"B"`, or `"AB"`, both as often as they come.

    Raises:
        ValueError: another class.
    """
    if classes not in CLASSES:
        raise ValueError(
            f"fractal: classes must be one of {', '.join(CLASSES)}, got {classes!r}; 'AB' is the "
            "distribution without its labels"
        )
    with files("autoguide_fast.toy").joinpath("fractal.npz").open("rb") as file:
        stored = np.load(file)
        arrays = {name: torch.from_numpy(stored[name]).double() for name in stored.files}
    share = dict(zip("AB", arrays["share"] / arrays["share"].sum(), strict=True))
    parts = []
    for name in classes:
        weight, *rest = (arrays[f"{name}/{p}"] for p in ("weight", "first", "last", "covariance"))
        scale = 1.0 if len(classes) == 1 else share[name]
        parts.append([weight / weight.sum() * scale, *rest])
    return Fractal(*(torch.cat(column) for column in zip(*parts, strict=True)))
