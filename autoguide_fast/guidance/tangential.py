"""Tangential damping: the guide without what it does not share with the model (2503.18137)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .combination import Images, dot
from .evaluation import Evaluation
from .kind import OneGuide


class Tangential(OneGuide):
    """Tangential damping CFG (Kwon et al., arXiv 2503.18137).

    The slopes `v_i = x - D_i` of model and guide span a plane; its first right singular vector `u`
    is the direction that both have in common. What the guide has across it is left out:
    `v0' = <v0, u> u`, then `x - D = v0' + w (v1 - v0')`.

    Args:
        weight, interval: as for `OneGuide`.
    """

    levels_may_differ = True

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        slope, of_guide = x - denoised, x - guide
        a, b, c = dot(slope, slope), dot(slope, of_guide), dot(of_guide, of_guide)
        # The larger eigenvector (p, q) of [[a, b], [b, c]], whose u = p v1 + q v0.
        half = (a - c) / 2
        root = (half**2 + b**2).sqrt()
        p = torch.where(half > 0, root + half, b)
        q = torch.where(half > 0, b, root - half)
        square = (p**2 * a + 2 * p * q * b + q**2 * c).clamp_min(1e-60)
        along = (p * b + q * c) / square  # <v0, u> / <u, u>
        damped = slope * (along * p) + of_guide * (along * q)
        return x - damped - (slope - damped) * self.weight_at(step)
