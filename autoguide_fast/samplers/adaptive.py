"""Heun's method with steps as long as an estimate of their error allows, for each image its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import arguments
from ..guided_stepper import Denoise

# Steps of one image, done or tried again, before its tolerance counts as out of reach.
_MOST_ROUNDS = 10_000


class AdaptiveHeun:
    """Heun's method with the step length that the embedded Euler step asks for. Second order.

    With the slope d = (x - D) / sigma at the begin and d' at the end of a step from sigma to
    sigma', `e = |(sigma' - sigma) (d' - d) / 2|` is what Heun's and Euler's steps differ by. Both
    lengths are root mean squares over an image. A step counts where `e <= tolerance |x'|`, with the
    larger of `|x|` and `|x'|`; otherwise it is tried again. The next one is
    `0.9 sqrt(tolerance |x'| / e)` times as long in `ln sigma`, from a fifth to five times (the
    controller of Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section
    II.4; for diffusion models as in arXiv 2105.14080, section 3.1).

    Each image has steps of its own, and so depends on its seed alone: one batch has images at
    different noise levels, and goes on without those that are finished. A step takes two
    evaluations, one that is tried again one more, and the last, at the schedule's lowest level, one
    altogether. Of the schedule, the highest and lowest level count, and the first step.

    Args:
        tolerance: the largest error of a step, as a share of the image's own magnitude.

    Raises:
        TypeError, ValueError: another number.

    Called as `autoguide_fast.samplers` says, with a `denoise` that takes `rows` besides. Reads
    numbers back to the host, so no CUDA graph can hold it.
    """

    def __init__(self, tolerance: float = 0.01) -> None:
        self.tolerance = arguments.number(
            "tolerance",
            tolerance,
            "above 0 and at most 1",
            lambda v: 0 < v <= 1,
            "less is more exact",
            "AdaptiveHeun",
        )

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
        """The state at 0 from `x [N, ...]`, the state at `sigmas[0]`."""
        begin, low = float(sigmas[0]), float(sigmas[-2])
        levels = torch.full([len(x)], begin, dtype=torch.float64, device="cpu")
        lengths = torch.full_like(levels, math.log(begin / max(float(sigmas[1]), low)))
        slopes, x = torch.empty_like(x), x.clone()
        fresh = torch.ones(len(x), dtype=torch.bool, device="cpu")  # whose slope has to be found
        done = torch.zeros_like(fresh)
        for _ in range(_MOST_ROUNDS):
            if done.all():
                return x
            rows = (fresh & ~done).nonzero().flatten()
            if len(rows):
                here = rows.to(x.device)
                denoised = denoise(x[here], levels[rows], rows)
                slopes[here] = (x[here] - denoised) / _over(levels[rows], x)
                last = levels[rows] <= low
                x[here[last]] = denoised[last.to(x.device)]  # Euler's step to 0
                levels[rows[last]], done[rows[last]] = 0.0, True
                fresh[rows] = False
            rows = (~done).nonzero().flatten()
            if len(rows):
                ends = (levels[rows] * (-lengths[rows]).exp()).clamp_min(low)
                here = rows.to(x.device)
                before, slope, step = x[here], slopes[here], _over(ends - levels[rows], x)
                euler = before + step * slope
                bend = step * ((euler - denoise(euler, ends, rows)) / _over(ends, x) - slope) / 2
                heun = euler + bend
                error = _size(bend) / torch.maximum(_size(before), _size(heun)).clamp_min(1e-30)
                # What is not finite goes on, and is found by who looks at the states.
                fits = (error <= self.tolerance) | ~error.isfinite()
                factor = 0.9 * (self.tolerance / error.clamp_min(1e-30)).sqrt()
                taken = (levels[rows] / ends).log()
                lengths[rows] = taken * factor.clamp(0.2, 5.0).nan_to_num(5.0)
                levels[rows[fits]], fresh[rows[fits]] = ends[fits], True
                fits = fits.to(x.device)
                x[here[fits]] = heun[fits]
            changed = denoise.after_step(x.clone(), levels.clone())
            fresh = torch.full_like(fresh, True) if not torch.equal(changed, x) else fresh
            x = changed.clone()
        raise FloatingPointError(
            f"sample: tolerance must be within reach, got {self.tolerance:g} for images that are "
            f"not finished after {_MOST_ROUNDS} steps; raise it, or take dtype=torch.float64"
        )


def _over(values: Tensor, x: Tensor) -> Tensor:
    """Numbers `[n]` of the host as they are multiplied with images like `x`."""
    return values.to(x).view(-1, *[1] * (x.ndim - 1))


def _size(images: Tensor) -> Tensor:
    """The root mean square of each image, float64 `[n]` on the host."""
    return images.double().square().flatten(1).mean(1).sqrt().cpu()
