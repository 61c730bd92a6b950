"""DPM-Solver++ of two and three steps, as an ODE and with noise (arXiv 2211.01095)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from ..guided_stepper import Denoise

# In lambda = -ln sigma the state follows dx/dlambda = D - x, so over a step of length h it becomes
# e^-h x + (1 - e^-h) D for a constant D, and what D changes by enters with the functions phi.


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M): second order from one evaluation a step (arXiv 2211.01095, alg. 2).

    Arguments as in `autoguide_fast.samplers`.
    """
    return _two_steps(denoise, x, sigmas, eta=0.0)


def dpmpp_3m(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++(3M): third order from one evaluation a step.

    The exponential integrator of a parabola through the last three denoised images. Arguments as in
    `autoguide_fast.samplers`.
    """
    return _three_steps(denoise, x, sigmas, eta=0.0)


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """SDE-DPM-Solver++(2M): with the noise of the reverse SDE (arXiv 2211.01095, appendix).

    Arguments as in `autoguide_fast.samplers`.
    """
    return _two_steps(denoise, x, sigmas, eta=1.0)


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """SDE-DPM-Solver++ of three steps, with the noise of the reverse SDE.

    Arguments as in `autoguide_fast.samplers`.
    """
    return _three_steps(denoise, x, sigmas, eta=1.0)


def _two_steps(denoise: Denoise, x: Tensor, sigmas: Sequence[float], eta: float) -> Tensor:
    before, last = None, 0.0  # the denoised images of the step before, and its length
    for sigma, following in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            return denoise.after_step(denoised)
        step = math.log(sigma / following)
        target = denoised
        if before is not None:
            target = denoised.lerp(before, -step / (2 * last))
        # With eta = 1, the SDE, the state goes twice as far, and noise takes the place.
        x = target.lerp(x, math.exp(-(1 + eta) * step))
        x = denoise.after_step(_noised(denoise, x, following, eta * step))
        before, last = denoised, step
    return x


def _noised(denoise: Denoise, x: Tensor, sigma: float, length: float) -> Tensor:
    """`x` with the noise that the SDE adds on its way to `sigma`; itself for a length of 0."""
    if not length:
        return x
    return x.add_(denoise.randn(), alpha=sigma * math.sqrt(-math.expm1(-2 * length)))


def _three_steps(denoise: Denoise, x: Tensor, sigmas: Sequence[float], eta: float) -> Tensor:
    past: list[tuple[float, Tensor]] = []  # lambda and the denoised images, the newest first
    for sigma, following in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if following == 0:
            return denoise.after_step(denoised)
        now, step = -math.log(sigma), math.log(sigma / following)
        past = [(now, denoised), *past[:2]]
        reach = (1 + eta) * step
        x = denoised.lerp(x, math.exp(-reach))
        # For D = D0 + a u + b u^2 with u from 0 to 1 over the step, besides (1 - e^-r) D0:
        # phi_2 a + (1 - 2 phi_2 / r) b, phi_2 = 1 - (1 - e^-r) / r.
        phi_2 = math.expm1(-reach) / reach + 1
        if len(past) == 2:
            (_, newest), (t1, older) = past
            x = x.add_(newest - older, alpha=phi_2 * step / (now - t1))
        elif len(past) == 3:
            (_, newest), (t1, older), (t2, oldest) = past
            r1, r2 = (now - t1) / step, (t1 - t2) / step
            first, second = (newest - older) / r1, (older - oldest) / r2
            bend = (first - second) / (r1 + r2)
            x = x.add_(first + bend * r1, alpha=phi_2)
            x = x.add_(bend, alpha=1 - 2 * phi_2 / reach)
        x = denoise.after_step(_noised(denoise, x, following, eta * step))
    return x
