"""How CUDA kernels are found, compiled and launched, beyond what the operators' own tests see."""

import importlib.util
import re
import sys
import threading

import pytest
import torch
from op_samples import level

from autoguide_fast import ops, runtime_kernels

ROOT = runtime_kernels.header_folder()
KERNELS = re.findall(r"AGF_KERNEL\((\w+), (\w+)\);", (ROOT / "cuda" / "kernels.h").read_text())


def test_every_kernel_is_compiled_ahead_and_simulated():
    names = sorted(name for name, _ in KERNELS)
    ahead = " ".join(path.read_text() for path in (ROOT / "cuda").glob("*.cu"))
    listed = re.findall(r"\w+", " ".join(re.findall(r"Compile<([^>]*)>", ahead)))
    assert sorted(listed) == names
    simulator = (ROOT.parent / "tests" / "simt" / "kernels.cpp").read_text()
    simulated = re.search(r"register_all<([^>]*)>", simulator)[1]
    assert sorted(re.findall(r"\w+", simulated)) == names


def test_kernel_headers_know_no_host_headers():
    """What NVRTC compiles includes CUDA's own headers and the project's, nothing else."""
    for path in (ROOT / "cuda").glob("*.cuh"):
        if path.name in ("compile.cuh", "types.cuh"):  # for the host's side of nvcc
            continue
        for header in re.findall(r"#include [<\"](.*)[>\"]", path.read_text()):
            assert header in ("cuda_fp16.h", "cuda_bf16.h") or (ROOT / header).is_file(), header


def test_source_names_kernel_and_types():
    symbol, text = runtime_kernels.source("GuidedHeunFirst", "float, __half")
    assert symbol == "agf_GuidedHeunFirst_float___half" and f"{symbol}(" in text
    assert "kernel.run<float, __half>()" in text
    assert text != runtime_kernels.source("GuidedHeunFirst", "float, float")[1]


def test_without_cupy_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"must be compiled by nvcc .* or by CuPy .*pip install"):
        runtime_kernels.load("MpSilu", "float", 0)


@pytest.mark.parametrize(
    ("architectures", "toolkit", "cupy", "expected"),
    [
        ("80;90", "13.0", False, "compiled by nvcc for sm_80, sm_90"),
        ("", None, True, "none: this torch is a CPU build"),
        ("", "13.0", False, "none: run `pip install 'autoguide_fast[cuda13]'`"),
        ("", "12.8", False, "none: run `pip install 'autoguide_fast[cuda12]'`"),
        ("", "13.0", True, "compiled by NVRTC at first use, through CuPy"),
    ],
)
def test_the_route_is_named(monkeypatch, architectures, toolkit, cupy, expected):
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: cupy or None)
    assert runtime_kernels.route(architectures).startswith(expected)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
def test_kernels_run_on_the_current_stream():
    x = torch.zeros(1 << 20, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # tens of milliseconds: the kernel must wait for it
        x.fill_(1)
        y = ops.mp_silu(x)
    stream.synchronize()
    assert torch.equal(y, ops.mp_silu(torch.ones_like(x)))


@cuda
def test_a_kernel_may_be_the_first_call_of_a_thread():
    x, found = torch.randn(1000, device="cuda"), []
    ops.mp_silu(x)  # so that its result's memory is at hand, without a call of the runtime
    torch.cuda.synchronize()
    worker = threading.Thread(target=lambda: found.append(ops.mp_silu(x)))
    worker.start()
    worker.join()
    torch.testing.assert_close(found[0], ops.mp_silu_reference(x))


@cuda
def test_a_captured_step_serves_any_schedule():
    """Noise levels and guidance are read when the graph is replayed, not when it is captured."""
    x, raw, guide = torch.randn(3, 2, 4, 8, 8, device="cuda").unbind(0)
    levels = [level(v).cuda() for v in (3.0, 2.0, 1.7)]

    def step():
        x_next, slope = ops.guided_heun_first(x, raw, guide, *levels, 0.5)
        return ops.guided_heun_second(x, x_next, slope, raw, guide, *levels, 0.5)

    step()  # compiles, where that is still to be done
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    for values in ((3.0, 2.0, 1.7), (80.0, 60.0, 1.0), (0.1, 0.05, 3.0)):
        for tensor, value in zip(levels, values, strict=True):
            tensor.fill_(value)
        graph.replay()
        torch.testing.assert_close(result, step(), rtol=0, atol=0)


@cuda
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y: ops.mp_sum(x, y), "b"),
        (lambda x, y: ops.mp_cat(x, y), "b"),
        (lambda x, y: ops.modulate_mp_silu(x, y[:, :, 0, 0]), "scale"),
        (lambda x, y: ops.mp_weight(x, level(2.0)), "gain"),
        (lambda x, y: ops.guided_heun_first(x, x, None, *[level(1.0)] * 3), "sigma"),
    ],
)
def test_arguments_on_two_devices_are_an_error(call, name):
    x = torch.randn(2, 4, 4, 4)
    with pytest.raises(RuntimeError, match=f"{name} must be on the device of"):
        call(x.cuda(), x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_kernels_run_on_the_device_of_their_tensors():
    x = torch.randn(1000, device="cuda:1")
    with torch.cuda.device(0):
        y = ops.mp_silu(x)
    assert y.device == x.device
    torch.testing.assert_close(y, ops.mp_silu_reference(x))
