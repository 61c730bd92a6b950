"""Samplers beside Heun's method, each a function `(denoise, x, sigmas) -> x` on one screen.

`denoise(x, sigma)` is the guided denoiser, `x [N, ...]` the state at the first of the noise levels
`sigmas`, which fall and end with 0; what is returned is the state at 0. `sigmas` are numbers for
these functions, and a tensor like `x` for a user's own. After each step a
sampler calls `x = denoise.after_step(x)`, so that callbacks are called and what guidance remembers
advances, and `denoise.randn()` draws noise from the images' seeds. One that is written for
k-diffusion's conventions is such a function, but for noise that it draws itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..guided_stepper import Denoise
from .adaptive import AdaptiveHeun
from .dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from .euler import euler, euler_ancestral
from .multistep import adams_bashforth
from .unipc import unipc

Sampler = Callable[[Denoise, Tensor, Any], Tensor]

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "adams_bashforth": adams_bashforth,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "adaptive_heun": AdaptiveHeun(),
}


def find_sampler(sampler: str | Sampler | Any) -> Sampler | None:
    """The sampler of a name, or the function given; None for "heun", which is no such function.

    Raises:
        TypeError, ValueError: neither a known name nor callable; another tolerance.
    """
    if callable(sampler):
        return sampler
    if sampler == "heun":
        return None
    name, _, tolerance = str(sampler).partition(":tolerance=")
    if name == "adaptive_heun" and tolerance:
        try:
            return AdaptiveHeun(float(tolerance))
        except ValueError:
            raise ValueError(
                "sample: sampler must be adaptive_heun:tolerance=X with X above 0 and at most 1, "
                f"got {sampler!r}; 0.01 is the default"
            ) from None
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(
            f"sample: sampler must be one of heun, {', '.join(SAMPLERS)}, or a function "
            f"(denoise, x, sigmas) -> x, got {sampler!r}; heun is the published one"
        )
    return SAMPLERS[sampler]


__all__ = [
    "SAMPLERS",
    "AdaptiveHeun",
    "Denoise",
    "Sampler",
    "adams_bashforth",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "find_sampler",
    "unipc",
]
