"""EDM's preconditioning (EDM table 1): what a network is fed, and what its output means.

`D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`, where sd stands for `sigma_data`, the standard
deviation of the data. The fused steps compute the same in C++ (`csrc/guided_step.h`).
"""

from torch import Tensor


def magnitude(sigma: Tensor, sigma_data: float) -> Tensor:
    """The standard deviation of noisy data: `sqrt(sigma^2 + sd^2)`."""
    return (sigma**2 + sigma_data**2).sqrt()


def c_in(sigma: Tensor, sigma_data: float) -> Tensor:
    """`1 / sqrt(sigma^2 + sd^2)`, which gives noisy data unit variance."""
    return 1 / magnitude(sigma, sigma_data)


def c_noise(sigma: Tensor) -> Tensor:
    """`ln(sigma) / 4`, which the embedding takes."""
    return sigma.log() / 4


def c_guidance(guidance: Tensor) -> Tensor:
    """`(w - 1) / 4`, which the embedding of a net with a guidance weight for an input takes."""
    return (guidance - 1) / 4


def c_skip_and_c_out(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`sd^2 / (sigma^2 + sd^2)` and `sigma sd / sqrt(sigma^2 + sd^2)`."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt()


def denoised(x: Tensor, raw: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """D for noisy `x` and the network's output F, `raw`; `sigma` broadcasts against them."""
    c_skip, c_out = c_skip_and_c_out(sigma, sigma_data)
    return c_skip * x + c_out * raw
