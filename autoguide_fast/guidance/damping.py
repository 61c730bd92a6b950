"""Magnitude-aware damping of guidance (arXiv 2508.03442)."""

from __future__ import annotations

from collections.abc import Sequence

from .combination import Images, norm
from .evaluation import Evaluation
from .kind import OneGuide, not_negative
from .weights import AnyWeight


class MagnitudeAware(OneGuide):
    """Guidance that is damped where model and guide differ much (MAMBO-G, arXiv 2508.03442).

    With `v_i = x - D_i` and `r = |v1 - v0| / |v0|` for each image, the weight is
    `1 + (w - 1) exp(-alpha r)`. The paper has the predictions of flow matching in the place of the
    slopes.

    Args:
        weight, interval: as for `OneGuide`; the weight is the largest.
        alpha: how strongly, >= 0; 8 in the paper.
    """

    levels_may_differ = True

    def __init__(
        self,
        weight: AnyWeight = 1.5,
        alpha: float = 8.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, interval)
        self.alpha = not_negative("alpha", alpha, "MagnitudeAware")

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        difference = denoised - guide
        ratio = norm(difference) / norm(x - guide).clamp_min(1e-30)
        excess = (ratio * -self.alpha).exp() * (self.weight_at(step) - 1)
        return denoised + difference * excess
