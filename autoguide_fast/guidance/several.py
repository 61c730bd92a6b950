"""Several guides at once (arXiv 2406.02507, eq. 6), and autoguidance blended with CFG."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import arguments
from .combination import Images
from .evaluation import Batch, Evaluation
from .kind import Guidance, runs_at, value_at
from .weights import AnyWeight, Weight, checked, of_batch

Interval = tuple[float, float]


class Linear(Guidance):
    """One or several guides, each with its weight: `D = D1 + sum_i (w_i - 1) (D1 - D_i)`.

    (arXiv 2406.02507, eq. 6.) What `sample` makes of numbers. With one guide this is
    `D0 + w (D1 - D0)`.

    Args:
        weights: of each guide, each a number, one number for each image, `PerClass`, or a function
            of the noise level.
        intervals: of each guide, `(lo, hi)` or None: it runs where `lo < sigma <= hi` alone.
    """

    levels_may_differ = True

    def __init__(
        self, weights: Sequence[AnyWeight], intervals: Sequence[Interval | None] | None = None
    ) -> None:
        self.weights = [checked(w, "Linear", f"weights[{i}]") for i, w in enumerate(weights)]
        given = [None] * len(self.weights) if intervals is None else list(intervals)
        if len(given) != len(self.weights):
            raise ValueError(
                f"Linear: intervals must be one for each of {len(self.weights)} weights, got "
                f"{len(given)}; None is no interval"
            )
        self.intervals = [arguments.guidance_interval(i, "Linear") for i in given]
        self.num_guides = len(self.weights)
        self._of_batch: list[Weight | Tensor] = []

    def begin(self, batch: Batch) -> Linear:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run._of_batch = [of_batch(weight, batch) for weight in self.weights]
        return run

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`."""
        pairs = zip(self._of_batch, self.intervals, strict=True)
        return [runs_at(weight, interval, step) for weight, interval in pairs]

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        result = denoised
        for weight, guide in zip(self._of_batch, guides, strict=True):
            if guide is not None:
                # AG eq. 6
                result = result + (denoised - guide) * (value_at(weight, step) - 1)
        return result


def blend(weight: float, alpha: float) -> Linear:
    """CFG and autoguidance at once, for the guides `[unlabelled, worse version]`.

    The weight of CFG is `(1 - alpha) (w - 1) + 1`, that of autoguidance `alpha (w - 1) + 1`: 0 is
    CFG alone, 1 autoguidance alone (arXiv 2406.02507, appendix).

    Args:
        weight: w.
        alpha: how much of it is autoguidance, from 0 to 1.

    Raises:
        TypeError, ValueError: other numbers.
    """
    weight = arguments.number(
        "weight", weight, "finite", lambda v: abs(v) < float("inf"), "1 is no guidance", "blend"
    )
    alpha = arguments.number(
        "alpha",
        alpha,
        "from 0 to 1",
        lambda v: 0 <= v <= 1,
        "0 is CFG alone, 1 autoguidance alone",
        "blend",
    )
    return Linear([(1 - alpha) * (weight - 1) + 1, alpha * (weight - 1) + 1])
