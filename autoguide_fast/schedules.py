"""Noise levels: which ones the sampler visits, and how churn raises them."""

import math
from dataclasses import dataclass

import torch


def rho_schedule(num_steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0, dtype=torch.float64):
    """Noise levels from `sigma_max` down to `sigma_min`, then 0.

    `sigma_i = (sigma_max^(1/rho) + i / (num_steps - 1) (sigma_min^(1/rho) -
    sigma_max^(1/rho)))^rho` for `i < num_steps`, `sigma_num_steps = 0` (EDM eq. 5). A single
    step goes from `sigma_max` straight to 0.

    Args:
        num_steps (int): Number of steps, at least 1.
        sigma_min, sigma_max (float): Lowest (above 0) and highest level, in units of the data.
        rho (float): Exponent; a larger one spends more steps at low noise.
        dtype (torch.dtype): Precision in which the formula is evaluated, that of the sampler's
            state, as published.

    Returns:
        Tensor [num_steps + 1] float64 on the CPU.
    """
    i = torch.arange(num_steps, dtype=dtype)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = (high + i / max(num_steps - 1, 1) * (low - high)) ** rho
    return torch.cat([sigma, torch.zeros(1, dtype=dtype)]).to(torch.float64)


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

    def raised(self, sigma, num_steps):
        """The level `sigma_hat` to which `sigma` is raised, and the std of the added noise."""
        if self.S_churn == 0 or not self.S_min <= sigma <= self.S_max:
            return sigma, 0.0
        gamma = min(self.S_churn / num_steps, math.sqrt(2) - 1)
        sigma_hat = sigma + gamma * sigma
        return sigma_hat, self.S_noise * math.sqrt(sigma_hat**2 - sigma**2)
