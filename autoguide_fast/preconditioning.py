"""EDM's preconditioning (EDM table 1): what a network is fed, and what its output means.

`D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)`, where sd stands for `sigma_data`, the standard
deviation of the data. The fused steps compute the same in C++ (`csrc/guided_step.h`).
"""


def magnitude(sigma, sigma_data):
    """The standard deviation of noisy data: `sqrt(sigma^2 + sd^2)`."""
    return (sigma**2 + sigma_data**2).sqrt()


def c_in(sigma, sigma_data):
    """`1 / sqrt(sigma^2 + sd^2)`, which gives noisy data unit variance."""
    return 1 / magnitude(sigma, sigma_data)


def c_noise(sigma):
    """`ln(sigma) / 4`, which the embedding takes."""
    return sigma.log() / 4


def c_skip_and_c_out(sigma, sigma_data):
    """`sd^2 / (sigma^2 + sd^2)` and `sigma sd / sqrt(sigma^2 + sd^2)`."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt()


def denoised(x, raw, sigma, sigma_data):
    """D for noisy `x` and the network's output F, `raw`; `sigma` broadcasts against them."""
    c_skip, c_out = c_skip_and_c_out(sigma, sigma_data)
    return c_skip * x + c_out * raw
