"""What a step draws, noise levels and noise: each a function of seed and position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Images that share one random stream. Large enough that seeding it costs nothing (15 us), small
# enough that a process that needs part of a batch hardly draws in vain.
_BLOCK = 64


@dataclass(frozen=True)
class Draws:
    """Standard normal numbers for n images: `level` [n, 1, 1, 1] and `noise` [n, C, H, W].

    `latent` is shaped as the noise, where latents are drawn from their moments; else None.
    """

    level: torch.Tensor
    noise: torch.Tensor
    latent: torch.Tensor | None


def draw(
    seed: int, nimg: int, offset: int, count: int, shape: tuple[int, ...], latents: bool = False
) -> Draws:
    """What the images `offset` to `offset + count` of the step that begins at `nimg` need.

    The same for an image whatever the number of processes and passes that share the step.

    Args:
        seed: of the run.
        nimg: images seen before the step.
        offset, count: the part of the step.
        shape: of an image, [C, H, W].
        latents: whether latents are to be drawn as well.
    """
    first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
    blocks = [_block(seed, nimg + k * _BLOCK, shape, latents) for k in range(first, last + 1)]
    part = slice(offset - first * _BLOCK, offset - first * _BLOCK + count)
    joined = [
        torch.cat(parts)[part] if len(parts) > 1 else parts[0][part]
        for parts in zip(*blocks, strict=True)
    ]
    return Draws(joined[0], joined[1], joined[2] if latents else None)


def _block(seed: int, position: int, shape: tuple[int, ...], latents: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(stream(seed, 1 + position))
    shapes = [(1, 1, 1), shape, shape] if latents else [(1, 1, 1), shape]
    return [
        torch.randn([_BLOCK, *each], generator=generator, dtype=torch.float32, device="cpu")
        for each in shapes
    ]


def draw_uniform(seed: int, nimg: int, offset: int, count: int) -> torch.Tensor:
    """Numbers of [0, 1), float32 [count], for the same images as those of `draw`."""
    first, last = offset // _BLOCK, (offset + count - 1) // _BLOCK
    blocks = []
    for k in range(first, last + 1):
        generator = torch.Generator().manual_seed(stream(seed, nimg + k * _BLOCK, 2))
        blocks.append(torch.rand(_BLOCK, generator=generator, dtype=torch.float32, device="cpu"))
    return torch.cat(blocks)[offset - first * _BLOCK :][:count]


def stream(seed: int, *position: int) -> int:
    """Seed of the random stream used at one position of one run."""
    sequence = np.random.SeedSequence([seed, *position])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
