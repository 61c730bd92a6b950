"""What this machine can do at best; raced beside what is compared with it.

A ceiling of arithmetic is the faster of a large matrix product and a large convolution with a
packed weight, of one type. Both come from the libraries that torch brings.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from autoguide_fast.cpu import native_types

GFLOPS = "GFLOP/s"
# 256 -> 256 channels at 64x64, channels-last; and a product of squares.
CHANNELS, SIZE, SQUARE = 256, 64, 2048


@dataclass(frozen=True)
class Ceiling:
    """Work of one kind: `run()` does `work` GB or GFLOP."""

    name: str
    run: Callable[[], object]
    work: float
    unit: str


@functools.cache
def copy():
    """Return the ceiling of bandwidth: a copy of 256 MiB, bytes read plus bytes written."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return Ceiling("copy", lambda: target.copy_(source), 2 * source.nbytes / 1e9, "GB/s")


@functools.cache
def arithmetic(dtype):
    """Return the faster of product and convolution in `dtype`; None where torch has neither.

    A floating type that this processor does not multiply has float32's ceiling.
    """
    if dtype.is_floating_point and dtype not in native_types():
        dtype = torch.float32
    made = {torch.int8: _int8}.get(dtype, _floating)(dtype)
    return max(made, key=_speed, default=None)


def _speed(ceiling):
    times = []
    for _ in range(6):
        start = time.perf_counter()
        ceiling.run()
        times.append(time.perf_counter() - start)
    return ceiling.work / min(times[1:])


def _matmul(dtype, run):
    return Ceiling(f"{_name(dtype)} matmul", run, 2 * SQUARE**3 / 1e9, GFLOPS)


def _convolution(dtype, run):
    return Ceiling(f"{_name(dtype)} convolution", run, 2 * CHANNELS**2 * 9 * SIZE**2 / 1e9, GFLOPS)


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _image():
    return torch.randn(1, CHANNELS, SIZE, SIZE).contiguous(memory_format=torch.channels_last)


def _floating(dtype):
    a, b = torch.randn(2, SQUARE, SQUARE).to(dtype).unbind(0)
    out = torch.empty_like(a)
    made = [_matmul(dtype, lambda: torch.mm(a, b, out=out))]
    if torch.backends.mkldnn.is_available():
        x, weight = _image().to(dtype), torch.randn(CHANNELS, CHANNELS, 3, 3).to(dtype)
        around, mkldnn = [1, 1], torch.ops.mkldnn
        packed = mkldnn._reorder_convolution_weight(
            weight, around, around, around, 1, list(x.shape)
        )
        made.append(
            _convolution(
                dtype,
                lambda: mkldnn._convolution_pointwise(
                    x, packed, None, around, around, around, 1, "none", [], ""
                ),
            )
        )
    return made


def _int8(dtype):
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return []
    square = torch.randint(-127, 127, (SQUARE, SQUARE), dtype=dtype)
    x = (_image() * 30 + 128).clamp(0, 255).to(torch.uint8)
    weight = torch.randint(-127, 127, (CHANNELS, CHANNELS, 3, 3), dtype=dtype)
    scales, zeros = torch.full((CHANNELS,), 1e-3), torch.zeros(CHANNELS, dtype=torch.int32)
    around, onednn = [1, 1], torch.ops.onednn
    packed = onednn.qconv_prepack(weight, scales, 1.0, 0, around, around, around, 1, list(x.shape))

    def convolution():
        onednn.qconv2d_pointwise(
            x,
            1.0,
            0,
            packed,
            scales,
            zeros,
            None,
            around,
            around,
            around,
            1,
            1.0,
            0,
            torch.uint8,
            "none",
            [],
            "",
        )

    return [_matmul(dtype, lambda: torch._int_mm(square, square)), _convolution(dtype, convolution)]
