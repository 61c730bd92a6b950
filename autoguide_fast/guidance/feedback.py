"""Feedback guidance: as much as an image needs, by how likely its label is (2506.06085)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import arguments
from .combination import Images, dot, remembered
from .evaluation import Batch, Evaluation
from .kind import OneGuide, not_negative


class Feedback(OneGuide):
    """Feedback guidance (Koulischer et al., arXiv 2506.06085), whose weight each image sets itself.

    If what the model has learnt is `(1 - pi) p(x|c) + pi p(x)`, its label's distribution mixed with
    that of the guide, then the score of `p(x|c)` is guided by `w = r / (r - pi)`, where `r` is how
    many times more likely the image is under the model than under the guide. `log r` begins at 0
    and follows the path from x to x': `log r' = log r - offset + tau (log N(x'; m1, s) -
    log N(x'; m0, s))`, with the means `m_i` and the variance `s` of the step from `sigma` to
    `sigma_next` that has D_i for its image: `m_i = D_i + (sigma_next / sigma)^2 (x - D_i)`,
    `s = sigma_next^2 (1 - (sigma_next / sigma)^2)`. So an image that the guide would have drawn as
    well is guided more. The paper derives tau and the offset from two times and a weight; here they
    are given.

    Args:
        pi: the guide's share in the model, above 0 and below 1.
        temperature: tau, >= 0.
        offset: what log r loses a step, >= 0, which raises the weight with time.
        most: the largest weight.
        interval: `(lo, hi)`: guide only where `lo < sigma <= hi`; log r is followed there.
    """

    def __init__(
        self,
        pi: float = 0.2,
        temperature: float = 0.1,
        offset: float = 0.0,
        most: float = 5.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(2.0, interval)
        self.pi = arguments.number(
            "pi", pi, "above 0 and below 1", lambda v: 0 < v < 1, "0.2 is a start", "Feedback"
        )
        self.temperature = not_negative("temperature", temperature, "Feedback")
        self.offset = not_negative("offset", offset, "Feedback")
        self.most = arguments.number(
            "most",
            most,
            "at least 1 and finite",
            lambda v: 1 <= v < float("inf"),
            "5 is a start",
            "Feedback",
        )
        self._log_ratio: Tensor | None = None
        self._step: tuple[Tensor, Tensor, float] | None = None

    def begin(self, batch: Batch) -> Feedback:
        """See `Guidance.begin`."""
        run = super().begin(batch)
        run._log_ratio = run._step = None
        return run

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        difference = denoised - guide
        if self._log_ratio is None:
            self._log_ratio = torch.zeros_like(dot(difference, difference))
        if not step.correction:
            self._advance(denoised, guide, x, step)
        # r / (r - pi) = 1 / (1 - pi / r), at most `most` where pi / r is at most 1 - 1 / most.
        share = (self.pi * (-self._log_ratio).exp()).clamp_max(1 - 1 / self.most)
        return guide + difference / (1 - share)

    def _advance(self, denoised: Images, guide: Images, x: Images, step: Evaluation) -> None:
        if self._step is not None:
            middle, apart, variance = self._step
            # log N(x; m1) - log N(x; m0) = <x - (m1 + m0) / 2, m1 - m0> / s
            gain = dot(x - middle, apart) / variance
            assert self._log_ratio is not None
            self._log_ratio = self._log_ratio - self.offset + gain * self.temperature
        self._step = None
        shrink = (step.sigma_next / step.sigma) ** 2
        if 0 < shrink < 1:
            middle = (denoised + guide) * ((1 - shrink) / 2) + x * shrink
            apart = (denoised - guide) * (1 - shrink)
            variance = step.sigma_next**2 * (1 - shrink)
            self._step = remembered(middle), remembered(apart), variance
