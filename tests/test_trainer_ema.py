"""The trainer's arithmetic without a net: averages, their reconstruction, the rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoguide_fast.trainer import ema
from autoguide_fast.trainer.schedule import learning_rate

GOLDEN = np.load(Path(__file__).parent / "data" / "posthoc_ema.npz")
FLOAT64 = 1e-12  # relative; the coefficients solve a system of condition 500


def assert_close(value, reference, tolerance=FLOAT64):
    np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * np.abs(reference).max())


# --- golden -------------------------------------------------------------------------------------


def test_exponents_match_golden():
    assert_close(ema.sigma_rel_to_gamma(GOLDEN["stds"]), GOLDEN["exponents"])
    assert_close(ema.gamma_to_sigma_rel(GOLDEN["exponents"]), GOLDEN["stds_back"])


def test_betas_match_golden():
    betas = [
        [ema.power_function_beta(s, t, float(GOLDEN["beta_t_delta"])) for s in GOLDEN["stds"]]
        for t in GOLDEN["beta_t_next"]
    ]
    assert_close(betas, GOLDEN["betas"])


def test_coefficients_match_golden():
    names = ("in_ofs", "in_std", "out_ofs", "out_std")
    assert_close(ema.posthoc_coefficients(*(GOLDEN[n] for n in names)), GOLDEN["coefficients"])


def test_learning_rates_match_golden():
    rates = [learning_rate(n, 2048, 0.01, 70_000, 10e6) for n in GOLDEN["lr_nimg"]]
    assert_close(rates, GOLDEN["lr"])


# --- averages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_width_and_exponent_are_inverse(sigma_rel):
    gamma = ema.sigma_rel_to_gamma(sigma_rel)
    assert ema.gamma_to_sigma_rel(gamma) == pytest.approx(sigma_rel, rel=1e-12)


def test_tracker_follows_the_power_profile():
    """Weights that equal t/T average to the profile's mean, (gamma + 1) / (gamma + 2)."""
    net = torch.nn.Linear(1, 1, bias=False).double()
    tracker = ema.PowerFunctionEMA(net, (0.05, 0.2))
    steps = 4000
    for step in range(1, steps + 1):
        with torch.no_grad():
            net.weight.fill_(step / steps)
        tracker.update(step * 8, 8)
    for sigma_rel, average in zip(tracker.sigma_rels, tracker.emas, strict=True):
        gamma = ema.sigma_rel_to_gamma(sigma_rel)
        assert average.weight.item() == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_reconstruction_finds_averages_that_were_not_tracked():
    """A wandering weight, averaged at 0.05 and 0.10, gives back its average at other widths."""
    torch.manual_seed(0)
    net = torch.nn.Linear(50, 1, bias=False).double()
    wanted = (0.04, 0.07, 0.10, 0.15)
    tracked, truth = ema.PowerFunctionEMA(net, (0.05, 0.10)), ema.PowerFunctionEMA(net, wanted)
    snapshots, steps = [], 640
    for step in range(1, steps + 1):
        with torch.no_grad():
            net.weight.add_(torch.randn_like(net.weight))
        tracked.update(step, 1)
        truth.update(step, 1)
        if step % 20 == 0:
            for sigma_rel, average in zip(tracked.sigma_rels, tracked.emas, strict=True):
                state = {k: v.clone() for k, v in average.state_dict().items()}
                snapshots.append((step, sigma_rel, state))
    rebuilt = ema.reconstruct(snapshots, wanted)
    step_size = net.weight.std() / steps**0.5  # of the random walk
    for sigma_rel, average, state in zip(wanted, truth.emas, rebuilt, strict=True):
        error = (state["weight"] - average.weight).pow(2).mean().sqrt()
        # Far below the distance between neighbouring widths, which is several step sizes.
        assert error < (1e-9 if sigma_rel == 0.10 else 0.2) * step_size, sigma_rel


def test_reconstruction_at_an_earlier_time_ignores_later_snapshots():
    states = [(t, 0.1, {"w": torch.full([2], float(t))}) for t in (1, 2, 3)]
    (state,) = ema.reconstruct(states, [0.1], nimg=2)
    torch.testing.assert_close(state["w"], torch.full([2], 2.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ema.sigma_rel_to_gamma(0.3), "sigma_rel must lie in"),
        (lambda: ema.sigma_rel_to_gamma(0.0), "sigma_rel must lie in"),
        (lambda: ema.power_function_beta(0.1, 8, 16), "t_delta must lie in"),
        (lambda: ema.power_function_beta(0.1, 8, -1), "t_delta must lie in"),
        (lambda: ema.power_function_beta(0.1, 0, 0), "t_delta must lie in"),
        (lambda: ema.posthoc_coefficients([1], [0.1, 0.2], [1], [0.1]), "of one length"),
        (lambda: ema.posthoc_coefficients([0], [0.1], [1], [0.1]), "in_nimg must be > 0"),
        (lambda: ema.posthoc_coefficients([1, 1], [0.1] * 2, [1], [0.1]), "must differ"),
        (lambda: ema.reconstruct([], [0.1]), "at least one"),
        (lambda: learning_rate(-1, 8), "nimg must be >= 0"),
        (lambda: learning_rate(float("nan"), 8), "nimg must be >= 0"),
        (lambda: learning_rate(1, 0), "batch_size must be >= 1"),
        (lambda: learning_rate(1, 8, alpha_ref=-1), "alpha_ref must be >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_learning_rate_without_ramp_and_decay():
    assert learning_rate(1e12, 8, 0.02, t_ref=0, rampup_nimg=0) == 0.02


def test_averages_come_back_from_a_checkpoint():
    net = torch.nn.Linear(2, 2)
    averages = ema.PowerFunctionEMA(net)
    assert averages.sigma_rels == [0.05, 0.10]  # as published
    averages.update(8, 8)
    state = averages.state_dict()
    again = ema.PowerFunctionEMA(torch.nn.Linear(2, 2))
    again.load_state_dict(state)
    for one, other in zip(averages.emas, again.emas, strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, net.bias)
    with pytest.raises(ValueError, match=r"sigma_rels must stay \[0.05, 0.1\] .*got \[0.2, 0.1\]"):
        ema.PowerFunctionEMA(net, (0.2, 0.1)).load_state_dict(state)
