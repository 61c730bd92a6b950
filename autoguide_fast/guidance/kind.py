"""What a way of guiding is: from what model and guides say to one denoised image."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .. import arguments
from .combination import Images, PerImage
from .evaluation import Batch, Evaluation
from .weights import AnyWeight, Weight, checked, guides_at, of_batch, weight_at

Kind = TypeVar("Kind", bound="Guidance")
OneKind = TypeVar("OneKind", bound="OneGuide")
AroundKind = TypeVar("AroundKind", bound="Around")


class Guidance:
    """A way of guiding, as `sample` takes it for `guidance`.

    `combine` is the formula. It is written for tensors, and gets what behaves like them: `+`, `-`,
    products with numbers and with what `dot`, `norm` and `std` return are put together, and run
    fused with the rest of the step, whatever engine evaluates the nets; on any other function of
    torch they become tensors. One that remembers something from step to step has a `begin`.

    Attributes:
        num_guides: how many guides it needs, None for any number.
        always: whether `combine` is called where no guide runs, too.
        levels_may_differ: whether the images of one evaluation may be at different noise levels, as
            those of `samplers.AdaptiveHeun` are: True for a formula that remembers nothing and asks
            for nothing of a step but its level.
    """

    num_guides: int | None = 1
    always = False
    levels_may_differ = False

    def begin(self: Kind, batch: Batch) -> Kind:
        """Called when a batch begins; returns what combines this batch: a copy of this.

        Several batches may be under way in several threads, so nothing of one is kept in `self`;
        one that remembers something begins its copy with an empty memory.
        """
        return copy.copy(self)

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """Which guides have to run at this evaluation.

        Where none does, the model alone counts, unless `always`.
        """
        raise NotImplementedError

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """The guided denoised images.

        Args:
            denoised: D1, what the model says, `[N, ...]`.
            guides: what each guide says, likewise; None for one that does not run here.
            x: the state that they were given, at the noise level `step.sigma`.
            step: where.

        Returns:
            D, like `denoised`.
        """
        raise NotImplementedError

    def class_labels(self, labels: Tensor | None, step: Evaluation) -> Tensor | None:
        """The labels of this evaluation; the given ones, but for kinds that change them."""
        return labels


class OneGuide(Guidance):
    """What the kinds with one guide and one weight have in common.

    Args:
        weight: w: a number, one for each image, `PerClass`, or a function of the noise level.
        interval: `(lo, hi)`: guide only where `lo < sigma <= hi`.
    """

    def __init__(
        self, weight: AnyWeight = 1.5, interval: tuple[float, float] | None = None
    ) -> None:
        name = type(self).__name__
        self.weight = checked(weight, name, "weight")
        self.interval = arguments.guidance_interval(interval, name)
        self._of_batch: Weight | Tensor | None = None

    def begin(self: OneKind, batch: Batch) -> OneKind:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run._of_batch = of_batch(self.weight, batch)
        return run

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`."""
        return (runs_at(self._of_batch, self.interval, step),)

    def weight_at(self, step: Evaluation) -> PerImage:
        """The weight at an evaluation: a number, or float64 `[N, 1, ...]`."""
        return value_at(self._of_batch, step)


class Around(Guidance):
    """What the kinds that go around another one have in common: they leave it as it is.

    Args:
        guidance: the other one.
    """

    def __init__(self, guidance: Guidance) -> None:
        self.guidance = guidance
        self.num_guides, self.always = guidance.num_guides, guidance.always

    def begin(self: AroundKind, batch: Batch) -> AroundKind:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run.guidance = self.guidance.begin(batch)
        return run

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`."""
        return self.guidance.runs(step)

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        return self.guidance.combine(denoised, guides, x, step)

    def class_labels(self, labels: Tensor | None, step: Evaluation) -> Tensor | None:
        """See `Guidance.class_labels`."""
        return self.guidance.class_labels(labels, step)


def runs_at(
    weight: Weight | Tensor | None, interval: tuple[float, float] | None, step: Evaluation
) -> bool:
    """Whether a guide of this weight has to run at an evaluation."""
    value = value_at(weight, step)
    # One weight per image is not looked at: that would wait for the device.
    return guides_at(step.sigma, value if isinstance(value, float) else 2.0, interval)


def value_at(weight: Weight | Tensor | None, step: Evaluation) -> PerImage:
    """A batch's weight at an evaluation: a number, or float64 `[N, 1, ...]`."""
    assert weight is not None, "a Guidance must begin before it combines"
    if isinstance(weight, Tensor):
        return weight if step.rows is None else weight[step.rows]
    if not step.levels or not callable(weight):
        return float(weight_at(weight, step.sigma))
    weights = [weight_at(weight, sigma) for sigma in step.levels]
    return (
        torch.tensor(weights, dtype=torch.float64, device="cpu").to(step.level).view_as(step.level)
    )


def not_negative(name: str, value: float, caller: str) -> float:
    """`value` as a float, checked to be finite and not negative."""

    def ok(value: float) -> bool:
        return 0 <= value < math.inf

    return arguments.number(name, value, ">= 0 and finite", ok, "see its docstring", caller)
