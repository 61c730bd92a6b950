"""Sets of vectors [N, 9, 12]: sums such as 27+64=091, each token as its embedding.

What comes out is read token by token, the nearest embedding counts; a sum is right or wrong.
"""

from __future__ import annotations

import torch
from common import SIGMA_DATA, Denoiser, Table, compare, train
from torch import Tensor

TOKENS = "0123456789+="
LENGTH, BATCH = 9, 256


def sums(count: int, generator: torch.Generator) -> Tensor:
    """Tokens of `ab+cd=efg`, int64 `[count, 9]`: each sum as likely as any other."""
    a, b = torch.randint(100, [2, count], generator=generator)
    plus, equals = torch.full([2, count], 10) + torch.tensor([[0], [1]])
    return torch.stack([*_digits(a, 2), plus, *_digits(b, 2), equals, *_digits(a + b, 3)], dim=1)


def _digits(number: Tensor, places: int) -> list[Tensor]:
    return [number // 10**place % 10 for place in reversed(range(places))]


def share_wrong(embeddings: Tensor, table: Tensor) -> float:
    """The share of samples that are no true sums."""
    t = (embeddings @ table.T).argmax(dim=2)
    a, b, c = (t[:, places] @ powers for places, powers in _PLACES)
    written = (t[:, 2] == 10) & (t[:, 5] == 11) & (t[:, [0, 1, 3, 4, 6, 7, 8]] < 10).all(dim=1)
    return 1 - float((written & (a + b == c)).float().mean())


_PLACES = [
    (places, torch.tensor([10**p for p in reversed(range(len(places)))]))
    for places in ([0, 1], [3, 4], [6, 7, 8])
]


class Net(torch.nn.Module):
    """A small transformer, told the places of the tokens and the noise level."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(len(TOKENS), width)
        self.places = torch.nn.Parameter(torch.randn(LENGTH, width))
        self.level = torch.nn.Linear(3, width)
        layer = torch.nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.last = torch.nn.Linear(width, len(TOKENS))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        features = torch.stack([level, (4 * level).sin(), (4 * level).cos()], dim=1)
        y = self.first(x) + self.places + self.level(features)[:, None]
        return self.last(self.layers(y))


def main(iterations: int = 1500, count: int = 500) -> Table:
    """Train model and guide, compare guidance weights; returns the figures."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    table = torch.linalg.qr(torch.randn(len(TOKENS), len(TOKENS)))[0]  # one row for each token
    table = table * SIGMA_DATA * len(TOKENS) ** 0.5

    def draw() -> Tensor:
        return table[sums(BATCH, generator)]

    shape = (LENGTH, len(TOKENS))
    model = train(Denoiser(Net(64, 2), shape), draw, iterations)
    guide = train(Denoiser(Net(32, 1), shape), draw, iterations // 8)
    figures = {"share of wrong sums": lambda x: share_wrong(x, table)}
    return compare(model, guide, figures, count)


if __name__ == "__main__":
    main()
