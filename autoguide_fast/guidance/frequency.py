"""Frequency-decoupled guidance: a weight for what is coarse, one for what is fine (2506.19713)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import arguments
from .combination import Images
from .evaluation import Evaluation
from .kind import OneGuide
from .weights import AnyWeight


class FrequencyDecoupled(OneGuide):
    """Frequency-decoupled guidance (Sadat et al., arXiv 2506.19713), with two bands.

    The difference `d = D1 - D0` is split by one level of a Laplacian pyramid into the coarse part
    `L d` (blurred by the binomial filter 1 4 6 4 1, halved in size, and enlarged again bilinearly)
    and the fine rest: `D = D1 + (w_low - 1) L d + (w - 1) (d - L d)`.

    Args:
        weight, interval: as for `OneGuide`; the weight is that of the fine part.
        low: the weight of the coarse part, a number; the paper takes less than for the fine part.

    For images `[N, C, H, W]` with H and W of at least 2.
    """

    levels_may_differ = True

    def __init__(
        self,
        weight: AnyWeight = 2.0,
        low: float = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(weight, interval)
        self.low = arguments.number(
            "low",
            low,
            "finite",
            lambda v: abs(v) < float("inf"),
            "1 is no guidance",
            "FrequencyDecoupled",
        )

    def combine(
        self, denoised: Images, guides: Sequence[Images | None], x: Images, step: Evaluation
    ) -> Images:
        """See `Guidance.combine`."""
        (guide,) = guides
        difference = denoised - guide
        coarse = low_pass(difference)
        weight = self.weight_at(step)
        return denoised + difference * (weight - 1) + coarse * (self.low - weight)


def low_pass(images: Images) -> Tensor:
    """What one level of a Gaussian pyramid keeps of images `[N, C, H, W]`, at their own size."""
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise ValueError(
            "FrequencyDecoupled: images must be [N, C, H, W] with H and W of at least 2, got "
            f"{list(images.shape)}; take another kind of guidance"
        )
    functional = torch.nn.functional
    channels = images.shape[1]
    filter_1d = torch.full([5], 1 / 16, dtype=images.dtype, device=images.device)
    filter_1d[1:4] *= 4
    filter_1d[2] *= 1.5
    kernel = torch.outer(filter_1d, filter_1d).expand(channels, 1, 5, 5)
    # Edges are repeated: a reflection of two pixels needs three.
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    small = functional.conv2d(padded, kernel, stride=2, groups=channels)
    return functional.interpolate(
        small, size=images.shape[2:], mode="bilinear", align_corners=False
    )
