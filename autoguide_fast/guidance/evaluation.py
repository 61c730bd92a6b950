"""What a kind of guidance is told: about its batch, and about each evaluation of the nets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """Where the nets are evaluated: at a noise level, within a step."""

    sigma: float
    level: Tensor  # sigma, 0-dim float64 on the device
    index: int  # of the step, from 0
    num_steps: int
    sigma_next: float  # where the step leads, or, from its end, the next one
    correction: bool  # a step's second or later evaluation: what is remembered must not advance
