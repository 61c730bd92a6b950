"""Autoguidance with a second net as a guider of diffusers' modular pipelines."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import number
from ..guidance import guided


def diffusers_guider(
    guide: torch.nn.Module, guidance: float, start: float = 0.0, stop: float = 1.0
) -> Any:
    """A guider for diffusers' modular pipelines that steers the pipeline's net away from `guide`.

    (`diffusers.AutoGuidance` leaves out layers of the pipeline's own net instead.) Give it to the
    pipeline by `pipeline.update_components(guider=...)`. In each guided step the guide is called as
    the net is, with the same latents, timestep and conditioning. What the two predict, noise,
    velocity or data, is combined as it is: for given latents it is linear in the denoised images,
    alike for both.

    Args:
        guide: A worse version of the pipeline's net, of the same class and on its device.
        guidance: The weight w; 1 is no guidance.
        start, stop: Guide in the steps from `start` to before `stop`, as shares of all steps.

    Returns:
        A `diffusers.guiders.guider_utils.BaseGuidance`.

    Raises TypeError for a guide that cannot be called, ValueError for a weight that is not finite
    or shares out of order, ImportError where diffusers is not installed or has no guiders.
    """
    try:
        from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
    except ImportError as error:
        raise ImportError(
            "diffusers_guider: diffusers must be installed, of a version with guiders, got "
            f"{error}; pip install -U diffusers"
        ) from None
    if not callable(guide):
        raise TypeError(
            f"diffusers_guider: guide must be a net, got {type(guide).__name__}; pass the net "
            "itself"
        )
    remedy = "1 is no guidance, 1.5 a usual start"
    w = number("guidance", guidance, "finite", math.isfinite, remedy, "diffusers_guider")
    remedy = "shares of all steps, such as 0.2 and 0.8"
    start = number("start", start, "in [0, 1]", lambda v: 0 <= v <= 1, remedy, "diffusers_guider")
    stop = number(
        "stop", stop, "in [start, 1]", lambda v: start <= v <= 1, remedy, "diffusers_guider"
    )

    base: Any = BaseGuidance  # whose own annotations contradict its use

    class TwoModelGuidance(base):
        """`D = D0 + w (D1 - D0)` with a guide that is a net of its own."""

        _input_predictions: ClassVar[list[str]] = ["pred_cond", "pred_guide"]

        def __init__(self) -> None:
            super().__init__()
            self.guide, self.guidance, self.start, self.stop = guide, w, start, stop
            self._replaced: Any = None

        def new(self, **options: Any) -> Any:
            own = {key: getattr(self, key) for key in ("guide", "guidance", "start", "stop")}
            return diffusers_guider(**{**own, **options})

        @property
        def is_conditional(self) -> bool:
            return True

        @property
        def num_conditions(self) -> int:
            if not self._enabled or self.guidance == 1:
                return 1
            steps = self._num_inference_steps
            inside = steps is None or self.start * steps <= self._step < self.stop * steps
            return 2 if inside else 1

        def prepare_inputs(self, data: dict) -> list:
            # Both nets get what is meant for the net with its prompt, the first of each pair.
            names = self._input_predictions[: self.num_conditions]
            return [self._prepare_batch(data, 0, name) for name in names]

        def prepare_inputs_from_block_state(self, data: Any, input_fields: dict) -> list:
            names = self._input_predictions[: self.num_conditions]
            return [self._prepare_batch_from_block_state(input_fields, data, 0, n) for n in names]

        def prepare_models(self, denoiser: torch.nn.Module) -> None:
            super().prepare_models(denoiser)
            if self._count_prepared == 2:  # the guide's turn
                self._replaced = vars(denoiser).get("forward")
                denoiser.forward = self.guide.__call__

        def cleanup_models(self, denoiser: torch.nn.Module) -> None:
            if self._count_prepared == 2:
                del denoiser.forward
                if self._replaced is not None:
                    denoiser.forward = self._replaced
                    self._replaced = None

        def forward(self, pred_cond: Tensor, pred_guide: Tensor | None = None) -> Any:
            pred = pred_cond
            if pred_guide is not None:
                pred = guided(pred_cond, pred_guide, self.guidance)
            return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_guide)

    return TwoModelGuidance()
