"""Video [N, 1, 4, 8, 8]: handwritten digits that move a pixel a frame, in four directions."""

from __future__ import annotations

import torch
from common import Denoiser, Table, compare, train
from torch import Tensor

from autoguide_fast.digits import load_digits
from autoguide_fast.metrics import energy_distance

FRAMES, BATCH = 4, 64
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))


def moving(split: str) -> Tensor:
    """Every digit of a split in every direction, `[4 N, 1, 4, 8, 8]`, from -1 to 1."""
    images = load_digits(split)[0].float() / 127.5 - 1
    videos = []
    for down, right in DIRECTIONS:
        shifts = [(down * t, right * t) for t in range(FRAMES)]
        videos.append(torch.stack([images.roll(shift, (2, 3)) for shift in shifts], dim=2))
    return torch.cat(videos)


class Net(torch.nn.Module):
    """Three-dimensional convolutions, over time as over the picture, which goes round."""

    def __init__(self, width: int, blocks: int = 4) -> None:
        super().__init__()
        self.first = torch.nn.Conv3d(1, width, 1)
        self.level = torch.nn.Linear(3, blocks * width)
        self.blocks = torch.nn.ModuleList(torch.nn.Conv3d(width, width, 3) for _ in range(blocks))
        self.last = torch.nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        y = self.first(x)
        features = torch.stack([level, (4 * level).sin(), (4 * level).cos()], dim=1)
        scales = self.level(features).chunk(len(self.blocks), dim=1)
        for block, scale in zip(self.blocks, scales, strict=True):
            z = torch.nn.functional.silu(y * (1 + scale[:, :, None, None, None]))
            y = y + block(torch.nn.functional.pad(z, [1] * 6, mode="circular"))
        return self.last(torch.nn.functional.silu(y))


def main(iterations: int = 600, count: int = 200) -> Table:
    """Train model and guide, compare guidance weights; returns the figures."""
    torch.manual_seed(0)
    data, heldout = moving("train"), moving("heldout")
    true = heldout[torch.randperm(len(heldout))[:400]].flatten(1)

    def draw() -> Tensor:
        return data[torch.randint(len(data), [BATCH])]

    shape = data.shape[1:]
    model = train(Denoiser(Net(16), shape), draw, iterations)
    guide = train(Denoiser(Net(8), shape), draw, iterations // 8)
    figures = {"energy distance": lambda x: energy_distance(x.flatten(1), true)}
    return compare(model, guide, figures, count)


if __name__ == "__main__":
    main()
