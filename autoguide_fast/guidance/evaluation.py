"""What a kind of guidance is told: about its batch, and about each evaluation of the nets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a `Guidance` is told when a batch begins."""

    indices: range  # which of the images asked for these are
    num_images: int  # asked for in all
    class_labels: Tensor | None  # [N or 1, label_dim]
    sigmas: tuple[float, ...]  # the noise levels of the schedule, from the highest down to 0
    device: torch.device
    ndim: int  # dimensions of one image: 3 for [C, H, W]
    # Standard normal noise [N, *shape] from the images' seeds; None where there are none.
    randn: Callable[[Sequence[int]], Tensor] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Where the nets are evaluated: at a noise level, within a step.

    Where the images' levels may differ (`Guidance.levels_may_differ`), there is no one step:
    `levels` are those of the images, `sigma` and `sigma_next` are no numbers.
    """

    sigma: float
    level: Tensor  # sigma, 0-dim float64 on the device; the levels, [n, 1, ...]
    index: int  # of the step, from 0
    num_steps: int
    sigma_next: float  # where the step leads, or, from its end, the next one
    correction: bool  # a step's second or later evaluation: what is remembered must not advance
    levels: tuple[float, ...] = ()
    rows: Tensor | None = None  # int64 [n]: which images of the batch these are; None: all

    def of_one(self, image: int) -> Evaluation:
        """Where one of the images is that differ in their levels."""
        one, level = self.of([image]), self.level[image].reshape([])
        return replace(one, sigma=self.levels[image], level=level, levels=())

    def of(self, images: Sequence[int]) -> Evaluation:
        """Where some of the images are that differ in their levels."""
        part = torch.tensor(images, device=self.level.device)
        rows = part if self.rows is None else self.rows[part]
        levels = tuple(self.levels[image] for image in images)
        return replace(self, level=self.level[part], levels=levels, rows=rows)
