"""UniPC: a predictor and a corrector of one evaluation a step (arXiv 2302.04867)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..guided_stepper import Denoise

ORDER = 3


def unipc(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """UniPC of third order, for denoised images, with `B(h) = e^h - 1` (arXiv 2302.04867, alg. 5).

    The evaluation that a step begins with also corrects the step before, so it costs one a step.
    The last two steps are of lower orders, as its authors advise for few steps. Arguments as in
    `autoguide_fast.samplers`.
    """
    past: list[tuple[float, Tensor]] = []  # lambda = -ln sigma and D there, the newest first
    begin: Tensor | None = None  # the state from which the step before was predicted
    count = len(sigmas) - 1
    order = 0  # of the step before
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = denoise(x, sigma)
        now = -math.log(sigma)
        if begin is not None:
            x = _step(begin, past[:order], now, denoised)
        past = [(now, denoised), *past[: ORDER - 1]]
        if following == 0:
            return denoise.after_step(denoised)
        order = min(ORDER, len(past), count - index)
        predicted = _step(x, past[:order], -math.log(following), None)
        begin = x
        x = denoise.after_step(predicted)
        if x is not predicted:  # a callback's own, which the corrector would undo
            begin = None
    return x


def _step(
    x: Tensor, past: Sequence[tuple[float, Tensor]], end: float, denoised_end: Tensor | None
) -> Tensor:
    """The state at lambda = `end` from `x` at that of the newest of `past`.

    Predicted from `past`, or corrected by what the denoiser says at the end.
    """
    (now, newest), *older = past
    step = end - now
    decay = math.expm1(-step)
    result = newest.lerp(x, math.exp(-step))
    places = [(place - now) / step for place, _ in older]
    changes = [(image - newest) / r for r, (_, image) in zip(places, older, strict=True)]
    if denoised_end is not None:
        places, changes = [*places, 1.0], [*changes, denoised_end - newest]
    for weight, change in zip(_weights(places, step), changes, strict=True):
        result = result.add_(change, alpha=-decay * weight)
    return result


def _weights(places: Sequence[float], step: float) -> list[float]:
    """Weights of the changes towards `places`, in units of the step, for `B(h) = e^-h - 1`."""
    # sum_m w_m r_m^(k-1) = k! phi_(k+1)(-h) (-h) / B(h), k = 1 and so forth (eq. 9 of the paper).
    targets, factorial = [], 1.0
    phi = math.expm1(-step) / -step - 1
    for k in range(1, len(places) + 1):
        targets.append(phi * factorial / math.expm1(-step))
        factorial *= k + 1
        phi = phi / -step - 1 / factorial
    if not places:
        return []
    powers = np.vander(np.asarray(places), increasing=True).T
    return [float(w) for w in np.linalg.solve(powers, np.asarray(targets))]
