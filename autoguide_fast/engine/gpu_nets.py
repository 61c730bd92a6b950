"""A GPU engine's nets for any kind of guidance and any sampler: evaluations from recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..guidance import Cond, told_guidance
from ..unet import Drop
from .prepared import check_call
from .recordings import Outputs

if TYPE_CHECKING:
    from .gpu_stepper import Recorded


class GpuNets:
    """The nets of a `GpuEngine`; `guided_stepper.Nets` says what that means.

    One evaluation of the nets that take part is one recording; what guidance and sampler make of
    it is launched operator by operator.
    """

    def __init__(self, engine: Recorded, cond: Mapping[str, Cond] | None = None) -> None:
        self.engine, self.cond = engine, cond
        self.sigma_data: float | None = engine.pair["model"].sigma_data

    def outputs(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        roles: Sequence[str],
        rows: Tensor | None = None,
        embedding_noise: Tensor | None = None,
        drop: Drop | None = None,
    ) -> list[Tensor]:
        """See `guided_stepper.Nets.outputs`; of the maps' type, and still to be preconditioned."""
        check_call(x)
        assert drop is None  # refused when the engine is made
        engine, images = self.engine, len(x)
        count, fill = images, None
        if rows is not None:  # filled up to a power of two: each size is a recording
            count = 1 << max(0, images - 1).bit_length()
            fill = torch.arange(count, device=x.device).clamp_max(max(0, images - 1))
            x = x[fill]
            sigma = sigma[fill] if sigma.ndim else sigma
            if class_labels is not None and len(class_labels) != 1:
                class_labels = class_labels[fill]
        key = "outputs", count, x.dtype, tuple(roles)
        with engine.exclusive():
            outputs = engine.recording(
                key,
                lambda recorder, pair, run_both: Outputs(recorder, pair, run_both, count, x.dtype),
                roles,
            )
            modulations = {
                role: engine.pair[role].modulations_at(
                    sigma, class_labels, count, embedding_noise, self._guidance(role, rows, fill)
                )
                for role in roles
            }
            return [raw[:images].clone() for raw in outputs.run(x, sigma, modulations)]

    def _guidance(self, role: str, rows: Tensor | None, fill: Tensor | None) -> Tensor | None:
        """The guidance weights of the images, where the net takes them."""
        weights = told_guidance(self.cond, role)
        if weights is None or rows is None or len(weights) == 1:
            return weights
        return weights[rows.to(weights.device)][fill]
