"""A whole sampling of a pair of modules, recorded as a CUDA graph over buffers of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..guidance import Cond, Weight
from ..modes import while_recording
from ..sampler import Step, Stepper, heun, step_weights
from .recordings import load_run, most_demanding, recordable

if TYPE_CHECKING:
    from .graphs import CudaGraphs


class ModuleLoop:
    """The whole of `sampler.heun`, for modules of any kind.

    It is loaded before it is recorded: what a module looks at once, it looks at while warming up,
    on a true state.

    Args:
        recorder: a `CudaGraphs`, or what stands for it; inside its `private_stream`.
        make: a stepper for labels, conditioning and weights (of both halves of each step) that stay
            where they are.
        noise: like that which will be loaded, as are the others.
    """

    def __init__(
        self,
        recorder: CudaGraphs,
        make: Callable[[Tensor | None, Mapping[str, Cond], Tensor], Stepper],
        steps: Sequence[Step],
        guidance: Weight,
        noise: Tensor,
        churn: Sequence[Tensor],
        labels: Tensor | None,
        cond: Mapping[str, Cond],
    ) -> None:
        self.x, self.result = torch.empty_like(noise), torch.empty_like(noise)
        self.churn = noise.new_empty(len(churn), *noise.shape)
        self.levels = torch.empty(len(steps), 2, dtype=torch.float64, device=noise.device)
        self.labels = None if labels is None else torch.empty_like(labels)
        self.cond = {
            role: {name: torch.empty_like(value) for name, value in named.items()}
            for role, named in cond.items()
        }
        self.guidance = torch.empty(2 * len(steps), dtype=torch.float64, device=noise.device)
        stepper = make(self.labels, self.cond, self.guidance)
        self.load(steps, guidance, noise, churn, labels, cond)
        recorded = recordable(steps, self.levels)

        def run(steps: Sequence[Step] = recorded) -> None:
            self.result.copy_(heun(stepper, self.x, steps, iter(self.churn).__next__))

        def record() -> None:
            with while_recording():
                run()

        self._replay = recorder.record(record, warm_up=lambda: run([most_demanding(recorded)]))

    def load(
        self,
        steps: Sequence[Step],
        guidance: Weight,
        noise: Tensor,
        churn: Sequence[Tensor],
        labels: Tensor | None,
        cond: Mapping[str, Cond],
    ) -> None:
        """Set the buffers."""
        self.guidance.copy_(torch.tensor(step_weights(guidance, steps), dtype=torch.float64))
        if self.labels is not None and labels is not None:
            self.labels.copy_(labels)
        for role, named in self.cond.items():
            for name, buffer in named.items():
                buffer.copy_(cond[role][name])
        load_run(self.levels, self.x, self.churn, steps, noise, churn)

    def run(self) -> None:
        """Run on what is loaded."""
        self._replay()
