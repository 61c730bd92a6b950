"""The likelihood of the toy's true points under what a guided sampler makes: without samples.

Distances between sets of points are too coarse for what guidance changes there, a part in a
thousand of them.
"""

from __future__ import annotations

import copy
import itertools

import torch

from autoguide_fast.guidance.weights import Weight, weight_at
from autoguide_fast.schedules import rho_schedule
from autoguide_fast.toy import ToyModel, fractal

POINTS, STEPS = 320, 20


def negative_log_likelihood(main: ToyModel, guide: ToyModel, weight: Weight) -> float:
    """The mean of -ln p(x) over true points x, p the density that the guided ODE samples.

    Along `dx / dsigma = (x - D) / sigma` the logarithm of the density falls by the divergence
    `(2 - tr dD/dx) / sigma` (arXiv 2011.13456, eq. 39). Trapezoids; the trace by differences.
    """
    nets = [copy.deepcopy(net).double() for net in (main, guide)]
    data = fractal("A")
    x = data.sample(POINTS, torch.Generator().manual_seed(51)).double()
    low, high = ToyModel.sigma_min, ToyModel.sigma_max
    x = x + low * torch.randn(x.shape, generator=torch.Generator().manual_seed(52)).double()
    levels = rho_schedule(STEPS, low, high, 7.0)[:-1].flip(0).double().tolist()

    def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
        w = weight_at(weight, sigma)
        first = nets[0](x, torch.tensor(sigma, dtype=x.dtype))
        if w == 1:
            return first
        return first + (w - 1) * (first - nets[1](x, torch.tensor(sigma, dtype=x.dtype)))

    def slope(x: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        step = 1e-3 * sigma
        moves = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=x.dtype) * step
        all_of_them = denoised((x[None] + moves[:, None]).flatten(0, 1), sigma)
        here, right, left, up, down = all_of_them.view(5, -1, 2)
        trace = ((right - left)[:, 0] + (up - down)[:, 1]) / (2 * step)
        return (x - here) / sigma, (2 - trace) / sigma

    change = torch.zeros(len(x), dtype=x.dtype)
    at, spread = slope(x, levels[0])
    for sigma, following in itertools.pairwise(levels):
        step = following - sigma
        guess = x + step * at
        there, wider = slope(guess, following)
        x = x + step * (at + there) / 2
        change += step * (spread + wider) / 2
        at, spread = slope(x, following)
    log_density = data.log_density(x, high) + change
    return float(-log_density.clamp(min=-50).mean())
