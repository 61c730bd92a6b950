"""The layers: their formulas in float64, magnitudes, gradients, training mode."""

import pytest
import torch
from tolerances import OP, relative_error

from autoguide_fast import ops
from autoguide_fast.nn import MPConv, MPFourier

KERNELS = {"linear": [], "conv_1x1": [1, 1], "conv_3x3": [3, 3]}


def layer_and_input(kernel, dtype=torch.float32, c_in=6, c_out=4):
    torch.manual_seed(0)
    x = torch.randn([5, c_in, 7, 7] if kernel else [5, c_in])
    return MPConv(c_in, c_out, kernel).to(dtype), x.to(dtype)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
@pytest.mark.parametrize("gain", [1.0, 0.25, torch.tensor(-1.5)])
def test_mp_conv_formula(kernel, gain):
    """Every output channel by hand: weight vector to unit length, scaled by the gain."""
    layer, x = layer_and_input(kernel)
    w = layer.weight.detach().double()
    w = w / w.flatten(1).norm(dim=1).reshape(-1, *[1] * (w.ndim - 1)) * float(gain)
    pad = [w.shape[-1] // 2] * 4 if kernel else [0, 0]
    padded = torch.nn.functional.pad(x.double(), pad)
    if kernel:
        patches = padded.unfold(2, kernel[0], 1).unfold(3, kernel[1], 1)
        expected = torch.einsum("nchwij,ocij->nohw", patches, w)
    else:
        expected = padded @ w.T
    # eps = 1e-4 keeps the normalisation off the exact unit length.
    assert relative_error(layer.eval()(x, gain=gain), expected) < 2e-4
    exact = ops.mp_weight_reference(layer.weight.detach().double(), float(gain))
    direct = patches_times(padded, exact, kernel)
    assert relative_error(layer(x, gain=gain), direct) < OP[torch.float32]


def patches_times(padded, w, kernel):
    if not kernel:
        return padded @ w.T
    patches = padded.unfold(2, kernel[0], 1).unfold(3, kernel[1], 1)
    return torch.einsum("nchwij,ocij->nohw", patches, w)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_mp_conv_preserves_magnitude(kernel):
    torch.manual_seed(0)
    layer = MPConv(64, 64, kernel).eval()
    layer.weight.data *= 17  # whatever the optimiser made of it
    y = layer(torch.randn([64, 64, 8, 8] if kernel else [2048, 64]))
    y = y[:, :, 1:-1, 1:-1] if kernel else y  # the border sees zeros
    assert y.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_training_replaces_the_weight(kernel):
    layer, x = layer_and_input(kernel)
    layer.weight.data *= 3
    start = layer.weight.detach().clone()
    layer.eval()(x)
    assert torch.equal(layer.weight, start)
    layer.train()(x)
    assert relative_error(layer.weight, ops.normalize_reference(start)) < OP[torch.float32]
    assert layer.weight.requires_grad and layer.weight.is_leaf


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_mp_conv_gradcheck(kernel, training):
    layer, x = layer_and_input(kernel, torch.float64, 3, 2)
    x = x[:2, :, :3, :3] if kernel else x
    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    layer.train(training)
    layer(x)  # at the fixed point of the forced normalisation, which replaces the weight
    if not training:
        torch.autograd.gradcheck(
            lambda w, x, g: torch.func.functional_call(layer, {"weight": w}, (x, g)),
            (layer.weight.detach().requires_grad_(), x.clone().requires_grad_(), gain),
        )
        return
    layer(x, gain).square().sum().backward()
    w = layer.weight.detach().clone().requires_grad_()
    prepared = ops.mp_weight_reference(w, gain.detach())
    y = (
        torch.nn.functional.conv2d(x, prepared, padding=w.shape[-1] // 2)
        if kernel
        else (x @ prepared.T)
    )
    y.square().sum().backward()
    assert relative_error(layer.weight.grad, w.grad) < 1e-10


def test_half_precision_input_keeps_float32_weights():
    layer, x = layer_and_input([3, 3])
    y = layer.eval()(x.half())
    assert y.dtype == torch.float16 and layer.weight.dtype == torch.float32
    assert relative_error(y, layer(x)) < 3e-3


def test_mp_fourier_formula_and_statistics():
    torch.manual_seed(0)
    layer = MPFourier(4096, bandwidth=2)
    assert not list(layer.parameters()) and set(layer.state_dict()) == {"freqs", "phases"}
    x = torch.linspace(-2, 1, 9)
    y = layer(x)
    expected = 2**0.5 * torch.cos(
        x.double()[:, None] * layer.freqs.double() + layer.phases.double()
    )
    assert relative_error(y, expected) < 5e-6  # the phase itself is rounded, up to about 100
    assert y.square().mean(1).numpy() == pytest.approx([1] * 9, abs=0.06)
    assert layer.freqs.std().item() == pytest.approx(2 * 2 * torch.pi, rel=0.05)
    assert layer.phases.min() >= 0 and layer.phases.max() < 2 * torch.pi


def test_repr_names_the_shape():
    assert repr(MPConv(3, 8, [3, 3])) == "MPConv(weight=[8, 3, 3, 3])"
