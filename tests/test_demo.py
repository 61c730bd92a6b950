"""The demo, shortened: same nets, same steps of the program, fewer noise levels and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from autoguide_fast import load
from autoguide_fast.cli import demo, main


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(demo, "NUM_STEPS", 6)


def test_demo_prints_a_table_and_writes_a_picture(short, tmp_path, capsys):
    picture = tmp_path / "demo.png"
    assert (
        main(["demo", "--images", "100", "--weights", "2", "--out", str(picture), "--quiet"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "w",
        "FD",
        "FD",
        "held-out",
        "precision",
        "recall",
        "class",
        "images/s",
    ]
    weights = {
        "no guidance": 1.0,
        "CFG": load("digits-uncond").info["recommended_guidance"],
        "autoguidance": load("digits").info["recommended_guidance"],
    }
    for line, (name, weight) in zip(lines[2:5], weights.items(), strict=True):
        assert line.startswith(name)
        figures = line.removeprefix(name).split()
        assert float(figures[0]) == pytest.approx(weight, abs=0.005)
        assert 0 < float(figures[1]) < 10 and 0 < float(figures[2]) < 10
        assert all(0 <= float(figure) <= 1 for figure in figures[3:5])
        assert 50 < float(figures[5].rstrip("%")) <= 100
        assert float(figures[6]) > 0
    assert "100 images per method" in " ".join(lines)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (720, 2100)
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == 255).all()  # no text runs out of the picture


def test_demo_of_mnist_has_no_cfg(monkeypatch, tmp_path):
    """On stand-ins for the digits, which another package brings."""
    random = np.random.RandomState(0)
    digits = torch.from_numpy(random.randint(0, 256, (60, 1, 28, 28)).astype(np.uint8))
    labels = torch.arange(60) % 10
    monkeypatch.setattr("autoguide_fast.mnist.load_mnist", lambda split: (digits, labels))
    monkeypatch.setattr(demo, "NUM_STEPS", 2)
    comparison = demo.Comparison(weights=(), data="mnist")
    comparison.sample_all(20, progress=False)
    assert [method.name for method in comparison.methods] == ["no guidance", "autoguidance"]
    shown = comparison._shown(comparison.methods[1])
    assert shown.images.shape == (20, 1, 28, 28)
    assert "20 images per method" in " ".join(comparison.table().split())


def test_demo_shows_the_same_seeds_and_classes_in_every_grid(short):
    comparison = demo.Comparison(weights=())
    comparison.sample_all(100, progress=False)
    shown = [comparison._shown(method).images for method in comparison.methods]
    assert all(images.shape == (100, 1, 8, 8) for images in shown)
    assert all(images.dtype == torch.uint8 for images in shown)
    # One seed and class in three ways is more alike than two seeds of one class.
    same = np.mean([(shown[0].double() - other.double()).abs().mean() for other in shown[1:]])
    others = shown[0].double().roll(10, dims=0)  # the row below: the same classes, other seeds
    assert same < (shown[0].double() - others).abs().mean()
    # And what the table says is what was judged.
    for method in comparison.methods:
        quality = comparison.quality[method.name]
        assert quality.frechet == comparison.sampled[method.name, method.recommended].frechet
        assert f"{quality.frechet:.3f}" in comparison.table()


def test_demo_takes_as_many_images_as_it_can_afford(monkeypatch):
    comparison = demo.Comparison()
    seconds = {"value": 0.0}
    monkeypatch.setattr(
        comparison, "_sample", lambda method, weight, nimg: (None, seconds["value"])
    )
    jobs = len(comparison.jobs())
    for per_image, expected in ((1e-9, demo.MOST_IMAGES), (1e3, demo.FEWEST_IMAGES)):
        seconds["value"] = per_image * demo.TRIAL_IMAGES
        assert comparison.affordable() == expected
    seconds["value"] = demo.BUDGET_SECONDS / (jobs * 750) * demo.TRIAL_IMAGES
    assert comparison.affordable() == 700
