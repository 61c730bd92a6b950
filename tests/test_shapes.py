"""Samples of any shape after the batch: signals, volumes, video, sets of vectors, vectors."""

import warnings

import pytest
import torch
from tape import Tape

from autoguide_fast import Engine, sample
from autoguide_fast.adapters import FlowDenoiser
from autoguide_fast.engine.module_engine import ModuleEngine
from autoguide_fast.guidance import guided_denoiser
from autoguide_fast.seeds import StackedRandom
from autoguide_fast.toy import ToyModel

SHAPES = [(5,), (2, 7), (6, 3), (2, 3, 4, 5), (1, 2, 1, 3, 2)]


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def quick(monkeypatch):
    """Compiled without generated code: what is tested here is what is around it."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile(net, backend="eager"))


class Mean(torch.nn.Module):
    """The best denoiser of data that are Gaussian around a mean, each number with its own."""

    def __init__(self, shape, std=0.5):
        super().__init__()
        self.std = std
        numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
        self.mean = torch.nn.Parameter(numbers.reshape(shape).cos())

    def forward(self, x, sigma, class_labels=None):
        share = self.std**2 / (self.std**2 + sigma**2)
        y = self.mean + share * (x - self.mean)
        return y if class_labels is None else y + class_labels.sum() * 0


def pair(shape):
    return Mean(shape), Mean(shape, 1.0)


CHURN = {"S_churn": 4.0, "S_noise": 1.01}
OPTIONS = [{}, {"interval": (0.05, 2.0)}, CHURN, {"guidance": lambda sigma: 1 + sigma / 80}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "interval", "churn", "by level"])
def test_a_sample_depends_on_its_seed_alone(shape, options):
    model, guide = pair(shape)
    options = {"guidance": 2.0, "num_steps": 5, "shape": shape, **options}
    together = sample(model, guide, seeds=[4, 9, 2], **options)
    assert together.shape == (3, *shape)
    split = sample(model, guide, seeds=[2, 4, 9], batch_size=2, **options)
    assert torch.equal(together, split[[1, 2, 0]])
    noise = StackedRandom("cpu", [4, 9, 2]).randn(shape)
    if "S_churn" not in options:
        del options["shape"]
        assert torch.equal(sample(model, guide, noise=noise, **options), together)


def test_the_samples_are_those_of_the_data(shape):
    model = Mean(shape)
    found = sample(model, shape=shape, seeds=range(400), num_steps=24, batch_size=400)
    assert (found.mean(0) - model.mean).abs().max() < 5 * 0.5 / 400**0.5
    assert found.std(0).min() > 0.4 and found.std(0).max() < 0.6


def test_engines_and_guided_denoisers_agree(shape, quick):
    model, guide = pair(shape)
    options = {"seeds": range(3), "num_steps": 4, "shape": shape}
    expected = sample(model, guide, 1.7, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Engine(model, guide).sample(guidance=1.7, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    one = guided_denoiser(model, guide, 1.7)
    torch.testing.assert_close(sample(one, **options), expected, rtol=1e-4, atol=1e-4)
    recorded = ModuleEngine(model, guide, recorder=Tape())
    for extra in ({}, CHURN):
        torch.testing.assert_close(
            sample(recorded, guidance=1.7, **options, **extra),
            sample(model, guide, 1.7, **options, **extra),
            rtol=1e-4,
            atol=1e-4,
        )


def test_callbacks_and_batches_have_the_shape(shape):
    seen, batches = [], []
    options = {"seeds": range(3), "shape": shape, "num_steps": 3, "batch_size": 2}
    found = sample(Mean(shape), callback=seen.append, **options)
    assert [info.x.shape for info in seen] == [(2, *shape)] * 3 + [(1, *shape)] * 3
    assert torch.equal(seen[2].x, found[:2])
    sample(Mean(shape), on_batch=lambda indices, part: batches.append(part), **options)
    assert torch.equal(torch.cat(batches), found)
    assert sample(Mean(shape), **options | {"seeds": []}).shape == (0, *shape)


def test_an_adapter_takes_any_shape(shape):
    flow = FlowDenoiser(lambda x, t: -x, check=False)
    found = sample(flow, shape=shape, seeds=range(2), num_steps=3)
    assert found.shape == (2, *shape) and found.isfinite().all()


def test_a_model_may_tell_its_shape():
    model, guide = pair((2, 7))
    options = {"seeds": range(2), "num_steps": 3}
    expected = sample(model, shape=(2, 7), **options)
    guide.sample_shape = [2, 7]
    assert sample(model, guide, 2.0, **options).shape == (2, 2, 7)
    model.sample_shape = (2, 7)
    assert torch.equal(sample(model, **options), expected)
    assert torch.equal(sample(model, shape=[2, 7], **options), expected)
    guide.sample_shape = (7, 2)
    with pytest.raises(ValueError, match=r"guide must have the model's sample_shape \(2, 7\), got"):
        sample(model, guide, 2.0, **options)


@pytest.mark.parametrize(
    "shape, error, message",
    [
        ((7, 2), ValueError, r"sample: shape must be \[2, 7\] for this model, got \[7, 2\]"),
        (7, TypeError, "sample: shape must be a sequence of whole numbers, got 7; give the sizes"),
        ("27", TypeError, "sample: shape must be a sequence of whole numbers, got '27'"),
        ((2, 1.5), TypeError, "sample: shape must be a sequence of whole numbers, got"),
        ((2, 0), ValueError, r"sample: shape must be one or more numbers >= 1, got \(2, 0\)"),
        ((), ValueError, r"sample: shape must be one or more numbers >= 1, got \(\)"),
    ],
)
def test_shapes_that_are_refused(shape, error, message):
    model = Mean((2, 7))
    model.sample_shape = (2, 7)
    with pytest.raises(error, match=message):
        sample(model, shape=shape, seeds=[0])


def test_noise_has_the_shape():
    with pytest.raises(ValueError, match=r"noise must be \[N, 2, 7\], got \[3, 7, 2\]"):
        sample(Mean((2, 7)), shape=(2, 7), noise=torch.zeros(3, 7, 2))
    with pytest.raises(ValueError, match="shape must be given for a model that does not tell"):
        sample(Mean((2, 7)), seeds=[0])


def test_a_bundled_net_keeps_its_own_shape():
    with pytest.raises(ValueError, match=r"shape must be \[1, 8, 8\] for this model, got \[1, 9"):
        sample("digits", shape=(1, 9, 9), seeds=[0])


def test_a_net_whose_score_is_a_gradient_runs_in_an_engine(quick):
    net = ToyModel(8)
    torch.nn.init.constant_(net.gain, 0.1)
    expected = sample(net, seeds=range(3), num_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where torch.compile cannot, it says so
        found = Engine(net).sample(seeds=range(3), num_steps=3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
