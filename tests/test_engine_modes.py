"""Engines in whatever state torch is in, as copies, and where a derivative is asked of them."""

import contextlib
import copy
import pickle

import pytest
import torch
from nets import tiny
from tape import Tape

import autoguide_fast
from autoguide_fast import Engine
from autoguide_fast.engine import base_engine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.sampler import heun, plan_steps
from autoguide_fast.schedules import rho_schedule

LABELS = torch.eye(5)[[3, 1]]
KINDS = {
    "float32": lambda model, guide: Engine(model, guide),
    "bfloat16": lambda model, guide: Engine(model, guide, torch.bfloat16),
    "int8": lambda model, guide: Engine(model, guide, torch.int8),
    "graphs": lambda model, guide: GpuEngine(model, guide, torch.float32, Tape()),
    "graphs_float16": lambda model, guide: GpuEngine(model, guide, torch.float16, Tape()),
}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default_device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "deterministic": deterministic,
}


def x():
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def small(seed=0, **options):
    """A net that records quickly."""
    return tiny(seed=seed, **{"channel_mult": [1], "attn_resolutions": [8], **options})


NOISE, STEPS = x(), plan_steps(rho_schedule(2), guidance=1.5)
SIGMA, SIGMAS = torch.tensor(0.7), torch.tensor([0.7, 2.0])


def used(made):
    """What an engine's parts return."""
    stepper = made.stepper(1.5, LABELS, STEPS)
    whole = stepper.whole(NOISE)
    if whole is None:
        whole = heun(stepper, NOISE, STEPS)
    return [made.model(NOISE, SIGMA, LABELS), made.guide(NOISE, SIGMAS, None), whole]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "graphs"])
def test_whatever_mode_torch_is_in_numbers_are_the_same(kind):
    pair = small(), autoguide_fast.unlabelled(small(seed=1))
    plain = KINDS[kind](*pair)
    expected = used(plain)
    for name, mode in MODES.items():
        with mode():
            inside = KINDS[kind](*pair)
            values = used(inside), used(plain)
        for value, wanted in zip(values[0] + values[1], 2 * expected, strict=True):
            assert value.dtype == torch.float32 and not value.requires_grad, name
            assert torch.equal(value, wanted), name


def derivative(transform):
    return lambda prepared: transform(lambda t: prepared(t, torch.tensor(0.7)).sum())(x())


def dual(prepared):
    with torch.autograd.forward_ad.dual_level():
        t = torch.autograd.forward_ad.make_dual(x(), torch.ones_like(x()))
        prepared(t, torch.tensor(0.7))


DERIVATIVES = {
    "one that requires gradients": lambda prepared: prepared(x().requires_grad_(), 0.7),
    "one that requires": lambda prepared: prepared(x(), torch.tensor(0.7, requires_grad=True)),
    "one that": lambda prepared: prepared(x(), 0.7, LABELS.clone().requires_grad_()),
    "one under a transform of torch.func": derivative(torch.func.grad),
    "one under a transform": derivative(torch.func.vmap),
    "one under": lambda prepared: torch.func.jvp(lambda t: prepared(t, 0.7), (x(),), (x(),)),
    "a dual tensor": dual,
}


@pytest.mark.parametrize("kind", ["float32", "graphs"])
def test_derivatives_are_refused(kind):
    made = KINDS[kind](tiny(), tiny(seed=1))
    for net in (made.model, made.guide):
        for message, ask in DERIVATIVES.items():
            with pytest.raises(ValueError, match=rf"^Engine: x, .* plain tensors, got {message}"):
                ask(net)
        with torch.no_grad():
            assert not net(x().requires_grad_(), 0.7).requires_grad
    stepper = made.stepper(1.5, None, STEPS)
    asks = [stepper.first] if stepper.whole(NOISE) is None else [stepper.first, stepper.whole]
    for ask in asks:
        with pytest.raises(ValueError, match=r"Engine: x, .* got one that requires gradients"):
            ask(x().requires_grad_(), STEPS[0])


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda engine: pickle.loads(pickle.dumps(engine)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies(kind, way):
    net = small()
    engine = KINDS[kind](net, autoguide_fast.unlabelled(net))
    expected = used(engine)
    other = COPIES[way](engine)
    assert type(other) is type(engine) and (other.dtype, other.device) == (
        engine.dtype,
        engine.device,
    )
    assert other.guide.embedding is other.model.embedding
    engine.close()
    assert all(map(torch.equal, used(other), expected))
    other.close()
    assert torch.equal(engine.model(NOISE, SIGMA, LABELS), expected[0])
    single = COPIES[way](engine.guide)
    assert torch.equal(single(x(), torch.tensor([0.7, 2.0])), expected[1])


def test_pickles_of_another_version_are_refused(monkeypatch):
    data = pickle.dumps(Engine(tiny()))
    info = base_engine.build_info() | {"version": "9.0"}
    monkeypatch.setattr(base_engine, "build_info", lambda: info)
    with pytest.raises(ValueError, match=r"Engine: pickles must be of autoguide_fast 9.0, got"):
        pickle.loads(data)


@pytest.mark.parametrize("channel_mult", [[1], [1, 2]])
@pytest.mark.parametrize("kind", KINDS)
def test_nets_without_encoder_blocks(kind, channel_mult):
    net = small(num_blocks=0, channel_mult=channel_mult)
    made = KINDS[kind](net, None)
    value = made.model(x(), torch.tensor(0.7), LABELS)
    bound = {"int8": 0.2, "bfloat16": 0.03, "graphs_float16": 0.01}.get(kind, 1e-5)
    with torch.no_grad():
        expected = net(x(), torch.tensor(0.7), LABELS)
    assert (value - expected).abs().max() < bound * expected.abs().max()
    autoguide_fast.sample(made, noise=NOISE, class_labels=LABELS, num_steps=2)
