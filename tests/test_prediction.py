"""The study of what `diagnose` foretells: its measures are right where that is known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autoguide_fast.toy import fractal


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))


class Perfect:
    """The toy's perfect denoiser, or that of a wider distribution."""

    def __init__(self, width=0.0):
        self.width, self.data = width, fractal("A")

    def double(self):
        return self

    def __call__(self, x, sigma):
        level = float((sigma**2 + self.width**2) ** 0.5)
        return x + sigma**2 * self.data.score(x, level)


def test_the_likelihood_is_the_true_one_for_the_perfect_denoiser():
    from prediction_likelihood import POINTS, negative_log_likelihood

    data = fractal("A")
    x = data.sample(POINTS, torch.Generator().manual_seed(51)).double()
    x = x + 0.002 * torch.randn(x.shape, generator=torch.Generator().manual_seed(52)).double()
    true = -float(data.log_density(x, 0.002).mean())
    found = negative_log_likelihood(Perfect(), Perfect(0.1), 1.0)
    assert found == pytest.approx(true, abs=0.2)  # in 20 steps
    wide = negative_log_likelihood(Perfect(0.1), Perfect(0.15), 1.0)
    guided = negative_log_likelihood(Perfect(0.1), Perfect(0.15), 1.5)
    assert found < guided < wide - 0.05


def row(gain, distances):
    """A pair whose best weights remove `gain` of the error at each of two levels."""
    moments = {"error": [1.0, 1.0], "along": [gain, gain], "gram": [gain, gain]}
    distance = {name: {"train": value} for name, value in distances.items()}
    return {
        "pair": f"{gain}",
        "data": "digits",
        "kind": "",
        "levels": [0.1, 1.0],
        "training": moments,
        "heldout": moments,
        "distance": distance,
    }


def test_the_order_of_gains_is_told():
    import prediction_verdict as verdict

    rows = [
        row(gain, {"w=1": 1.0, "w=1.3": np.exp(-gain), "w=1.7": 1.2, "training x2": np.exp(-gain)})
        for gain in (0.05, 0.1, 0.2, 0.3, 0.4)
    ]
    predicted = [verdict.error_removed(r, "training") for r in rows]
    assert predicted == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.4])
    gains = [verdict.measured(r, "training x2") for r in rows]
    assert gains == pytest.approx(predicted)
    at, low, high = verdict.rank(predicted, gains)
    assert at == pytest.approx(1) and low > 0.9 and high == pytest.approx(1)
    assert verdict.rank(predicted, [-g for g in gains])[0] == pytest.approx(-1)
    # ln of the distance is -1 + (w - 1.4)^2 where it is a parabola.
    parabola = {f"w={w}": float(np.exp(-1 + (w - 1.4) ** 2)) for w in (1, 1.3, 1.7, 2.4)}
    assert verdict.best_constant(row(0.1, parabola)) == pytest.approx(-1)
    assert verdict.best_constant(row(0.1, {"w=1": 1.0, "w=1.3": 2.0})) == 0


def test_a_line_that_was_cut_short_is_measured_again(tmp_path):
    import prediction
    from prediction_pairs import all_pairs

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"pair": "a"}) + '\n{"pair": "b')
    assert prediction.read(file) == [{"pair": "a"}]
    names = [pair.name for pair in all_pairs()]
    assert len(set(names)) == len(names) >= 60
