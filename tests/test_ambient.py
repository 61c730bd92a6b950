"""What surrounds a call changes no numbers: torch's defaults, modes, autocast."""

import contextlib

import pytest
import torch
from nets import tiny

import autoguide_fast
from autoguide_fast import checkpoints, sample, unlabelled
from autoguide_fast.encoders import LatentEncoder
from autoguide_fast.schedules import rho_schedule
from autoguide_fast.seeds import StackedRandom


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AMBIENTS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "device": lambda: torch.device("meta"),  # nothing made there holds a number
    "deterministic": deterministic,
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def everything():
    """Loads, draws and samples: what it gives, by name."""
    model, guide = autoguide_fast.load("digits"), autoguide_fast.load("digits-guide")
    options = {"guidance": 1.5, "seeds": range(2), "num_steps": 2, "raw": True}
    found = dict(model.state_dict())
    found["pair"] = sample(model, guide, **options)
    found["files"] = sample("digits", class_labels=[[0.3] * 10, [0.7] * 10], **options)
    found["own"] = sample(model, unlabelled(model), S_churn=5, **options)
    calling = lambda x, sigma, labels: x / (1 + sigma**2)  # noqa: E731
    found["callable"] = sample(calling, noise=torch.ones(2, 3, device="cpu", dtype=torch.float32))
    found["levels"] = rho_schedule(dtype=torch.float32)
    found["noise"] = StackedRandom("cpu", [1, 2]).randn([3])
    scale = LatentEncoder().encode(
        torch.ones(1, 8, 2, 2, device="cpu", dtype=torch.float32),
        torch.zeros(1, 4, 2, 2, device="cpu", dtype=torch.float32),
    )
    found["latents"] = scale
    return found


@pytest.fixture(scope="module")
def expected():
    return everything()


@pytest.mark.parametrize("name", AMBIENTS)
def test_ambient_state_changes_no_numbers(name, expected):
    state = torch.get_rng_state()
    with AMBIENTS[name]():
        found = everything()
    assert torch.equal(torch.get_rng_state(), state)
    for what, value in expected.items():
        assert found[what].dtype == value.dtype and found[what].device == value.device, what
        assert torch.equal(found[what], value), what


def test_loading_in_inference_mode_gives_ordinary_weights():
    with torch.inference_mode():
        net = autoguide_fast.load("digits")
    assert not any(tensor.is_inference() for tensor in net.state_dict().values())


def as_callable(net):
    """A function that no engine takes the place of."""

    def denoise(x, sigma, labels):
        return net(x, sigma, labels)

    denoise.label_dim = net.label_dim
    return denoise


def test_inference_tensors_as_noise_and_weights(tmp_path):
    noise = torch.randn(2, 2, 8, 8)
    expected = sample(as_callable(tiny()), noise=noise, class_labels=1, num_steps=2)
    with torch.inference_mode():
        net, noise = tiny(), noise.clone()
    result = sample(as_callable(net), noise=noise, class_labels=1, num_steps=2)
    assert torch.equal(result, expected)
    assert not result.is_inference()
    checkpoints.save(net, tmp_path / "net.safetensors")


@pytest.mark.parametrize("wrap", [lambda net: net, unlabelled], ids=["model", "unlabelled"])
def test_autocast_changes_no_numbers_of_networks(wrap):
    net, guide = tiny(), wrap(tiny(seed=1))
    net.register_forward_hook(lambda *_: None)  # with which it runs without an engine
    options = {"guidance": 1.5, "seeds": range(2), "num_steps": 2}
    expected = sample(net, guide, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(net, guide, **options), expected)


def test_autocast_stays_on_for_callables_of_others():
    seen = []

    def net(x, sigma, class_labels):
        seen.append(torch.is_autocast_enabled("cpu"))
        return x / (1 + sigma**2)

    with torch.autocast("cpu", torch.bfloat16):
        sample(net, noise=torch.randn(1, 3), num_steps=1)
    sample(net, noise=torch.randn(1, 3), num_steps=1)
    assert seen == [True, False]
