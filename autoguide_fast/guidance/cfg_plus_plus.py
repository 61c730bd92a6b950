"""CFG++: noise is put back as the guide sees it (arXiv 2406.08070)."""

from __future__ import annotations

from collections.abc import Sequence

from .combination import Images
from .evaluation import Evaluation
from .kind import OneGuide


class CFGPlusPlus(OneGuide):
    """CFG++ (Chung et al., arXiv 2406.08070): interpolates images, and keeps the guide's noise.

    The step of the paper, a DDIM step, goes to `D_l + sigma_next (x - D0) / sigma` with
    `D_l = D0 + l (D1 - D0)`. That is Euler's step for `D0 + w (D1 - D0)` with
    `w = l / (1 - sigma_next / sigma)`, which is computed here, so that any sampler can take it; it
    is exact for `sampler="euler"`. In a step's second evaluation, at its end, sigma_next is the end
    of the step that follows.

    Args:
        weight: l, from 0 (the guide alone) to 1 (the model's image); as for `OneGuide`.
        interval: as for `OneGuide`.
    """

    def runs(self, step: Evaluation) -> Sequence[bool]:
        """See `Guidance.runs`; a weight of 1 is not the model alone here."""
        lo, hi = self.interval or (0.0, float("inf"))
        return (lo < step.sigma <= hi,)

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        weight = self.weight_at(step) / (1 - step.sigma_next / step.sigma)
        return guide + (denoised - guide) * weight
