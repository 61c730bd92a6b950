"""Vectors [N, 2]: a flow-matching model of the toy's fractal tree, guided by its worse version.

A velocity net becomes a denoiser by `FlowDenoiser`; the guide is narrower and less trained.
"""

from __future__ import annotations

import torch
from common import Table, compare, train
from torch import Tensor

from autoguide_fast.adapters import FlowDenoiser
from autoguide_fast.metrics import energy_distance
from autoguide_fast.toy import fractal

BATCH = 1024


class Velocity(torch.nn.Module):
    """An MLP of x_t and of the time, 0 at data and 1 at noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [torch.nn.Linear(2 + 8, width)]
        for _ in range(3):
            layers += [torch.nn.SiLU(), torch.nn.Linear(width, width)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.SiLU(), torch.nn.Linear(width, 2))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0]) * torch.pi
        return self.layers(torch.cat([4 * x, angles.cos(), angles.sin()], dim=1))


def flow_loss(net: torch.nn.Module, clean: Tensor) -> Tensor:
    """Flow matching: the velocity of straight lines from data to noise."""
    time, noise = torch.randn(len(clean)).sub(1).sigmoid(), torch.randn_like(clean)
    x = torch.lerp(clean, noise, time[:, None])
    return (net(x, time) - (noise - clean)).square().mean()


def main(iterations: int = 4000, count: int = 2000) -> Table:
    """Train model and guide, compare guidance weights; returns the figures."""
    torch.manual_seed(0)
    data, generator = fractal("A"), torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return data.sample(BATCH, generator)

    velocities = (
        train(Velocity(128), draw, iterations, flow_loss),
        train(Velocity(32), draw, iterations // 8, flow_loss),
    )
    # We know what they predict: that need not be checked.
    model, guide = (FlowDenoiser(net, sigma_max=20, check=False) for net in velocities)
    true = data.sample(count, generator)
    limit = float(data.distance(true).quantile(0.999))  # of the tree's branches
    figures = {
        "energy distance": lambda points: energy_distance(points, true),
        "share off the tree": lambda points: float((data.distance(points) > limit).float().mean()),
    }
    return compare(model, guide, figures, count, shape=(2,))


if __name__ == "__main__":
    main()
