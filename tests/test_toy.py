"""The two-dimensional toy: its distribution against golden numbers, its training, its command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from golden import DATA
from PIL import Image

import autoguide_fast
from autoguide_fast.checkpoints import save
from autoguide_fast.cli import main
from autoguide_fast.toy import ToyModel, fractal
from trainer.toy import training
from trainer.toy.measures import Figures, Judge, Spread, spreads
from trainer.toy.methods import METHODS, sampled
from trainer.toy.report import TRUTH, summary, table, verdict

TINY = {
    role: dataclasses.replace(recipe, hidden_dim=8, iterations=6, batch=64)
    for role, recipe in training.RECIPES.items()
}


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_and_scores_are_the_golden_ones(classes, dtype):
    golden = np.load(DATA / "toy2d.npz")
    x, sigma, log_density, score, mu, phi = (
        torch.from_numpy(golden[f"{classes}/{name}"]).to(dtype)
        for name in ("x", "sigma", "logp", "score", "mu", "phi")
    )
    data = fractal(classes)
    torch.testing.assert_close(data.means.flatten(0, 1).to(dtype), mu, atol=2e-7, rtol=0)
    torch.testing.assert_close((data.weight / 8).repeat_interleave(8).to(dtype), phi)
    known = log_density > -80  # below, float32 numbers of the golden file run out
    assert known.sum() > 45
    found = data.log_density(x, sigma)
    torch.testing.assert_close(found[known], log_density[known], atol=2e-4, rtol=0)
    torch.testing.assert_close(data.score(x, sigma)[known], score[known], atol=1e-3, rtol=2e-5)
    assert (found[~known] < -79).all() and found.isfinite().all()


def test_the_score_is_the_slope_of_the_density():
    x = fractal("AB").sample(50, torch.Generator().manual_seed(0)).double().requires_grad_()
    data, sigma = fractal("AB"), torch.logspace(-2.5, 0.5, 50, dtype=torch.float64)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        slope = [
            (data.log_density(x + h, sigma) - data.log_density(x - h, sigma)) / 2e-6 for h in step
        ]
        slope = torch.stack(slope, dim=1)
        torch.testing.assert_close(data.score(x, sigma), slope, rtol=1e-5, atol=1e-5)
        denoised = x + sigma[:, None] ** 2 * data.score(x, sigma)
        torch.testing.assert_close(data.denoised(x, sigma), denoised)


def test_points_are_of_the_distribution():
    data = fractal("A")
    points = data.sample(20_000, torch.Generator().manual_seed(0))
    shares = data.branches(points).double().mean(0)
    scatter = (data.weight * (1 - data.weight) / len(points)).sqrt()
    assert ((shares - data.weight).abs() < 5 * scatter + 2e-4).all()
    mean = (data.weight[:, None] * data.means.mean(1)).sum(0)
    assert (points.double().mean(0) - mean).abs().max() < 0.02
    # In a window of the root's middle, the density counts the points.
    middle = data.means[0].mean(0).float()
    inside = ((points - middle).abs() < 0.01).all(dim=1).double().mean()
    grid = torch.linspace(-0.01, 0.01, 21, dtype=torch.float64)
    window = torch.cartesian_prod(grid, grid) + middle
    density = data.log_density(window).exp().mean() * 0.02**2
    assert abs(inside - density) < 5 * (density / len(points)) ** 0.5
    assert data.distance(data.means.flatten(0, 1)).max() < 1e-6
    with pytest.raises(ValueError, match="fractal: classes must be one of A, B, AB, got 'C'"):
        fractal("C")


def test_a_toy_is_saved_and_sampled_by_its_file(tmp_path):
    net = ToyModel(hidden_dim=8)
    torch.nn.init.constant_(net.gain, 0.3)
    save(net, tmp_path / "main.safetensors", note="tiny")
    loaded = autoguide_fast.load(tmp_path / "main.safetensors")
    assert isinstance(loaded, ToyModel) and loaded.info == {"note": "tiny"}
    assert all(map(torch.equal, net.state_dict().values(), loaded.state_dict().values()))
    options = {"seeds": range(5), "num_steps": 4}
    found = autoguide_fast.sample(tmp_path / "main.safetensors", **options)
    assert found.shape == (5, 2)
    assert torch.equal(found, autoguide_fast.sample(net, sigma_max=5, shape=(2,), **options))


def test_training_lowers_the_loss_and_learns_the_gradient_that_it_says():
    recipe = dataclasses.replace(TINY["guide"], hidden_dim=16, iterations=60, batch=256)
    losses = []
    net = training.train(training.Training(recipe, 0), losses.append)
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])
    assert not net.training and net.gain != 0
    batch = training.draw(fractal("A"), recipe, stream=0, iteration=99)
    expected = ((net.score(batch.x, batch.sigma) - batch.score) * batch.sigma[:, None]) ** 2
    torch.testing.assert_close(training.loss(net, batch).detach(), expected.sum(1).mean())


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, capsys):
    recipe = TINY["main"]
    whole = training.trained(tmp_path / "whole", "main", recipe, 0)
    steps = []

    def stop():
        return len(steps) == 3

    def progress(iteration, loss):
        if loss is not None:
            steps.append(iteration)

    folder = tmp_path / "parts"
    assert training.trained(folder, "main", recipe, 0, progress, stop) is None
    assert [path.name for path in folder.iterdir()] == ["main-0.partial.pt"]
    resumed = training.trained(folder, "main", recipe, 0, progress)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in folder.iterdir()] == ["main-0.safetensors"]
    other = training.trained(tmp_path / "other", "main", recipe, 1)
    for a, b, c in zip(*(n.state_dict().values() for n in (whole, resumed, other)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    # Kept nets are not trained again, damaged and other ones are.
    steps.clear()
    training.trained(folder, "main", recipe, 0, progress)
    assert not steps
    path = folder / "main-0.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    (folder / "main-0.partial.pt").write_bytes(b"cut short")
    again = training.trained(folder, "main", recipe, 0, progress)
    assert len(steps) == 6 and torch.equal(again.gain, whole.gain)
    assert capsys.readouterr().err.count("training it anew") == 2
    longer = dataclasses.replace(recipe, iterations=7)
    training.trained(folder, "main", longer, 0, progress)
    assert len(steps) == 13 and "was trained otherwise" in capsys.readouterr().err


def test_figures_of_true_and_of_wrong_points():
    data, generator = fractal("A"), torch.Generator().manual_seed(3)
    judge = Judge(data)
    points = data.sample(8192, generator)
    true = judge.measure(points)
    assert true.off_tree < 0.004 and true.outside < 0.004
    assert true.branches > 0.98 and true.overlap > 0.94 and abs(true.energy) < 0.003
    half = points.clone()
    half[::2] = half[::2] + 3.0
    wrong = judge.measure(half)
    assert 0.5 <= wrong.off_tree < 0.505 and 0.5 <= wrong.outside < 0.505
    assert 0.4 < wrong.overlap < 0.5 and wrong.energy > 0.3
    trunk = judge.measure(points[data.branches(points)[:, 0] > 0.5])
    assert trunk.branches <= 3 / 127 and trunk.overlap < 0.35 and trunk.off_tree < 0.01


def test_a_perfect_denoiser_ends_on_the_tree():
    """The sampler, the noise levels and the figures, with the true score in the net's place."""
    data = fractal("A")

    class Perfect(ToyModel):
        def forward(self, x, sigma, class_labels=None):
            return data.denoised(x, sigma)

    figures = Judge(data).measure(sampled({"main": Perfect()}, METHODS["none"], range(2000)))
    assert figures.off_tree < 0.006 and figures.outside < 0.01
    assert figures.branches > 0.8 and figures.energy < 0.02


