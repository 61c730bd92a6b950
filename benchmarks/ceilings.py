"""What this machine can do at best, measured in the run that is compared with it."""
import functools
import statistics
import time

import torch


def _best_of(function, rounds):
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@functools.cache
def copy_gb_per_s():
    """Return the bandwidth of a copy of 256 MiB, bytes read plus bytes written, in GB/s."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_of(lambda: target.copy_(source), 7) / 1e9


@functools.cache
def matmul_gflop_per_s():
    """Return the speed of a 2048 x 2048 x 2048 float32 matrix product in GFLOP/s."""
    a, b = torch.randn(2, 2048, 2048).unbind(0)
    out = torch.empty(2048, 2048)
    return 2 * 2048**3 / _best_of(lambda: torch.mm(a, b, out=out), 5) / 1e9


@functools.cache
def convolution_gflop_per_s():
    """Return the speed of a large channels-last float32 3x3 convolution in GFLOP/s."""
    x = torch.randn(4, 256, 64, 64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    flop = 2 * 4 * 256 * 256 * 9 * 64 * 64
    with torch.no_grad():
        time_s = _best_of(lambda: torch.nn.functional.conv2d(x, weight, padding=1), 5)
    return flop / time_s / 1e9


def arithmetic_gflop_per_s():
    """Return the arithmetic ceiling: the better of the large product and the large convolution."""
    return max(matmul_gflop_per_s(), convolution_gflop_per_s())
