"""A guide that need not run every time: what it said is used again in the steps that follow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import arguments
from .combination import Images, remembered
from .evaluation import Batch, Evaluation
from .kind import Around, Guidance


class Reused(Around):
    """Another kind of guidance, whose guide runs in every k-th step alone.

    In between `D0 = D1 - d`, with the difference `d` that model and guide had when it last ran.
    An approximation: it saves `1 - 1 / (2 k)` of the guide's evaluations in Heun's method, whose
    second halves never run it, and `1 - 1 / k` in a sampler of one evaluation a step.

    Args:
        guidance: a kind with one guide, such as `Linear([1.7])`.
        every: k, 1 or more; 1 still spares the second halves of Heun's steps.

    Raises:
        TypeError, ValueError: of several guides, or another k.
    """

    def __init__(self, guidance: Guidance, every: int = 2) -> None:
        if not isinstance(guidance, Guidance) or guidance.num_guides != 1:
            raise ValueError(
                "Reused: guidance must be a kind with one guide, got "
                f"{type(guidance).__name__}; Linear([1.7]) is one"
            )
        super().__init__(guidance)
        self.always = True
        self.every = arguments.count("every", every, "2 halves the work", caller="Reused")
        self._difference: Tensor | None = None

    def begin(self, batch: Batch) -> Reused:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run._difference = None
        return run

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`."""
        due = step.index % self.every == 0 and not step.correction
        (wanted,) = self.guidance.runs(step)
        return (wanted and (due or self._difference is None),)

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        (wanted,) = self.guidance.runs(step)
        if not wanted:
            return denoised
        if guide is None:
            assert self._difference is not None  # since `runs`
            guide = denoised - self._difference
        else:
            self._difference = remembered(denoised - guide)
        return self.guidance.combine(denoised, [guide], x, step)
