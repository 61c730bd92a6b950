"""Euler's method, which is DDIM, and with fresh noise at each step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from ..guided_stepper import Denoise


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method for dx/dsigma = (x - D) / sigma: DDIM (arXiv 2010.02502). First order.

    One evaluation a step; arguments as in `autoguide_fast.samplers`.
    """
    for sigma, following in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        x = denoise.after_step(denoised.lerp(x, following / sigma))
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method down to less noise than asked for, and noise put back (arXiv 2006.11239).

    The step is that of ancestral sampling: what remains of the state at sigma is the mean of the
    posterior, and the noise has its variance, `sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2`.
    One evaluation a step; arguments as in `autoguide_fast.samplers`.
    """
    for sigma, following in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        variance = following**2 * (sigma**2 - following**2) / sigma**2
        x = denoised.lerp(x, math.sqrt(following**2 - variance) / sigma)
        if variance:
            x = x.add_(denoise.randn(), alpha=math.sqrt(variance))
        x = denoise.after_step(x)
    return x
