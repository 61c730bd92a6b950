"""The last round of `train --guide auto`: who is in it, distances and their noise, and verdicts."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from autoguide_fast import load, metrics, sample
from autoguide_fast.digits import load_digits
from autoguide_fast.encoders import LatentEncoder
from autoguide_fast.networks import Precond
from autoguide_fast.trainer import auto_guide, guide_finals
from autoguide_fast.trainer.feature_parts import FeatureParts
from autoguide_fast.trainer.guide_finals import Comparison, Measured, decide, nearer
from autoguide_fast.trainer.guide_scores import Candidate
from autoguide_fast.trainer.options import TrainOptions


def candidate(net, nimg, cost=0.0):
    return Candidate(net, Path(), 8, nimg, 0.1, cost, 0.0)


def test_finalists_are_the_best_of_each_run_and_two_times_of_the_past():
    candidates = [
        candidate("8 channels", 10, 0.1),
        candidate("8 channels", 20, 0.2),
        candidate("past", 100),
        candidate("past", 100),
        candidate("past", 200),
        candidate("past", 300),
        candidate("5 channels", 10, 0.05),
    ]
    gains = [0.2, 0.9, 0.5, 0.4, -0.1, 0.3, 0.8]
    assert guide_finals.finalists(candidates, gains) == [2, 5, 6, 1]
    assert guide_finals.finalists(candidates[:4], gains[:4]) == [2, 1]


def test_as_many_images_as_the_budget_allows():
    def of(duration, budget=0.05):
        main = TrainOptions(duration=duration)
        auto = auto_guide.auto_guide(main, budget=budget)
        return *guide_finals.images_of_each(main, auto), auto

    few, cost, auto = of(102_400)
    assert few == guide_finals.FEWEST
    # 24 steps; unguided, two of the past with the main net, two narrower ones with it.
    narrow = sum(auto.costs.values()) * 102_400
    assert cost == pytest.approx(few * 24 * (1 + 4 + 2 + narrow) / 3 / 102_400)
    count, cost, _ = of(409_600)
    assert guide_finals.FEWEST < count < guide_finals.MOST and 0.049 < cost <= 0.05
    most, cost, _ = of(20_480_000)
    assert most == guide_finals.MOST and cost < 0.02


def measured(values):
    """By a distance that is the mean of some values, of which each is a group."""
    values = np.asarray(values)
    rest = [np.delete(values, i).mean() for i in range(len(values))]
    return Measured(values.mean(), tuple(rest))


def test_noise_is_that_of_the_difference():
    random = np.random.default_rng(0)
    shared, own = 100 * random.standard_normal(16), random.standard_normal(16)
    a, b = measured(shared), measured(shared + 3 + own)
    difference, error = nearer(a, b)
    assert difference == pytest.approx(3 + own.mean())
    # Of a mean, the jackknife's error is the usual one.
    assert error == pytest.approx(own.std(ddof=1) / 4)
    assert nearer(b, a) == pytest.approx((-difference, error))
    far = Measured(math.inf)
    assert nearer(a, far) == (math.inf, 0) and nearer(far, a) == (-math.inf, 0)
    assert nearer(far, far) == (0, 0)


NOISE = np.resize([1.0, -1.0], 16)  # of a difference: a standard error of 0.258
FREE, PAID = 0.0, 0.1


@pytest.mark.parametrize(
    ("found", "costs", "best", "words"),
    [
        ([5, 4, 4.2], [FREE, FREE, PAID], 1, ["no trained guide comes as near", "than without"]),
        ([4, 5, 3.8], [FREE, FREE, PAID], 0, ["no trained guide could be told", "than without"]),
        ([4, 5, 3.0], [FREE, FREE, PAID], 2, ["past by 1 ± 0.26", "without a guide by 7 ± 0.52"]),
        ([4, 3.0, 2.0], [FREE, PAID, PAID], 2, ["past by 2 ± 0.26", "than without a guide"]),
        ([12, 11.8], [FREE, PAID], 0, ["no trained guide could be told", "it gains nothing"]),
        ([12, 13], [FREE, PAID], 0, ["as near to the data", "gains nothing: samples"]),
        ([9.8, 13], [FREE, PAID], 0, ["as near to the data", "from noise: .* by 0.2 ± 0.26"]),
        ([9.0], [FREE], 0, ["without a guide by 1 ± 0.26"]),
        ([math.inf, 9.0], [FREE, PAID], 1, ["past by inf", "without a guide by 1"]),
        ([math.inf, math.inf], [FREE, PAID], 0, ["as near", "it gains nothing"]),
    ],
)
def test_a_trained_guide_must_be_nearer_than_one_that_costs_nothing(found, costs, best, words):
    # Noise in turn, so that each difference has some.
    rows = [
        measured(value + (0, 1, -1)[i % 3] * NOISE) if value < math.inf else Measured(math.inf)
        for i, value in enumerate(found)
    ]
    unguided = measured(10 + (NOISE if best != 1 else 0 * NOISE))
    place, told, why = decide(rows, unguided, costs)
    assert place == best
    assert told == (not any("could" in w or "noise" in w for w in words))
    assert len(why) == len(words)
    assert all(re.search(w, line) for w, line in zip(words, why, strict=True))


def sampled(comparison, model, guide, guidance, folder):
    parts = FeatureParts(folder, {}, "train")
    assert [*comparison.sampled(model, guide, guidance, parts)]
    assert not [*comparison.sampled(None, None, None, parts)]  # all are there
    return comparison.measured(parts)


def test_small_images_are_compared_by_frechets_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(guide_finals, "_PART", 150)
    monkeypatch.setattr(guide_finals, "STEPS", 6)
    comparison = Comparison(TrainOptions(), 256)
    assert comparison.name == "Frechet distance in pixels"
    model, guide = load("digits"), load("digits-guide")
    found = sampled(comparison, model, guide, 1.5, tmp_path / "a")
    images, labels = load_digits("train")
    order = np.random.default_rng(0).permutation(len(images))
    fake = metrics.pixel_features(
        sample(
            model,
            guide,
            1.5,
            class_labels=np.asarray(labels)[order[:256]],
            seeds=range(70_000_000, 70_000_256),
            sampler="dpmpp_2m",
            num_steps=6,
        )
    )
    real = metrics.pixel_features(images)
    assert found.whole == pytest.approx(metrics.frechet_distance(fake, real), rel=1e-4)
    without = [metrics.frechet_distance(fake[np.arange(256) % 16 != g], real) for g in range(16)]
    np.testing.assert_allclose(found.without, without, rtol=1e-4)


def write_images(folder, shape, dtype):
    random = np.random.default_rng(0)
    folder.mkdir()
    for i in range(20):
        np.save(folder / f"{i:02d}.npy", random.uniform(0.5, 1, shape).astype(dtype))


@pytest.mark.parametrize("side", [8, 20])
def test_latents_are_compared_as_the_net_sees_them(tmp_path, side):
    write_images(tmp_path / "data", (8, side, side), np.float32)
    main = TrainOptions(data=str(tmp_path / "data"), labelled=False, seed=3)
    comparison = Comparison(main, 24)
    model = Precond(side, 4, 0, model_channels=4, channel_mult=[1], channels_per_head=4).eval()
    model.encoder = LatentEncoder()  # whose decoder is not asked for
    found = sampled(comparison, model, None, None, tmp_path / "parts")
    fake = sample(
        model,
        seeds=range(70_000_000, 70_000_024),
        sampler="dpmpp_2m",
        num_steps=24,
        raw=True,
    ).numpy()
    random = np.random.default_rng(3)
    files = random.permutation(20)
    moments = torch.from_numpy(
        np.stack([np.load(tmp_path / "data" / f"{i:02d}.npy") for i in files])
    )
    normal = torch.from_numpy(random.standard_normal((20, 4, side, side), dtype=np.float32))
    real = LatentEncoder().encode(moments, normal).numpy()
    if side == 20:
        assert comparison.name == "kernel distance in latents at two scales"
        real, fake = (
            np.concatenate(
                [
                    x.reshape(-1, 4, 5, 4, 5, 4).mean((3, 5)).reshape(len(x), -1),
                    x[:, :, 6:14, 6:14].reshape(len(x), -1),
                ],
                axis=1,
            )
            for x in (real.astype(float), fake.astype(float))
        )
    else:
        assert comparison.name == "kernel distance in latents"
        real, fake = real.reshape(20, -1), fake.reshape(24, -1)
    expected = metrics.kernel_distance(real, fake, subsets=None).mean
    assert found.whole == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "width"),
    [((3, 18, 18), 972), ((1, 34, 34), 128), ((3, 256, 256), 3264), ((4, 128, 128), 1280)],
)
def test_images_of_any_size_can_be_compared(shape, width):
    images = torch.rand(2, *shape)
    features = guide_finals._features(images)
    assert features.shape == (2, width) and features.dtype == np.float64
    assert not np.array_equal(features[0], features[1])
