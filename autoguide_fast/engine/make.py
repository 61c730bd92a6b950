"""Chooses the engine of a pair: where its networks lie, there it runs."""

from collections.abc import Callable
from typing import Any

import torch

from ..guidance import Denoiser
from .base_engine import BaseEngine
from .cpu_engine import CpuEngine
from .gpu_engine import GpuEngine
from .prepared import device_of, unsupported_reason


def make_engine(
    model: Denoiser, guide: Denoiser | None, dtype: torch.dtype | str, **options: Any
) -> BaseEngine:
    """A `GpuEngine` for networks on a CUDA device, a `CpuEngine` for others; arguments as there."""
    on_gpu = unsupported_reason(model) is None and device_of(model).type == "cuda"
    kind: Callable[..., BaseEngine] = GpuEngine if on_gpu else CpuEngine
    return kind(model, guide, dtype, **options)
