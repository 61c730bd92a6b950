"""Noise levels: which ones the sampler visits, and how churn raises them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import arguments

# A name in `SCHEDULES`, or a function of num_steps, sigma_min and sigma_max that returns levels.
Schedule = str | Callable[[int, float, float], Any]

# Each a pair: a monotonic function u of the noise level, and its inverse. A schedule is uniform in
# u.
SCHEDULES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # Uniform in the logarithm of the signal-to-noise ratio, -2 ln sigma.
    "exponential": (torch.log, torch.exp),
    "linear": (lambda sigma: sigma, lambda u: u),
    # Times of the cosine schedule, whose alpha is cos(u) (arXiv 2102.09672, eq. 17).
    "cosine": (torch.atan, torch.tan),
    # Times of rectified flow, x = (1 - t) y + t n (arXiv 2209.03003).
    "flow": (lambda sigma: sigma / (1 + sigma), lambda t: t / (1 - t)),
}


def rho_schedule(
    num_steps: int = 32,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Noise levels from `sigma_max` down to `sigma_min`, then 0.

    `sigma_i = (sigma_max^(1/rho) + i / (num_steps - 1) (sigma_min^(1/rho) -
    sigma_max^(1/rho)))^rho` for `i < num_steps`, `sigma_num_steps = 0` (EDM eq. 5). A single
    step goes from `sigma_max` straight to 0.

    Args:
        num_steps: number of steps, 1 to 10,000.
        sigma_min, sigma_max: lowest and highest level, in units of the data, from 1e-18 to 1e18.
        rho: exponent > 0; a larger one spends more steps at low noise. Towards infinity the levels
            become a geometric sequence.
        dtype: type of the sampler's state, torch.float32 or torch.float64, to which the levels are
            rounded; they are computed in float64.

    Returns:
        float64 `[num_steps + 1]` on the CPU.

    Raises:
        TypeError, ValueError: anything else, `sigma_min` that is not below `sigma_max`.
    """
    arguments.state_dtype(dtype, "rho_schedule")
    num_steps, sigma_min, sigma_max, rho = arguments.noise_levels(
        num_steps, sigma_min, sigma_max, rho, dtype, "rho_schedule"
    )
    share = torch.arange(num_steps, dtype=torch.float64, device="cpu") / max(num_steps - 1, 1)
    # With r = (sigma_min / sigma_max)^(1/rho) the formula reads sigma_max (1 - share (1 - r))^rho.
    # In logarithms nothing cancels for a large rho, where r is nearly 1, or leaves the range of
    # float64 for a small one; where r underflows, the last level needs setting.
    fall = math.expm1(math.log(sigma_min / sigma_max) / rho)
    sigma = sigma_max * torch.exp(rho * torch.log1p(share * fall))
    if num_steps > 1:
        sigma[-1] = sigma_min
    sigma = torch.nn.functional.pad(sigma, (0, 1))
    return sigma.to(dtype).to(torch.float64)


def schedule_levels(
    schedule: Schedule,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The noise levels of a schedule: "rho", one of `SCHEDULES`, or a function.

    Args:
        schedule: "rho" for `rho_schedule`; "exponential", "linear", "cosine" or "flow" for levels
            from `sigma_max` to `sigma_min` that are uniform in `ln sigma` (the logarithm of the
            signal-to-noise ratio), in sigma, in the times of the cosine schedule, or in those of
            rectified flow; or a function `(num_steps, sigma_min, sigma_max)` that returns levels.
        num_steps, sigma_min, sigma_max, rho, dtype: as for `rho_schedule`; `rho` for "rho" alone.

    Returns:
        float64 `[num_steps + 1]` on the CPU, the last 0.

    Raises:
        TypeError, ValueError: another name, or a function that returns no levels.
    """
    if schedule == "rho":
        return rho_schedule(num_steps, sigma_min, sigma_max, rho, dtype)
    if callable(schedule):
        return given_levels(schedule(num_steps, sigma_min, sigma_max), dtype, "schedule")
    if schedule not in SCHEDULES:
        raise ValueError(
            f"sample: schedule must be one of rho, {', '.join(SCHEDULES)}, or a function, got "
            f"{schedule!r}; rho is the published one"
        )
    to, back = SCHEDULES[schedule]
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64, device="cpu")
    first, last = to(ends)
    share = torch.arange(num_steps, dtype=torch.float64, device="cpu") / max(num_steps - 1, 1)
    sigma = back(first + share * (last - first))
    sigma[0] = sigma_max
    if num_steps > 1:
        sigma[-1] = sigma_min
    return given_levels(sigma, dtype, "schedule")


def given_levels(
    sigmas: Sequence[float] | Any, dtype: torch.dtype = torch.float64, argument: str = "sigmas"
) -> Tensor:
    """Noise levels that a user gives: falling, above 0, but for a 0 in the end, which may lack.

    Returns:
        float64 `[num_steps + 1]` on the CPU, the last 0, rounded to `dtype`.

    Raises:
        TypeError, ValueError: other levels.
    """
    try:
        levels = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"sample: {argument} must be noise levels, got {type(sigmas).__name__}; pass a list of "
            "numbers"
        ) from None
    if levels.ndim == 1 and len(levels) and levels[-1] == 0:
        levels = levels[:-1]
    levels = levels.to(dtype).to(torch.float64)
    least, most = arguments.LEVELS
    good = levels.ndim == 1 and 0 < len(levels) <= arguments.MOST_STEPS
    if not good or not ((levels >= least) & (levels <= most)).all() or (levels.diff() >= 0).any():
        raise ValueError(
            f"sample: {argument} must be 1 to {arguments.MOST_STEPS} falling noise levels from "
            f"{most:g} to {least:g}, got {list(levels.shape)} of others; a 0 may end them"
        )
    return torch.nn.functional.pad(levels, (0, 1))


@dataclass(frozen=True)
class Churn:
    """Stochasticity of the sampler: noise that is added before a step (EDM alg. 2).

    `S_churn` is the total amount, spread over all steps and limited to a rise of the noise level
    by `sqrt(2) - 1` in each; it applies where `S_min <= sigma <= S_max`; `S_noise` scales
    the standard deviation of what is added.
    """

    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def raised(self, sigma: float, num_steps: int) -> tuple[float, float]:
        """The level `sigma_hat` to which `sigma` is raised, and the std of the added noise."""
        if self.S_churn == 0 or not self.S_min <= sigma <= self.S_max:
            return sigma, 0.0
        gamma = min(self.S_churn / num_steps, math.sqrt(2) - 1)
        sigma_hat = sigma + gamma * sigma
        return sigma_hat, self.S_noise * math.sqrt(sigma_hat**2 - sigma**2)