def _rows(**changed):
    base = {"off_tree": 0.01, "outside": 0.02, "branches": 0.9, "overlap": 0.9, "energy": 0.01}
    return [
        {"method": method, **base, **changed.get(method, {}), "off_tree": off + jitter}
        for method in (TRUTH, *METHODS)
        for jitter in (-1e-4, 0, 1e-4)
        for off in [changed.get(method, {}).get("off_tree", base["off_tree"])]
    ]


def test_claims_follow_the_figures():
    same = verdict(summary(_rows()))
    assert [line[:3].strip() for line in same] == ["no", "no", "no", "no", "yes", "no", "no"]
    as_in_the_paper = {
        TRUTH: {"off_tree": 0.001},
        "CFG": {"off_tree": 0.001, "branches": 0.4, "energy": 0.2},
        "autoguidance": {"off_tree": 0.002},
    }
    found = summary(_rows(**as_in_the_paper))
    assert all(line.startswith("yes") for line in verdict(found))
    assert "| 0.20 ± 0.01 |" in table(found) and "| 40.0 ± 0.0 |" in table(found)
    alone = Spread.of([0.5])
    assert alone.std is None and alone.text(100) == "50.00"
    assert spreads([Figures(0, 0, 0, 0, 1), Figures(0, 0, 0, 0, 3)])["energy"].std == 2**0.5


def test_the_command(tmp_path, capsys, monkeypatch):
    smaller = {
        "training.RECIPES": TINY,
        "measures._FOR_LIMITS": 8192,
        "measures._FOR_ENERGY": 500,
        "methods.NUM_STEPS": 8,
        "pictures._SHOWN": 500,
        "pictures._GRID": 40,
    }
    for name, value in smaller.items():
        monkeypatch.setattr(f"autoguide_fast.trainer.toy.{name}", value)  # as it is installed
    out = tmp_path / "toy"
    command = ["toy", "--out", str(out), "--points", "1000", "--repeats", "2", "--quiet"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.count("\n| ") == 1 + len(METHODS) and "yes" in text + "no"
    report = json.loads((out / "toy.json").read_text())
    assert set(report["methods"]) == {TRUTH, *METHODS} and len(report["claims"]) == 7
    assert len(report["sets"]) == 2 * (1 + len(METHODS))
    by_hand = [s["outside"] for s in report["sets"] if s["method"] == "CFG"]
    assert report["methods"]["CFG"]["outside"]["mean"] == pytest.approx(np.mean(by_hand))
    for name in ("points.png", "densities.png"):
        pixels = np.asarray(Image.open(out / name).convert("L"))
        for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            assert (edge == 255).all()  # no text runs out of the picture
    nets = {path.name: path.stat().st_mtime_ns for path in (out / "nets").iterdir()}
    assert set(nets) == {f"{role}-0.safetensors" for role in TINY}
    assert main(command) == 0  # with the nets that are there, to the same figures
    assert json.loads((out / "toy.json").read_text()) == report
    assert nets == {path.name: path.stat().st_mtime_ns for path in (out / "nets").iterdir()}
    assert main([*command[:3], "--points", "10"]) == 2
    assert "--points must be >= 1000, got 10" in capsys.readouterr().err
