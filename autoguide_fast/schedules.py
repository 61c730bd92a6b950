"""Noise levels: which ones the sampler visits, and how churn raises them."""

import math
from dataclasses import dataclass

import torch

from . import arguments


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
