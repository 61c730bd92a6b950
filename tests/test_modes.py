"""What is set around a net must not change its numbers: autocast, default types and devices, modes
of gradients and determinism; and nets that were cast to another type.
"""

import contextlib
import copy

import pytest
import torch
from nets import tiny
from op_samples import SAMPLES
from test_ops import as_tuple
from tolerances import GOLDEN_NETWORK, OP, relative_error

from autoguide_fast import ops, torch_functional
from autoguide_fast.networks import Precond
from autoguide_fast.nn import MPConv, MPFourier
from autoguide_fast.textbook import TextbookPrecond
from autoguide_fast.trainer.loss import EDM2Loss
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.trainer import Trainer


@contextlib.contextmanager
def set_to(setter, value, usual):
    setter(value)
    try:
        yield
    finally:
        setter(usual)


MODES = {
    "autocast_bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast_float16": lambda: torch.autocast("cpu", torch.float16),
    "default_float64": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "default_bfloat16": lambda: set_to(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default_device": lambda: set_to(torch.set_default_device, "meta", None),
    "deterministic": lambda: set_to(torch.use_deterministic_algorithms, True, False),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


def call_net(net, x, sigma, labels):
    """With levels as a tensor and as a number, with labels and without, and the uncertainty."""
    return (*net(x, sigma, labels, return_logvar=True), net(x, 0.7))


@pytest.mark.parametrize("kind", [Precond, TextbookPrecond])
@pytest.mark.parametrize("run_dtype", [None, torch.bfloat16, torch.float16])
def test_nets(mode, kind, run_dtype):
    net = tiny(attn_resolutions=[8, 4])
    net.run_dtype = run_dtype
    x, sigma, labels = torch.randn(3, 2, 8, 8), torch.tensor([0.01, 0.7, 40.0]), torch.eye(5)[:3]
    net = net if kind is Precond else TextbookPrecond(net)
    expected = call_net(net, x, sigma, labels)
    with mode():
        found = call_net(net, x, sigma, labels)
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == wanted.dtype == torch.float32
        assert torch.equal(value, wanted)


def test_training_of_nets(mode):
    """The weights that a pass replaces, and, where they are on, its gradients."""
    net, x = tiny(dropout=0.1).train(), torch.randn(3, 2, 8, 8)
    results = []
    for context in (contextlib.nullcontext, mode):
        trained = copy.deepcopy(net)
        with context():
            torch.manual_seed(0)
            y = trained(x, 0.7)
        if y.requires_grad:
            y.square().sum().backward()
        gradients = {f"{k}.grad": p.grad for k, p in trained.named_parameters() if y.requires_grad}
        results.append({"y": y.detach(), **trained.state_dict(), **gradients})
    for name, value in results[1].items():
        if value is not None:
            assert torch.equal(value, results[0][name]), name


@pytest.mark.parametrize("kernel", [[], [1, 1], [3, 3]])
@pytest.mark.parametrize("training", [False, True])
def test_layers(mode, kernel, training):
    layer = MPConv(16, 16, kernel).train(training)
    x = torch.randn([8, 16, 16, 16] if kernel else [8, 16])
    expected = copy.deepcopy(layer)(x)  # training replaces the weight
    with mode():
        assert torch.equal(layer(x), expected)


def test_attention(mode):
    qkv = torch.randn(3, 2, 2, 100, 8)
    expected = torch_functional.attention(*qkv)
    with mode():
        assert torch.equal(torch_functional.attention(*qkv), expected)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_ops(sample, mode):
    arguments = sample.arguments(torch.float32)
    expected = as_tuple(sample.function(*arguments))
    with mode():
        found = as_tuple(sample.function(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_new_nets_are_float32_and_the_same(mode):
    built = []
    for context in (contextlib.nullcontext, mode):
        torch.manual_seed(0)
        with context(), torch.device("cpu"):
            net = Precond(8, 2, 5, model_channels=8, channel_mult=[1], num_blocks=0)
        built.append(net.state_dict())
    for name, value in built[1].items():
        assert value.dtype == torch.float32 and torch.equal(value, built[0][name])


def test_new_nets_are_on_the_default_device():
    with torch.device("meta"):
        net = Precond(8, 2, 5, model_channels=8, channel_mult=[1], num_blocks=0)
    assert all(t.is_meta for t in net.state_dict().values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_steps(mode, precision):
    options = TrainOptions(
        channels=4, channels_per_head=4, batch=16, rampup=64.0, precision=precision
    )
    runs = []
    for context in (contextlib.nullcontext, mode):
        with context():
            trainer = Trainer(options)
            losses = [trainer.step(), trainer.step()]
            trainer.close()
        runs.append((losses, trainer.net.state_dict()))
    assert runs[0][0] == runs[1][0]
    for name, value in runs[1][1].items():
        assert torch.equal(value, runs[0][1][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_loss_draws_has_the_type_of_the_images(dtype):
    net = tiny()
    losses = []
    for default in (torch.float32, torch.bfloat16, torch.float64):
        with set_to(torch.set_default_dtype, default, torch.float32):
            generator = torch.Generator().manual_seed(0)
            losses.append(EDM2Loss()(net, torch.ones(2, 2, 8, 8, dtype=dtype), generator=generator))
    assert losses[0].dtype == dtype
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


MIXED = {
    "mp_sum": lambda a, b: ops.mp_sum(a, b, 0.3),
    "mp_cat": ops.mp_cat,
    "mp_cat_mp_silu": lambda a, b: ops.mp_cat_mp_silu(a, b)[1],
    "modulate_mp_silu": lambda a, b: ops.modulate_mp_silu(a, b[:, :, 0, 0]),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("name", MIXED)
def test_autocast_takes_mixed_types(name, swap, dtype):
    """What a product gave in 16 bits meets what was not one; elsewhere that is a mistake."""
    wide, narrow = torch.randn(2, 2, 6, 4, 4)
    narrow = narrow.to(dtype).requires_grad_()

    def call(a, b):
        return MIXED[name](b, a) if swap else MIXED[name](a, b)

    with torch.autocast("cpu", dtype):
        y = call(wide, narrow)
        assert call(narrow, narrow).dtype == dtype
    assert torch.equal(y, call(wide, narrow.float())) and y.dtype == torch.float32
    (gradient,) = torch.autograd.grad(y.square().sum(), narrow)
    assert gradient.dtype == dtype and gradient.abs().max() > 0
    with pytest.raises(RuntimeError, match="dtype of"):
        call(wide, narrow)


def level(value):
    return torch.tensor(value, dtype=torch.float64)


def test_autocast_takes_a_guide_of_another_type():
    x, raw, guide_raw = torch.randn(3, 2, 3, 4, 4)
    levels = level(3.0), level(2.0), level(1.7)
    half = guide_raw.bfloat16()
    with torch.autocast("cpu"):
        found = ops.guided_heun_first(x, raw, half, *levels)
        assert ops.guided_heun_first(x, half, None, *levels)[0].dtype == torch.float32
    expected = ops.guided_heun_first(x, raw, half.float(), *levels)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASTS)
def test_cast_nets(name, training):
    """Weights and frequencies are rounded, and computed with in float32 as before."""
    cast = getattr(tiny(), name)().train(training)
    assert {t.dtype for t in cast.state_dict().values()} == {CASTS[name]}
    rounded = copy.deepcopy(cast).float()
    x, sigma, labels = torch.randn(3, 2, 8, 8), torch.tensor([0.01, 0.7, 40.0]), torch.eye(5)[:3]
    results = []
    for net in (cast, rounded):
        denoised, logvar = net(x, sigma, labels, return_logvar=True)
        assert denoised.dtype == torch.float32
        (denoised.square().sum() + logvar.sum()).backward()
        results.append((denoised, logvar))
    # Training rounds the weights that it stores; what it computes with comes from before that.
    bound = OP[CASTS[name]] if training and name != "double" else GOLDEN_NETWORK
    for value, expected in zip(*results, strict=True):
        assert relative_error(value, expected) < bound
    for (key, p), q in zip(cast.named_parameters(), rounded.parameters(), strict=True):
        assert p.grad.dtype == p.dtype
        # That of a gain is a small difference of large sums.
        if p.ndim or not training:
            assert relative_error(p.grad, q.grad) < max(4 * bound, OP[p.dtype], 1e-4), key


def test_cast_layers():
    """A layer alone takes inputs of its own type, too."""
    for dtype in CASTS.values():
        fourier, layer = MPFourier(64).to(dtype), MPConv(64, 8, []).to(dtype)
        features = fourier(torch.linspace(-1, 1, 5).to(dtype))
        assert features.dtype == dtype and layer(features).dtype == dtype
        exact = fourier.freqs.double() * torch.linspace(-1, 1, 5).to(dtype).double()[:, None]
        exact = 2**0.5 * (exact + fourier.phases.double()).cos()
        assert relative_error(features, exact) < max(OP[dtype], 1e-5)
