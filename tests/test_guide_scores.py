"""Scores of `train --guide auto`: what candidates are foretold to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoguide_fast import checkpoints, diagnose, load
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import guide_scores, pair
from autoguide_fast.trainer.options import TrainOptions


def test_a_net_that_was_not_trained_is_no_guide(tmp_path):
    """By what it removes alone it would be the best: backwards, at the lowest levels."""
    trained = TrainOptions(duration=256, batch=256, snapshots=1)
    pair.train(trained, tmp_path, progress=False)
    raw = tmp_path / "snapshots" / "000000256-0.050.safetensors"
    model = load("digits")
    samples = guide_scores.scored_on(trained, 48)[1]
    files = {"raw": raw, "guide": checkpoints.find("digits-guide")}
    candidates = [guide_scores.Candidate(n, f, 16, 1, 0.1, 0.0, 0.0) for n, f in files.items()]
    device = torch.device("cpu")
    signed = guide_scores.scores(model, candidates, samples, 0, device)
    plain = [
        guide_scores.diagnosed(model, {"g": load(f)}, "a", samples, guide_scores.LEVELS, 0, device)
        for f in files.values()
    ]
    assert plain[0].predicted_gain() > plain[1].predicted_gain()
    assert signed[0] < signed[1]


def test_gains_apart_are_those_of_each_guide_alone():
    model, guides = load("digits"), {n: load(n) for n in ("digits-guide", "digits-uncond")}
    images, labels = load_digits("heldout")
    images, labels = images[:64], labels[:64]
    both = diagnose(model, guides, images, labels, (0.2, 1.0))
    for i, (name, guide) in enumerate(guides.items()):
        alone = diagnose(model, {name: guide}, images, labels, (0.2, 1.0))
        signed = np.sign(alone.weights()[:, 0] - 1) * alone.gain()
        np.testing.assert_allclose(both.signed_gain_of_each()[:, i], signed, rtol=1e-9)
        one = both.alone(name)
        assert (one.guides, one.nets) == (alone.guides, alone.nets)
        np.testing.assert_allclose(one.weights(), alone.weights(), rtol=1e-9)
    with pytest.raises(ValueError, match="guide must be one of digits-guide, digits-uncond"):
        both.alone("digits")
    itself = diagnose(model, model, images, labels, (0.2, 1.0))
    assert (itself.signed_gain_of_each() == 0).all()
