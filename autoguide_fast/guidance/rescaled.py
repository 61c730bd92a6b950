"""Rescaled guidance: the contrast of the unguided image (arXiv 2305.08891, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from .. import arguments
from .combination import Images, std
from .evaluation import Evaluation
from .kind import OneGuide
from .weights import AnyWeight


class Rescaled(OneGuide):
    """Guidance whose result gets back, in part, the standard deviation of what the model says.

    `D_w = D0 + w (D1 - D0)`, `D = phi D_w std(D1) / std(D_w) + (1 - phi) D_w`, with the standard
    deviation over the elements of each image (Lin et al., arXiv 2305.08891, eq. 14 to 16). The
    paper rescales the v that its net predicts; here it is the denoised image.

    Args:
        weight, interval: as for `OneGuide`.
        phi: how much is rescaled, from 0 (nothing) to 1; the paper takes 0.7.
    """

    levels_may_differ = True

    def __init__(
        self,
        weight: AnyWeight = 1.5,
        phi: float = 0.7,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, interval)
        self.phi = arguments.number(
            "phi", phi, "from 0 to 1", lambda v: 0 <= v <= 1, "0.7 is published", "Rescaled"
        )

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        guided = guide + (denoised - guide) * self.weight_at(step)
        factor = std(denoised) / std(guided).clamp_min(1e-30)
        return guided * (self.phi * factor + (1 - self.phi))
