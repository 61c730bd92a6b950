"""A model and its guide as one denoiser, for use outside of `sample`."""

import torch
from torch import Tensor

from .. import arguments
from .denoisers import Cond, Denoiser, evaluated
from .weights import Weight, guides_at, weight_at


def guided(denoised: Tensor, guide_denoised: Tensor, guidance: float | Tensor) -> Tensor:
    """The guided denoiser's output `D_w = D0 + w (D1 - D0)` (arXiv 2406.02507, eq. 3).

    `denoised` is D1, what the model says; `guide_denoised` is D0, what its guide says;
    `guidance` is w: 1 is the model itself, above 1 steps away from the guide. Tensors of one
    shape; differentiable. The sampler computes the same inside its fused step.
    """
    return guide_denoised + guidance * (denoised - guide_denoised)


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
            level = only_level(
                sigma, "guided_denoiser", " where there is an interval or a weight by level"
            )
            w = weight_at(guidance, level)
            guides = guides_at(level, w, interval)
        denoised = evaluated(model, x, sigma, class_labels, cond)
        if not guides:
            return denoised
        assert guide is not None  # but where guidance is 1
        named = cond if guide_cond is None else guide_cond
        return guided(denoised, evaluated(guide, x, sigma, class_labels, named), w)

    return denoiser


def only_level(sigma: Tensor | float, caller: str, where: str = "") -> float:
    """The one noise level of a batch as a float; ValueError, in the name of `caller`, for several.

    `where` ends the rule in the message.
    """
    if not isinstance(sigma, torch.Tensor):
        return float(sigma)
    lowest, highest = (float(level) for level in sigma.aminmax())
    if lowest != highest:
        raise ValueError(
            f"{caller}: sigma must be one level for the whole batch{where}, got {lowest:g} to "
            f"{highest:g}; call it level by level"
        )
    return highest
