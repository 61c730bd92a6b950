"""One of several guides at each step, drawn at random: blocks left out at random, for instance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import arguments
from .combination import Images
from .evaluation import Evaluation
from .kind import Around, Guidance


class OneOf(Around):
    """Another kind of guidance, whose one guide is a different one at each step.

    Which one is drawn uniformly, from `seed` and the number of the step alone: the same for all
    images and batches, so that an image depends on its own seed alone. Both evaluations of a step
    have the same one, and no other runs. With guides that each leave out a block of the model
    (`weakened`) this is stochastic self-guidance (arXiv 2508.12880, with one sub-network a step;
    its `omega` is `w - 1` here).

    Args:
        guidance: a kind with one guide, such as `Linear([1.3])`.
        count: how many guides there are, at least 1.
        seed: another one draws others.

    Raises:
        TypeError, ValueError: of several guides, or other numbers.
    """

    def __init__(self, guidance: Guidance, count: int, seed: int = 0) -> None:
        if not isinstance(guidance, Guidance) or guidance.num_guides != 1:
            raise ValueError(
                "OneOf: guidance must be a kind with one guide, got "
                f"{type(guidance).__name__}; Linear([1.3]) is one"
            )
        super().__init__(guidance)
        self.count = arguments.count("count", count, "one for each guide", caller="OneOf")
        self.num_guides = self.count
        self.seed = arguments.count("seed", seed + 1, "0 is the default", caller="OneOf") - 1

    def drawn(self, index: int) -> int:
        """Which guide runs in the step `index`."""
        return int(np.random.default_rng([self.seed, index]).integers(self.count))

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`."""
        (wanted,) = self.guidance.runs(step)
        drawn = self.drawn(step.index)
        return [wanted and i == drawn for i in range(self.count)]

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        return self.guidance.combine(denoised, [guides[self.drawn(step.index)]], x, step)
