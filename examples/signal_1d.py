"""Signals [N, 1, 64]: pulses of random pitch, place and phase, of which there are any number."""

from __future__ import annotations

import torch
from common import Denoiser, Table, compare, same_in_an_engine, train
from torch import Tensor

from autoguide_fast.metrics import energy_distance

LENGTH, BATCH = 64, 128


def pulses(count: int, generator: torch.Generator) -> Tensor:
    """Waves under a bell, `[count, 1, 64]`, of a standard deviation of about 0.5."""
    pitch, place, phase = torch.rand(3, count, 1, generator=generator)
    time = torch.linspace(-1, 1, LENGTH)
    bell = (-(((time - place + 0.5) / 0.35) ** 2)).exp()
    wave = ((8 + 16 * pitch) * time + 2 * torch.pi * phase).sin()
    return 1.2 * (bell * wave)[:, None]


class Net(torch.nn.Module):
    """Convolutions of growing reach, around which the input is carried along."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv1d(2, width, 1)
        self.level = torch.nn.Linear(3, 4 * width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Conv1d(width, width, 5, padding=2 * reach, dilation=reach)
            for reach in (1, 2, 4, 8)
        )
        self.last = torch.nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        y = self.first(torch.cat([x, torch.linspace(-1, 1, LENGTH).expand_as(x)], dim=1))
        features = torch.stack([level, (4 * level).sin(), (4 * level).cos()], dim=1)
        scales = self.level(features).chunk(4, dim=1)
        for block, scale in zip(self.blocks, scales, strict=True):
            y = y + block(torch.nn.functional.silu(y * (1 + scale[:, :, None])))
        return self.last(torch.nn.functional.silu(y))


def main(iterations: int = 1000, count: int = 500) -> Table:
    """Train model and guide, compare guidance weights; returns the figures."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return pulses(BATCH, generator)

    model = train(Denoiser(Net(32), (1, LENGTH)), draw, iterations)
    guide = train(Denoiser(Net(16), (1, LENGTH)), draw, iterations // 8)
    true = pulses(1000, generator).flatten(1)
    figures = {"energy distance": lambda x: energy_distance(x.flatten(1), true)}
    table = compare(model, guide, figures, count)
    agree = same_in_an_engine(model, guide, seeds=range(4))
    print(f"an Engine gives {'the same' if agree else 'OTHER'} samples")
    return table


if __name__ == "__main__":
    main()
