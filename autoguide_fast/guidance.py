"""How several denoisers become one: the guided combination, its interval, the unlabelled guide."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from . import arguments


class Denoiser(Protocol):
    """What a model or a guide is: a callable `(x, sigma, class_labels) -> D`.

    `x` are noisy images `[N, C, H, W]`, `sigma` their noise level, 0-dim, `class_labels`
    `[N, label_dim]` or None; D are the denoised images, like `x`. Modules are such callables. One
    that is sampled with conditioning (`sample`'s `cond`) takes that by its names besides.
    """

    def __call__(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None, /) -> Tensor: ...


# The guidance weight w: a number, or a function of the noise level.
Weight = float | Callable[[float], float]


def weight_at(guidance: Weight, sigma: float) -> float:
    """The guidance weight at the noise level `sigma`; 1 at 0, where nothing is evaluated."""
    if not callable(guidance):
        return guidance
    return float(guidance(sigma)) if sigma > 0 else 1.0


# Conditioning tensors by the names under which nets take them, `[N or 1, ...]`.
Cond = Mapping[str, Tensor]


def guided(denoised: Tensor, guide_denoised: Tensor, guidance: float | Tensor) -> Tensor:
    """The guided denoiser's output `D_w = D0 + w (D1 - D0)` (arXiv 2406.02507, eq. 3).

    `denoised` is D1, what the model says; `guide_denoised` is D0, what its guide says;
    `guidance` is w: 1 is the model itself, above 1 steps away from the guide. Tensors of one
    shape; differentiable. The sampler computes the same inside its fused step.
    """
    return guide_denoised + guidance * (denoised - guide_denoised)


def guides_at(sigma: float, guidance: float, interval: tuple[float, float] | None = None) -> bool:
    """Whether the guide has to run at the noise level `sigma` (a host-side float).

    It does unless `guidance` is 1, or `sigma` lies outside `interval = (lo, hi]`, where the
    guidance counts as 1 (arXiv 2404.07724).
    """
    if guidance == 1:
        return False
    return interval is None or interval[0] < sigma <= interval[1]


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
    named = {name: value.clone() for name, value in (cond or {}).items()}
    output = net(*given, **named)
    return output.clone() if isinstance(output, torch.Tensor) else output


def guided_denoiser(
    model: Denoiser,
    guide: Denoiser | None,
    guidance: Weight,
    interval: tuple[float, float] | None = None,
    guide_cond: Cond | None = None,
) -> Denoiser:
    """One denoiser `(x, sigma, class_labels, **cond) -> D` made of a model and its guide.

    For use outside `autoguide_fast.sample`, which takes model and guide separately and fuses them:
    in a sampler of k-diffusion, for instance, which calls denoisers so. `cond` goes to both nets,
    unless there is `guide_cond` for the guide.

    With an `interval`, or a `guidance` that is a function of the noise level, `sigma` must be one
    level for the whole batch, and is read back to the host.
    With `guidance` 1, and outside `interval`, the guide does not run. What it returns is no buffer
    of the nets, and they may write to their arguments. They are evaluated as they are, under the
    caller's autocast and in the caller's grad mode: differentiable where they are.

    Raises:
        TypeError, ValueError: model or guide that is no callable, `guidance` that is no finite
            number, `interval` that is no pair of levels; later, levels that differ within a batch.
    """
    guidance = arguments.weight(guidance, "guided_denoiser")
    interval = arguments.guidance_interval(interval, "guided_denoiser")
    for role, net in (("model", model), ("guide", guide)):
        if not callable(net) and not (role == "guide" and net is None and guidance == 1):
            raise TypeError(
                f"guided_denoiser: {role} must be a callable (x, sigma, class_labels) -> D, got "
                f"{type(net).__name__}; load a name or a path with autoguide_fast.load first"
            )

    def denoiser(
        x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        w = 1.0 if callable(guidance) else guidance
        guides = callable(guidance) or guidance != 1
        if callable(guidance) or (guides and interval is not None):
            level = _only_level(sigma)
            w = weight_at(guidance, level)
            guides = guides_at(level, w, interval)
        denoised = evaluated(model, x, sigma, class_labels, cond)
        if not guides:
            return denoised
        assert guide is not None  # but where guidance is 1
        named = cond if guide_cond is None else guide_cond
        return guided(denoised, evaluated(guide, x, sigma, class_labels, named), w)

    return denoiser


def _only_level(sigma: Tensor | float) -> float:
    """The one noise level of a batch as a float."""
    if not isinstance(sigma, torch.Tensor):
        return float(sigma)
    lowest, highest = (float(level) for level in sigma.aminmax())
    if lowest != highest:
        raise ValueError(
            "guided_denoiser: sigma must be one level for the whole batch where there is an "
            f"interval or a weight by level, got {lowest:g} to {highest:g}; call it level by level"
        )
    return highest
