"""Noise levels: the published formula, its ends, its precision; churn."""

import math

import pytest
import torch

from autoguide_fast.schedules import Churn, rho_schedule


@pytest.mark.parametrize("num_steps", [2, 5, 32])
@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80, 7), (0.01, 20, 5), (0.5, 2, 1)])
def test_formula(num_steps, low, high, rho):
    sigmas = rho_schedule(num_steps, low, high, rho)
    expected = [
        (high ** (1 / rho) + i / (num_steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(num_steps)
    ] + [0]
    assert sigmas.dtype == torch.float64 and sigmas.shape == (num_steps + 1,)
    assert sigmas.tolist() == pytest.approx(expected, rel=1e-12)
    assert (sigmas.diff() < 0).all()
    assert sigmas[0].item() == pytest.approx(high) and sigmas[-2].item() == pytest.approx(low)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rho", [1e-300, 0.1, 0.5, 7, 100, 1e4, 1e300])
def test_any_rho_falls_from_end_to_end(rho, dtype):
    sigmas = rho_schedule(33, rho=rho, dtype=dtype)
    ends = torch.tensor([80.0, 0.002], dtype=dtype).double()
    assert torch.equal(sigmas[[0, -2]], ends)
    assert (sigmas.diff() <= 0).all() and sigmas.isfinite().all()
    if rho > 1e4:  # its limit, in which every level is the same share of the one before
        ratios = sigmas[1:-1] / sigmas[:-2]
        assert ratios.tolist() == pytest.approx([(0.002 / 80) ** (1 / 32)] * 32, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"sigma_min": 100}, ValueError, "sigma_min must be below sigma_max"),
        ({"rho": math.nan}, ValueError, "rho must be above 0 and finite"),
        ({"dtype": torch.float16}, TypeError, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_bad_levels(options, error, message):
    with pytest.raises(error, match="rho_schedule: " + message):
        rho_schedule(**options)


def test_defaults_are_the_published_ones():
    assert torch.equal(rho_schedule(), rho_schedule(32, 0.002, 80.0, 7.0, torch.float64))
    assert Churn() == Churn(0.0, 0.0, math.inf, 1.0)


def test_rho_of_one_is_linear():
    assert rho_schedule(5, 1, 3, 1).tolist() == pytest.approx([3, 2.5, 2, 1.5, 1, 0])


def test_one_step_goes_straight_to_zero():
    assert rho_schedule(1).tolist() == pytest.approx([80, 0])


def test_float32_precision_is_that_of_the_state():
    exact, rounded = rho_schedule(), rho_schedule(dtype=torch.float32)
    assert rounded.dtype == torch.float64
    assert torch.equal(rounded.float().double(), rounded)
    assert not torch.equal(rounded, exact)
    assert torch.allclose(rounded, exact, rtol=1e-5)


def test_no_churn():
    assert Churn().raised(3.0, 8) == (3.0, 0.0)
    assert Churn(S_noise=2).raised(3.0, 8) == (3.0, 0.0)


@pytest.mark.parametrize(("S_churn", "gamma"), [(2, 0.25), (40, math.sqrt(2) - 1)])
def test_churn_raises_the_level_and_pays_for_it_in_variance(S_churn, gamma):
    sigma_hat, std = Churn(S_churn).raised(3.0, 8)
    assert sigma_hat == pytest.approx(3 * (1 + gamma))
    assert std**2 == pytest.approx(sigma_hat**2 - 9)
    assert Churn(S_churn, S_noise=1.1).raised(3.0, 8)[1] == pytest.approx(1.1 * std)


@pytest.mark.parametrize(("sigma", "churned"), [(0.9, False), (1, True), (3, True), (3.1, False)])
def test_churn_has_inclusive_bounds(sigma, churned):
    assert (Churn(8, S_min=1, S_max=3).raised(sigma, 8)[1] > 0) == churned
