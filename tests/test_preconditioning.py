"""The preconditioning's coefficients, against EDM table 1 in plain numbers."""

import math

import pytest
import torch

from autoguide_fast.preconditioning import c_in, c_noise, c_skip_and_c_out, denoised, magnitude

LEVELS = [1e-3, 0.5, 1.0, 80.0]


@pytest.mark.parametrize("sd", [0.5, 1.0, 2.5])
def test_coefficients(sd):
    sigma = torch.tensor(LEVELS, dtype=torch.float64)
    skip, out = c_skip_and_c_out(sigma, sd)
    for i, s in enumerate(LEVELS):
        assert skip[i].item() == pytest.approx(sd * sd / (s * s + sd * sd), rel=1e-15)
        assert out[i].item() == pytest.approx(s * sd / math.hypot(s, sd), rel=1e-15)
        assert c_in(sigma, sd)[i].item() == pytest.approx(1 / math.hypot(s, sd), rel=1e-15)
        assert magnitude(sigma, sd)[i].item() == pytest.approx(math.hypot(s, sd), rel=1e-15)
        assert c_noise(sigma)[i].item() == pytest.approx(math.log(s) / 4, rel=1e-15)


def test_what_they_are_for():
    """Unit variance goes in, unit variance is asked for, and little noise leaves D near x."""
    generator = torch.Generator().manual_seed(0)
    sigma, sd = torch.tensor(LEVELS, dtype=torch.float64)[:, None], 0.5
    data, noise = torch.randn(2, 4, 100_000, generator=generator, dtype=torch.float64)
    data, x = sd * data, sd * data + sigma * noise
    assert ((c_in(sigma, sd) * x).var(dim=1) - 1).abs().max() < 0.02
    skip, out = c_skip_and_c_out(sigma, sd)
    target = (data - skip * x) / out
    assert (target.var(dim=1) - 1).abs().max() < 0.02
    assert torch.allclose(denoised(x, target, sigma, sd), data)
    assert (denoised(x, noise, sigma, sd) - x)[0].abs().max() < 0.01


def test_types_are_those_of_the_levels():
    for dtype in (torch.float32, torch.float64):
        sigma = torch.tensor(0.7, dtype=dtype)
        values = (c_in(sigma, 0.5), c_noise(sigma), *c_skip_and_c_out(sigma, 0.5))
        assert all(value.dtype == dtype for value in values)
