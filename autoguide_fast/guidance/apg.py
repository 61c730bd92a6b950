"""Adaptive projected guidance (arXiv 2410.02416)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .. import arguments
from .combination import Images, dot, norm, remembered
from .evaluation import Batch, Evaluation
from .kind import OneGuide
from .weights import AnyWeight


class APG(OneGuide):
    """Adaptive projected guidance: less saturation at high weights (Sadat et al., 2410.02416).

    With the difference `d = D1 - D0`, the momentum `m = d + beta m_before`, its length limited to
    `most`, and its part along the image `p = <m, D1> / <D1, D1> D1`:

        D = D1 + (w - 1) (m - p + eta p)

    Args:
        weight, interval: as for `OneGuide`.
        eta: how much of the part along the image is kept: 0 in the paper, 1 for all of it.
        momentum: beta; the paper takes about -0.5, which pushes back, 0 is none.
        most: the largest length of an image's difference, over all its elements; None: no limit.
            The paper's 2.5 to 15 are for latents of 4x64x64.

    What is remembered is of one batch, from its first step on, and advances once a step: a second
    evaluation in a step sees what the first one saw.
    """

    def __init__(
        self,
        weight: AnyWeight = 1.5,
        eta: float = 0.0,
        momentum: float = -0.5,
        most: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, interval)
        self.eta = arguments.number(
            "eta", eta, "finite", math.isfinite, "1 keeps the part along the image", "APG"
        )
        self.momentum = arguments.number(
            "momentum", momentum, "above -1 and below 1", lambda v: -1 < v < 1, "0 is none", "APG"
        )
        self.most = (
            most
            if most is None
            else arguments.number(
                "most", most, "above 0", lambda v: v > 0, "None is no limit", "APG"
            )
        )
        self.levels_may_differ = not self.momentum
        self._before: Tensor | None = None  # the momentum of the step before
        self._latest: Tensor | None = None  # that of this step

    def begin(self, batch: Batch) -> APG:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run._before = run._latest = None
        return run

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        difference = denoised - guide
        if self.momentum:
            if not step.correction:
                self._before = self._latest
            if self._before is not None:
                difference = difference + self._before * self.momentum
            if not step.correction:
                self._latest = remembered(difference)
        if self.most is not None:
            difference = difference * (self.most / norm(difference).clamp_min(1e-30)).clamp_max(1)
        square = dot(denoised, denoised).clamp_min(1e-30)
        along = denoised * (dot(difference, denoised) / square)
        return denoised + (difference - along * (1 - self.eta)) * (self.weight_at(step) - 1)
