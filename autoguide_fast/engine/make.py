"""Chooses the engine of a pair: by what its nets are, and where they lie."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..guidance import Denoiser, module_of
from ..networks import Precond
from .base_engine import BaseEngine, Guides, guide_list
from .cpu_engine import CpuEngine
from .gpu_engine import GpuEngine
from .module_engine import ModuleEngine
from .prepared import device_of, unsupported_reason


def make_engine(
    model: Denoiser,
    guide: Guides,
    dtype: torch.dtype | str | Sequence[torch.dtype | str],
    **options: Any,
) -> BaseEngine:
    """The engine of a pair.

    A `ModuleEngine` where one of the modules is no `Precond`; otherwise a `GpuEngine` for networks
    on a CUDA device, a `CpuEngine` for others. Arguments as there.
    """
    if of_modules(model, guide):
        return ModuleEngine(model, guide, dtype, **options)  # type: ignore[arg-type]
    on_gpu = unsupported_reason(model) is None and device_of(model).type == "cuda"
    kind: Callable[..., BaseEngine] = GpuEngine if on_gpu else CpuEngine
    return kind(model, guide, dtype, **options)


def of_modules(model: Denoiser, guide: Guides) -> bool:
    """Whether all are modules, and one of them is of another kind than `Precond`."""
    modules = [module_of(net) for net in (model, *guide_list(guide))]
    if any(module is None for module in modules):
        return False
    return not all(isinstance(module, Precond) for module in modules)
