"""Chooses the engine of a pair: where its networks lie, there it runs."""

from .cpu_engine import CpuEngine
from .gpu_engine import GpuEngine
from .prepared import device_of, unsupported_reason


def make_engine(model, guide, dtype, **options):
    """A `GpuEngine` for networks on a CUDA device, a `CpuEngine` for others; arguments as there."""
    on_gpu = unsupported_reason(model) is None and device_of(model).type == "cuda"
    return (GpuEngine if on_gpu else CpuEngine)(model, guide, dtype, **options)
