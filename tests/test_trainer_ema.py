"""Averages, their reconstruction and their names; the learning rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_trainer_commands import run

from autoguide_fast import checkpoints, ema, sample
from autoguide_fast.trainer import snapshots
from autoguide_fast.trainer.ema import PowerFunctionEMA
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
    tracker = PowerFunctionEMA(net, (0.05, 0.2))
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
    tracked, truth = PowerFunctionEMA(net, (0.05, 0.10)), PowerFunctionEMA(net, wanted)
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
    (last,) = ema.reconstruct(states, [0.1])
    torch.testing.assert_close(last["w"], torch.full([2], 3.0))


def test_betas_at_the_ends():
    assert ema.power_function_beta(0.1, 8, 0) == 1
    assert ema.power_function_beta(0.1, 8, 8) == 0


@pytest.mark.parametrize(
    ("sigma_rel", "name"),
    [
        (0.05, "0.050"),
        (0.1, "0.100"),
        (0.0125, "0.0125"),
        (0.0004, "0.0004"),
        (1e-5, "0.00001"),
        (0.1 + 0.02, "0.12000000000000001"),
        (1 / 7, "0.14285714285714285"),
    ],
)
def test_the_name_of_a_length_is_exact(sigma_rel, name):
    assert ema.length_name(sigma_rel) == name and float(name) == sigma_rel


def test_names_of_lengths_stay_apart():
    lengths = [np.nextafter(0.1234, 1), 0.1234, 0.1231, np.nextafter(0.1231, 0)]
    assert len({snapshots.average_name(16, length) for length in lengths}) == 4


def test_lengths_that_differ_in_the_fourth_decimal_stay_apart(capsys, tmp_path, monkeypatch):
    """In training, in reconstruction and in what the least squares are given."""
    tracked = [0.0125, 0.0504, 0.0501]
    code, out, err = run(
        capsys,
        "train",
        "--out",
        tmp_path / "run",
        "--ema",
        *tracked,
        "--channels",
        4,
        "--channels-per-head",
        4,
        "--batch",
        16,
        "--rampup",
        0,
        "--duration",
        320,
        "--snapshots",
        2,
        "--grid",
        0,
        "--quiet",
        "--guide",
        "8:T/2",
    )
    assert code == 0, err
    names = [f"000000320-{length}.safetensors" for length in tracked]
    folder = tmp_path / "run" / "snapshots"
    assert set(names) <= {p.name for p in folder.iterdir()}
    files = [word for word in out.split() if word.endswith(".safetensors")]
    assert len(files) == 2 and all(Path(file).is_file() for file in files)

    code, out, err = run(
        capsys,
        "ema",
        "reconstruct",
        "--run",
        tmp_path / "run",
        "--ema",
        *tracked,
        "--out",
        tmp_path / "nets",
    )
    assert code == 0 and "sigma_rel 0.0125 at 320 images" in out, err
    (folder / names[0]).rename(folder / "000000320-0.013.safetensors")  # an earlier version's name
    again = checkpoints.load(tmp_path / "run", ema=tracked[0])
    assert again.info == {"nimg": 320, "sigma_rel": tracked[0]}
    assert checkpoints.load(tmp_path / "run" / "guide", ema=0.1).info["nimg"] == 160
    for arguments, message in (
        ((tmp_path / "run",), "ema must be given for the folder of a run, got None for"),
        ((tmp_path / "run", "cpu", 0.5), r"ema must lie in \(0, 0.2887\), got 0.5"),
        ((folder / names[1], "cpu", 0.1), "ema must be left out for what is no folder of a run"),
        (("digits", "cpu", 0.1), "ema must be left out for what is no folder of a run, got 0.1"),
    ):
        with pytest.raises(ValueError, match=f"^load: {message}"):
            checkpoints.load(*arguments)
    with torch.inference_mode():
        assert not checkpoints.load(tmp_path / "run", ema=0.1).unet.out_gain.is_inference()
    # A folder that happens to be called as a bundled net is does not hide that.
    (tmp_path / "digits").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert checkpoints.load("digits").config != again.config
    assert checkpoints.load("digits", ema=0.1).config == again.config
    with pytest.raises(ValueError, match=r"sample: model must be a file, .* pass autoguide_fast.l"):
        sample(tmp_path / "run", seeds=[0])
    nets = [checkpoints.load(tmp_path / "nets" / name) for name in names] + [again]
    originals = ["000000320-0.013.safetensors", *names[1:], "000000320-0.013.safetensors"]
    states = [checkpoints.load(folder / name).state_dict() for name in originals]
    assert len({net.unet.out_gain.item() for net in nets}) == 3
    for net, state in zip(nets, states, strict=True):
        for name, value in state.items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ema.sigma_rel_to_gamma(0.3), "sigma_rel must lie in"),
        (lambda: ema.sigma_rel_to_gamma(0.0), "sigma_rel must lie in"),
        (lambda: ema.sigma_rel_to_gamma(12**-0.5), "sigma_rel must lie in"),
        (lambda: ema.power_function_beta(0.1, 8, 16), "t_delta must lie in"),
        (lambda: ema.power_function_beta(0.1, 8, -1), "t_delta must lie in"),
        (lambda: ema.power_function_beta(0.1, 0, 0), "t_delta must lie in"),
        (lambda: ema.posthoc_coefficients([1], [0.1, 0.2], [1], [0.1]), "of one length"),
        (lambda: ema.posthoc_coefficients([], [], [1], [0.1]), "in_nimg .* of one length >= 1"),
        (lambda: ema.posthoc_coefficients([1], [0.1], [], []), "out_nimg .* of one length >= 1"),
        (lambda: ema.posthoc_coefficients([[1]], [[0.1]], [1], [0.1]), r"got shapes \(1, 1\) and"),
        (lambda: ema.posthoc_coefficients([0], [0.1], [1], [0.1]), "in_nimg must be > 0"),
        (lambda: ema.posthoc_coefficients([1, 1], [0.1] * 2, [1], [0.1]), "must differ"),
        (
            lambda: ema.posthoc_coefficients(
                [1] * 2, [0.05, 0.05 + 1e-9], [1] * 3, [0.05, 0.05, 0.1]
            ),
            "must be near the stored 0.050, 0.050000001, or .* got 0.100, for which .* magnify",
        ),
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
    averages = PowerFunctionEMA(net)
    assert averages.sigma_rels == [0.05, 0.10]  # as published
    averages.update(8, 8)
    state = averages.state_dict()
    again = PowerFunctionEMA(torch.nn.Linear(2, 2))
    again.load_state_dict(state)
    for one, other in zip(averages.emas, again.emas, strict=True):
        assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, net.bias)
    with pytest.raises(ValueError, match=r"sigma_rels must stay \[0.05, 0.1\] .*got \[0.2, 0.1\]"):
        PowerFunctionEMA(net, (0.2, 0.1)).load_state_dict(state)
