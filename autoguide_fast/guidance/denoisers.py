"""What denoisers are, how they are called, and the unlabelled guide."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Denoiser(Protocol):
    """What a model or a guide is: a callable `(x, sigma, class_labels) -> D`.

    `x` are noisy images `[N, C, H, W]`, `sigma` their noise level, 0-dim, `class_labels`
    `[N, label_dim]` or None; D are the denoised images, like `x`. Modules are such callables. One
    that is sampled with conditioning (`sample`'s `cond`) takes that by its names besides.
    """

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None, /) -> Tensor: ...


# Conditioning tensors by the names under which nets take them, `[N or 1, ...]`.
Cond = Mapping[str, Tensor]


def told_guidance(cond: Mapping[str, Cond] | None, role: str) -> Tensor | None:
    """The guidance weights `[N or 1]` that the net `role` takes as an input, or None."""
    return (cond or {}).get(role, {}).get("guidance")


def guide_roles(count: int) -> list[str]:
    """What the guides are called, in messages too: "guide", or "guide 1" and so forth."""
    return ["guide"] if count == 1 else [f"guide {i + 1}" for i in range(count)]


class Unlabelled:
    """A network that is never told the label; see `unlabelled`."""

    label_dim = 0

    def __init__(self, net: Denoiser) -> None:
        self.net = net

    def __call__(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        return self.net(x, sigma, None, **cond)

    def __getattr__(self, name: str) -> Any:
        if name == "net":  # not there yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.net, name)


def unlabelled(net: Denoiser) -> Unlabelled:
    """`net` without its label, as a guide for classifier-free guidance.

    `sample(net, guide=unlabelled(net), guidance=2)` is CFG from the model's own unlabelled
    output. That output means something only if the label was dropped now and then in training;
    otherwise guide with a separate network that was trained without labels.

    Takes and returns a callable `(x, sigma, class_labels) -> D`.
    """
    if not callable(net):
        raise TypeError(
            f"unlabelled: net must be callable, got {type(net).__name__}; load a name or a path "
            "with autoguide_fast.load first"
        )
    return net if isinstance(net, Unlabelled) else Unlabelled(net)


def unwrapped(net: object) -> tuple[Any, bool]:
    """`net` without an `unlabelled` around it, and whether there was one."""
    return (net.net, True) if isinstance(net, Unlabelled) else (net, False)


def bare(net: object) -> Any:
    """`net` without an `unlabelled` around it."""
    return unwrapped(net)[0]


def module_of(net: object) -> torch.nn.Module | None:
    """The module in `net`, or None for a bare callable."""
    net = bare(net)
    return net if isinstance(net, torch.nn.Module) else None


def evaluated(
    net: Denoiser,
    x: Tensor,
    sigma: Tensor,
    class_labels: Tensor | None,
    cond: Cond | None = None,
) -> Tensor:
    """What `net(x, sigma, class_labels, **cond)` returns; neither side can change the other's.

    The net gets copies, for it may write to them, and what it returns is copied, since it may be a
    buffer that the next evaluation overwrites: that of a CUDA graph, for instance. Differentiable.
    """
    given: list[Any] = [
        v.clone() if isinstance(v, torch.Tensor) else v for v in (x, sigma, class_labels)
    ]
    named = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in (cond or {}).items()
    }
    output = net(*given, **named)
    return output.clone() if isinstance(output, torch.Tensor) else output
