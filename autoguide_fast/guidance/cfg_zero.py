"""CFG-Zero*: the guide scaled to the model, and first steps that stand still (2503.18886)."""

from __future__ import annotations

from collections.abc import Sequence

from .. import arguments
from .combination import Images, dot
from .evaluation import Evaluation
from .kind import OneGuide
from .weights import AnyWeight


class CFGZero(OneGuide):
    """CFG-Zero* (Fan et al., arXiv 2503.18886).

    With `v_i = x - D_i`, the direction in which the flow moves, `s = <v1, v0> / <v0, v0>`:

        x - D = s v0 + w (v1 - s v0)

    and no movement in the first steps. The paper writes it for the velocity of flow matching; here
    it is the slope `(x - D) / sigma` of the probability flow that the sampler integrates.

    Args:
        weight, interval: as for `OneGuide`.
        zero_init: number of first steps that do not move; the paper takes 1, or 4 % of them.
    """

    def __init__(
        self,
        weight: AnyWeight = 1.5,
        zero_init: int = 0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, interval)
        self.zero_init = int(
            arguments.number(
                "zero_init",
                zero_init,
                "a whole number >= 0",
                lambda v: v >= 0 and v == int(v),
                "0 moves in all steps",
                "CFGZero",
            )
        )
        self.levels_may_differ = not self.zero_init

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        if step.index < self.zero_init:
            return x
        slope, of_guide = x - denoised, x - guide
        scale = dot(slope, of_guide) / dot(of_guide, of_guide).clamp_min(1e-30)
        of_guide = of_guide * scale
        return x - of_guide - (slope - of_guide) * self.weight_at(step)
