"""Numerical character of the operators: magnitudes, extremes and the 16-bit types."""

import math

import pytest
import torch
from tolerances import OP, relative_error

from autoguide_fast import ops
from autoguide_fast._extension import build_info


def test_mp_silu_extremes(place):
    x = torch.tensor([0.0, -0.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e38, -1e38, 1e-40])
    x = x.to(place)
    reference = ops.mp_silu_reference(x.double())
    assert ((ops.mp_silu(x).double() - reference).abs() <= 1e-6 * reference.abs() + 1e-36).all()
    assert ops.mp_silu(torch.tensor([math.nan]).to(place)).isnan().all()
    assert ops.mp_silu(torch.tensor([math.inf]).to(place)).isposinf().all()


def test_mp_silu_precision(place):
    x = torch.linspace(-104, 104, 200_001).to(place)
    reference = ops.mp_silu_reference(x.double())
    # Below -87 the sigmoid leaves the range of float32, and the result is 0.
    error = (ops.mp_silu(x).double() - reference).abs()
    assert (error / reference.abs())[(x > -87) & (x != 0)].max() < 6e-7  # five last places
    assert error[x < -87].max() < 1e-36


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gain", [1.0, 1.0009765, 3e-5, 7e4])
def test_every_16_bit_value(dtype, gain, place):
    """Loads and stores round as torch does, for all 65,536 values, denormals and NaN included."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, 1, 256, 256)
    x = x.to(place)
    gain = torch.tensor(gain, dtype=torch.float32).item()
    value = torch.ops.autoguide_fast.resample(x, 0, gain)
    expected = x.float() * gain
    # Those that NVRTC compiles take denormals for 0.
    if place.type == "cuda" and not build_info()["cuda_architectures"]:
        tiny = torch.finfo(torch.float32).tiny
        expected[(expected.abs() < tiny) | (x.float().abs() < tiny)] = 0
    torch.testing.assert_close(value, expected.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_clip_keeps_nan(place):
    x = torch.tensor([math.nan, 1e9, -1e9]).to(place)
    y = ops.mp_sum(x, x, clip=256.0)
    assert y[0].isnan()
    assert y[1:].tolist() == [256.0, -256.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_keep_the_memory_format(layout):
    x = torch.randn(2, 6, 4, 4).contiguous(memory_format=layout)
    for y in (ops.mp_silu(x), ops.resample(x, "up"), ops.mp_cat(x, x), ops.mp_sum(x, x)):
        assert y.is_contiguous(memory_format=layout)


def rms(x):
    return x.square().mean().sqrt().item()


def test_magnitudes_are_preserved():
    """Unit magnitude in, unit magnitude out, which is what these layers are for (EDM2 sec. 2.2)."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 16, 64, 32, 32, generator=generator).unbind(0)
    narrow = y[:, :16]
    weight = torch.randn(96, 64, 3, 3, generator=generator) * 7
    angle = torch.randn(20_000, generator=generator)
    phases = torch.rand(64, generator=generator) * 2 * math.pi
    assert rms(ops.mp_silu(x)) == pytest.approx(1, abs=0.005)
    assert rms(ops.normalize(x * 9, dim=1)) == pytest.approx(1, abs=0.001)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert rms(ops.mp_sum(x, y, t)) == pytest.approx(1, abs=0.005)
        # The sum of squares is kept: [N_a, N_b] shares it in the ratio (1-t)^2 : t^2.
        assert rms(ops.mp_cat(x, narrow, t)) == pytest.approx(1, abs=0.005)
    assert rms(ops.mp_fourier(angle, torch.ones(64) * 3, phases)) == pytest.approx(1, abs=0.02)
    z = torch.nn.functional.conv2d(x, ops.mp_weight(weight), padding=0)
    assert rms(z) == pytest.approx(1, abs=0.01)
    for part in ops.attention_split(x[:, :48] * 5, 2):
        assert rms(part) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mp_weight_casts(dtype, place):
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(place)
    value = ops.mp_weight(weight, 1.7, dtype)
    assert value.dtype == dtype
    assert relative_error(value, ops.mp_weight_reference(weight.double(), 1.7)) < OP[dtype]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_mp_weight_forced(compiled, transposed, place):
    """The weight is replaced, and the gradient is taken at the new weight."""
    torch._dynamo.reset()
    start = torch.randn(6, 8, 3, 3, dtype=torch.float64).to(place) * 4
    if transposed:
        start = start.transpose(0, 1)
    results = []
    for function in (ops.mp_weight_forced, ops.mp_weight_forced_reference):
        if compiled and function is ops.mp_weight_forced:
            function = torch.compile(function, fullgraph=True, backend="aot_eager")
        weight = start.clone(memory_format=torch.preserve_format).requires_grad_()
        gain = torch.tensor(1.3, dtype=torch.float64, device=place, requires_grad=True)
        value = function(weight, gain)
        wave = torch.arange(value.numel(), device=place).view_as(value).double().sin()
        (value * wave).sum().backward()
        results.append((value, weight, weight.grad, gain.grad))
    for value, reference in zip(*results, strict=True):
        assert relative_error(value, reference) < 1e-13
    assert rms(results[0][1].detach()) == pytest.approx(1, abs=1e-3)


def test_gradient_at_zero_is_finite(place):
    x = torch.zeros(2, 4, 3, 3, device=place, requires_grad=True)
    n, s = ops.resample_normalize_mp_silu(x)
    (n.sum() + s.sum()).backward()
    assert x.grad.isfinite().all()
