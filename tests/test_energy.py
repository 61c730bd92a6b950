"""Energy distance: by its definition, and where it is zero."""

import numpy as np
import pytest
import torch

from autoguide_fast.metrics import energy, energy_distance


def test_it_is_its_definition(monkeypatch):
    monkeypatch.setattr(energy, "_ROWS", 3)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), torch.from_numpy(rng.normal(size=(5, 3))).float()

    def mean(x, y, pairs):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return np.linalg.norm(x[:, None] - y[None], axis=2).sum() / pairs

    expected = 2 * mean(a, b, 35) - mean(a, a, 42) - mean(b, b, 20)
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert energy_distance(b, a) == pytest.approx(expected, rel=1e-12)


def test_it_is_zero_in_the_mean_for_one_distribution_and_not_for_two():
    rng = np.random.default_rng(1)
    same = [energy_distance(*rng.normal(size=(2, 200, 1))) for _ in range(60)]
    assert abs(np.mean(same)) < 4 * np.std(same) / len(same) ** 0.5
    # Means and variances agree, shapes do not.
    signs = rng.choice([-1.0, 1.0], size=(500, 1))
    assert energy_distance(rng.normal(size=(500, 1)), signs) > 0.05


def test_what_it_refuses():
    with pytest.raises(ValueError, match="b must have as many features as a, got 3 and 2"):
        energy_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="energy_distance: a must"):
        energy_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="energy_distance: b must"):
        energy_distance(np.zeros((2, 2)), np.full((4, 2), np.nan))
