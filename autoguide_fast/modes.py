"""PyTorch's modes that change what a function must do: autocast, and derivatives other than first.

A net chooses the types that it computes in, so its products leave autocast. Kernels that know their
first backward pass alone leave everything else to plain PyTorch.
"""

import functools

import torch
from torch.autograd import forward_ad


def transformed():
    """Whether a transform of `torch.func` or a level of forward-mode differentiation is active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def without_autocast(function):
    """Decorate a function of tensors so that it computes in their types, under autocast too."""

    @functools.wraps(function)
    def run(x, *others):
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return function(x, *others)
        return function(x, *others)

    return run
