"""What the examples share: a denoiser around any net, its training, and a table of distances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoguide_fast import Engine, preconditioning, sample

SIGMA_DATA = 0.5
REPEATS = 3
Table = dict[str, dict[float, list[float]]]  # figure -> guidance weight -> value of each repeat


class Denoiser(torch.nn.Module):
    """`net(x, level)` with EDM's preconditioning: all that `autoguide_fast.sample` asks for.

    Args:
        net: takes `x [N, *shape]` of unit variance and `ln(sigma) / 4`, `[N]`.
        sample_shape: what stands after N.
    """

    sigma_min, sigma_max = 0.01, 20.0

    def __init__(self, net: torch.nn.Module, sample_shape: Sequence[int]) -> None:
        super().__init__()
        self.net, self.sample_shape = net, tuple(sample_shape)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = sigma.expand(len(x)) if sigma.ndim == 0 else sigma
        levels = sigma.reshape(-1, *[1] * (x.ndim - 1))
        raw = self.net(preconditioning.c_in(levels, SIGMA_DATA) * x, preconditioning.c_noise(sigma))
        return preconditioning.denoised(x, raw, levels, SIGMA_DATA)


def denoising_loss(model: torch.nn.Module, clean: Tensor) -> Tensor:
    """EDM's loss at noise levels of its own, ln sigma ~ N(-1, 1.2)."""
    sigma = (torch.randn(len(clean)) * 1.2 - 1.0).exp()
    levels = sigma.reshape(-1, *[1] * (clean.ndim - 1))
    error = model(clean + levels * torch.randn_like(clean), sigma) - clean
    weight = (levels**2 + SIGMA_DATA**2) / (levels * SIGMA_DATA) ** 2
    return (weight * error**2).mean()


def train(
    model: torch.nn.Module,
    draw: Callable[[], Tensor],
    iterations: int,
    loss: Callable[[torch.nn.Module, Tensor], Tensor] = denoising_loss,
) -> torch.nn.Module:
    """Train with Adam on batches that `draw` gives; returns an average of the last weights."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, 1e-4)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    for step in range(iterations):
        optimizer.zero_grad()
        loss(model, draw()).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            kept = 1 - 10 / (step + 11)  # about the last tenth
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 1 - kept)
    return average


def compare(
    model: torch.nn.Module,
    guide: torch.nn.Module,
    figures: dict[str, Callable[[Tensor], float]],
    count: int,
    weights: Sequence[float] = (1.0, 1.25, 1.5, 2.0),
    num_steps: int = 16,
    **options: Any,
) -> Table:
    """Sample at each guidance weight, on the same seeds; print and return what `figures` say.

    Of each figure, less is better. A guidance weight of 1 is the model alone. `num_steps` and
    `options` go to `sample`.
    """
    table: Table = {name: {w: [] for w in weights} for name in figures}
    for weight in weights:
        for repeat in range(REPEATS):
            seeds = range(repeat * count, (repeat + 1) * count)
            drawn = sample(
                model, guide, weight, seeds=seeds, batch_size=512, num_steps=num_steps, **options
            )
            for name, figure in figures.items():
                table[name][weight].append(figure(drawn))
    print(f"{'guidance':>8}  " + "  ".join(f"{name:>24}" for name in figures))
    for weight in weights:
        cells = []
        for name in figures:
            values = table[name][weight]
            cells.append(f"{np.mean(values):10.4f} ± {np.std(values, ddof=1):.4f}".rjust(24))
        print(f"{weight:8g}  " + "  ".join(cells))
    for name, by_weight in table.items():
        print(verdict(name, by_weight))
    return table


def verdict(name: str, by_weight: dict[float, list[float]]) -> str:
    """Whether guidance lowers a figure, by more than twice what the repeats scatter by."""
    best = min(by_weight, key=lambda weight: float(np.mean(by_weight[weight])))
    alone, guided = by_weight[1.0], by_weight[best]
    scatter = np.hypot(np.std(alone, ddof=1), np.std(guided, ddof=1))
    if np.mean(alone) - np.mean(guided) > 2 * scatter:
        return f"guidance lowers the {name}, most at {best:g}"
    return f"guidance does not lower the {name}"


def same_in_an_engine(model: torch.nn.Module, guide: torch.nn.Module, **options: Any) -> bool:
    """Whether an `Engine` of the pair gives the samples of the pair itself, to rounding."""
    with Engine(model, guide) as engine:
        found = engine.sample(guidance=1.5, **options)
    return torch.allclose(found, sample(model, guide, 1.5, **options), rtol=1e-3, atol=1e-3)
