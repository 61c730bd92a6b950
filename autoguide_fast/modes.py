"""PyTorch's modes that change what a function must do: autocast, derivatives, watching modes.

A net chooses the types that it computes in, so its products leave autocast. Kernels that know their
first backward pass alone leave everything else to plain PyTorch.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch
from torch.utils._device import DeviceContext

Others = ParamSpec("Others")
Result = TypeVar("Result")


def transformed() -> bool:
    """Whether a transform of `torch.func` or a level of forward-mode differentiation is active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def watching() -> str | None:
    """The class of an active mode that sees, and may replace, each call of torch; else None.

    A `TorchFunctionMode` or `TorchDispatchMode`, but not where new tensors go (`torch.device`).
    """
    modes = []
    if torch._C._len_torch_function_stack():
        stack = torch.overrides._get_current_function_mode_stack()
        modes += [m for m in stack if not isinstance(m, DeviceContext)]
    if torch._C._len_torch_dispatch_stack():
        modes += _python_dispatch._get_current_dispatch_mode_stack()
    return type(modes[-1]).__name__ if modes else None


_recording = threading.local()


def recording() -> bool:
    """Whether what this thread calls is being recorded, so that nothing can be read from it."""
    return getattr(_recording, "on", False)


@contextlib.contextmanager
def while_recording() -> Iterator[None]:
    """The time in which `recording()` is true."""
    _recording.on = True
    try:
        yield
    finally:
        _recording.on = False


def without_autocast(
    function: Callable[Concatenate[Tensor, Others], Result],
) -> Callable[Concatenate[Tensor, Others], Result]:
    """Decorate a function of tensors so that it computes in their types, under autocast too."""

    @functools.wraps(function)
    def run(x: Tensor, *others: Others.args, **named: Others.kwargs) -> Result:
        kind = (x if isinstance(x, torch.Tensor) else x[0]).device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return function(x, *others, **named)
        return function(x, *others, **named)

    return run
