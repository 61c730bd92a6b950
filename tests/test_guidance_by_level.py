"""Guidance weights that are functions of the noise level, on every way to sample."""

import math

import numpy as np
import pytest
import torch
from graph_pairs import LABELS
from nets import tiny
from tape import Tape

from autoguide_fast import Engine, sample
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.engine.module_engine import ModuleEngine
from autoguide_fast.guidance import guided_denoiser

OPTIONS = {"seeds": range(3), "num_steps": 5, "class_labels": LABELS, "S_churn": 1.5}


def rising(sigma):
    """Another weight at each level; none above 10."""
    return 1.0 if sigma > 10 else 1.5 + 0.5 * math.tanh(math.log(sigma))


class Wrapped(torch.nn.Module):
    """A network that the engine cannot look into."""

    img_resolution, img_channels, label_dim = 8, 2, 5

    def __init__(self, net, calls=None):
        super().__init__()
        self.net, self.calls = net, [] if calls is None else calls

    def forward(self, x, sigma, class_labels):
        self.calls.append(sigma)
        return self.net(x, sigma, class_labels)


def expected(guidance, **options):
    """Sampled from one denoiser that combines both by itself."""
    denoiser = guided_denoiser(tiny(), tiny(seed=1), guidance)
    wrapped = Wrapped(lambda x, sigma, labels: denoiser(x, sigma, labels))
    return sample(wrapped, **{**OPTIONS, **options})


WAYS = {
    "callables": lambda model, guide: (Wrapped(model), Wrapped(guide)),
    "sample": lambda model, guide: (model, guide),
    "engine": lambda model, guide: (Engine(model, guide),),
    "recorded": lambda model, guide: (GpuEngine(model, guide, recorder=Tape()),),
    "modules": lambda model, guide: (ModuleEngine(Wrapped(model), Wrapped(guide)),),
    "recorded_modules": lambda model, guide: (
        ModuleEngine(Wrapped(model), Wrapped(guide), recorder=Tape()),
    ),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: net)


@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_each_level_has_its_weight(way, by_step):
    nets = WAYS[way](tiny(), tiny(seed=1))
    options = {"callback": lambda info: None} if by_step else {}
    found = sample(*nets, guidance=rising, **OPTIONS, **options)
    torch.testing.assert_close(found, expected(rising), rtol=2e-4, atol=2e-4)
    # Recordings serve any weights.
    found = sample(*nets, guidance=lambda sigma: rising(sigma) + 0.1 * (sigma < 10), **OPTIONS)
    assert not torch.allclose(found, expected(rising), atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_function_is_its_number(way):
    nets = WAYS[way](tiny(), tiny(seed=1))
    found = sample(*nets, guidance=lambda sigma: 1.7, **OPTIONS)
    assert torch.equal(found, sample(*nets, guidance=1.7, **OPTIONS))


def test_a_guide_without_weight_does_not_run():
    model, guide = Wrapped(tiny()), Wrapped(tiny(seed=1))
    sample(model, guide, rising, **OPTIONS)
    assert 0 < len(guide.calls) < len(model.calls) and max(guide.calls) <= 10
    guide.calls.clear()
    found = sample(model, guide, lambda sigma: 1.0, **OPTIONS)
    assert not guide.calls and torch.equal(found, sample(model, **OPTIONS))
    # An interval holds besides.
    sample(model, guide, rising, interval=(0.05, 5.0), **OPTIONS)
    assert guide.calls and all(0.05 < float(sigma) <= 5 for sigma in guide.calls)


def test_it_is_asked_for_the_levels_that_are_guided():
    asked = []
    sample(tiny(), tiny(seed=1), lambda sigma: asked.append(sigma) or 2.0, seeds=[0], num_steps=4)
    assert all(isinstance(sigma, float) and 0.001 < sigma <= 80 for sigma in asked)
    assert len(set(asked)) == len(asked) == 4


@pytest.mark.parametrize("way", WAYS)
def test_each_level_is_asked_for_once(way):
    """Whatever a function keeps in mind: each level has one weight, in all batches."""
    asked = []
    nets = WAYS[way](tiny(), tiny(seed=1))
    sample(*nets, guidance=lambda s: asked.append(s) or 1.5, batch_size=1, **OPTIONS)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("guidance", "error", "message"),
    [
        (lambda sigma: float("nan"), ValueError, r"guidance at sigma 80 must be finite, got nan"),
        (lambda sigma: math.inf if sigma < 1 else 2, ValueError, r"guidance at sigma 0\.\d+ must"),
        (lambda sigma: "much", TypeError, r"guidance at sigma 80 must be a number, got 'much'"),
        (lambda sigma: None, TypeError, r"guidance at sigma 80 must be a number, got None"),
    ],
)
def test_bad_weights_are_refused_before_any_work(guidance, error, message):
    model = Wrapped(tiny())
    with pytest.raises(error, match=f"^sample: {message}"):
        sample(model, model, guidance, **{**OPTIONS, "S_churn": 0})
    assert not model.calls


def test_a_function_needs_a_guide():
    with pytest.raises(ValueError, match="got None at guidance a function of sigma; pass a worse"):
        sample(tiny(), guidance=rising, **OPTIONS)
    with pytest.raises(ValueError, match="without a guide, got a function of sigma; make"):
        sample(Engine(tiny()), guidance=rising, **OPTIONS)
    with pytest.raises(
        ValueError, match="or a weight by level, got 1 to 2; call it level by level"
    ):
        guided_denoiser(tiny(), tiny(), rising)(torch.randn(2, 2, 8, 8), torch.tensor([1.0, 2.0]))


def test_functions_of_numpy_are_taken():
    weights = np.array([1.2, 2.0])
    options = {"guidance": lambda sigma: np.interp(sigma, [0.01, 1], weights), **OPTIONS}
    assert sample(tiny(), tiny(seed=1), **options).isfinite().all()
