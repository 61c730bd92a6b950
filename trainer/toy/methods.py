"""The toy's ways to sample: without guidance, with CFG, with autoguidance, truncated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import autoguide_fast
from autoguide_fast.generate import StepInfo
from autoguide_fast.toy import ToyModel

FIRST_SEED = 10_000_000
NUM_STEPS = 32
CFG_WEIGHT, AUTOGUIDANCE_WEIGHT = 4.0, 3.0  # the paper's
TRUNCATION = 1.1  # of the score's length; chosen here: leaves about as few off the tree
_BATCH = 4096


@dataclass(frozen=True)
class Method:
    """A way to sample: the role of the net that guides, if any, with its weight."""

    title: str
    guide: str | None = None
    weight: float = 1.0
    score_scale: float = 1.0

    @property
    def setting(self) -> str:
        """What it is done with."""
        if self.score_scale != 1:
            return f"score x {self.score_scale:g}"
        return f"w = {self.weight:g}"

    @property
    def label(self) -> str:
        """The title with the setting."""
        return f"{self.title}, {self.setting}"


METHODS = {
    "none": Method("No guidance"),
    "CFG": Method("Classifier-free guidance", "uncond", CFG_WEIGHT),
    "autoguidance": Method("Autoguidance", "guide", AUTOGUIDANCE_WEIGHT),
    "truncation": Method("Naive truncation", score_scale=TRUNCATION),
}


class Truncated:
    """A denoiser whose score is lengthened, as if all noise levels were lower than they are."""

    sample_shape = ToyModel.sample_shape
    sigma_min, sigma_max = ToyModel.sigma_min, ToyModel.sigma_max

    def __init__(self, net: ToyModel, scale: float) -> None:
        self.net, self.scale = net, scale

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return torch.lerp(x, self.net(x, sigma), self.scale)


def sampled(
    nets: Mapping[str, ToyModel],
    method: Method,
    seeds: range,
    callback: Callable[[StepInfo], object] | None = None,
) -> Tensor:
    """Points `[N, 2]` of a method, one for each seed; `nets` by role."""
    main = nets["main"]
    model = main if method.score_scale == 1 else Truncated(main, method.score_scale)
    return autoguide_fast.sample(
        model,
        nets[method.guide] if method.guide else None,
        method.weight,
        seeds=seeds,
        num_steps=NUM_STEPS,
        batch_size=_BATCH,
        callback=callback,
    )
