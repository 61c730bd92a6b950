"""Adams-Bashforth steps over the noise levels, also known as LMS."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..guided_stepper import Denoise

ORDER = 4


def adams_bashforth(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """A linear multistep method: the cubic through the last four slopes, integrated over the step.

    Of dx/dsigma = (x - D) / sigma; one evaluation a step, fourth order once there are four slopes
    and while steps are small against the levels. Arguments as in `autoguide_fast.samplers`.
    """
    past: list[tuple[float, Tensor]] = []  # level and slope, the newest first
    for sigma, following in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            return denoise.after_step(denoised)
        past = [(sigma, (x - denoised) / sigma), *past[: ORDER - 1]]
        weights = _weights([level for level, _ in past], following)
        x = x + weights[0] * past[0][1]
        for weight, (_, slope) in zip(weights[1:], past[1:], strict=True):
            x = x.add_(slope, alpha=weight)
        x = denoise.after_step(x)
    return x


def _weights(levels: Sequence[float], end: float) -> list[float]:
    """Weights of the slopes at `levels` in the integral from the first of them to `end`."""
    # In units of the step, with its begin at 0: sum_j w_j t_j^k = 1 / (k + 1) for all powers k.
    step = end - levels[0]
    places = (np.asarray(levels) - levels[0]) / step
    powers = np.vander(places, increasing=True).T
    integrals = 1 / np.arange(1, len(levels) + 1)
    return [float(w) for w in step * np.linalg.solve(powers, integrals)]
