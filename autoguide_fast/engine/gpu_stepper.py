"""The GPU engine's stepper: loads recordings, runs them, hands out copies of what they wrote."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..guidance import Cond, Weight, told_guidance
from ..sampler import Step, Stepper, heun, step_weights
from .baked import BakedNet
from .graphs import CudaGraphs, lacks_memory
from .prepared import check_call
from .recordings import Half, Loop, RunBoth

Recording = TypeVar("Recording")

# Steps that one recording holds at most: a graph of 64 steps of EDM2-S with its guide has about
# 80,000 kernels, which take some 100 MB of the device.
LONGEST = 64


class Recorded(Protocol):
    """What a stepper needs of the `GpuEngine` that it belongs to; described there."""

    device: torch.device
    largest: int | None

    @property
    def pair(self) -> dict[str, BakedNet]: ...

    def exclusive(self) -> AbstractContextManager[None]: ...

    def recording(
        self,
        key: tuple,
        make: Callable[[CudaGraphs, dict[str, BakedNet], RunBoth], Recording],
        roles: Sequence[str],
    ) -> Recording: ...

    def close(self) -> None: ...


class GpuStepper(Stepper):
    """Runs a `GpuEngine`'s pair from recordings.

    `first` and `second` run a recording for each half, so that a callback may look at the state
    between steps; `whole` runs one for all. A batch that memory does not last for is split once.

    Args:
        engine: whose pair it runs.
        guidance: the weight w, a number or a function of the noise level.
        class_labels: `[N or 1, label_dim]`, or None.
        steps: those that will be run.
        cond: by role, the guidance weights of a net that takes them as an input.
    """

    def __init__(
        self,
        engine: Recorded,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> None:
        self.engine, self.steps, self.class_labels = engine, steps, class_labels
        self.cond = cond
        guided = any(s.guided or s.guided_next for s in steps)
        self.roles = _roles(guided)
        weights = torch.tensor(step_weights(guidance, steps), dtype=torch.float64, device="cpu")
        self.guidance = weights.to(engine.device)
        levels = torch.stack([level for s in steps for level in (s.level, s.level_next)])
        self.levels = levels[:-1].to(torch.float32)  # the last is 0, where nothing is evaluated
        # By role and part of the batch, for `first` and `second`.
        self._modulations: dict[tuple[str, int, int], Tensor] = {}
        self.outputs = []

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See `sampler.Stepper.first`."""
        check_call(x)
        self.outputs.clear()
        x_next, slope = self._half(step, False, x)
        self.outputs.append(("state", x_next))
        return x_next, slope

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """See `sampler.Stepper.second`."""
        return self._half(step, True, x, x_next, slope)[0]

    def whole(self, noise: Tensor, randn: Callable[[], Tensor] | None = None) -> Tensor:
        """See `sampler.Stepper.whole`; `heun` half by half beyond `LONGEST` steps."""
        check_call(noise)
        if len(self.steps) > LONGEST:
            return heun(self, noise, self.steps, randn)
        churned = tuple(s.churn_std > 0 for s in self.steps)
        churn = [] if randn is None else [randn() for step in self.steps if step.churn_std]
        guided = tuple((s.guided, s.guided_next) for s in self.steps)

        def run(rows: slice) -> tuple[Tensor, ...]:
            count = len(noise[rows])
            key = "whole", count, noise.dtype, guided, churned
            engine = self.engine
            with engine.exclusive():
                loop = engine.recording(
                    key,
                    lambda recorder, pair, run_both: Loop(
                        recorder, pair, run_both, count, noise.dtype, self.steps
                    ),
                    self.roles,
                )
                loop.load(
                    self.steps,
                    self.guidance[:-1],
                    lambda role: self._rows(role, rows, count, self.levels),
                    noise[rows],
                    [drawn[rows] for drawn in churn],
                )
                loop.run()
                return (loop.result.clone(),)

        return self._in_parts(len(noise), run)[0]

    def _half(self, step: Step, second: bool, x: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        guided = step.guided_next if second else step.guided
        evaluation = 2 * step.index + second
        outputs: list[str] = []

        def run(rows: slice) -> tuple[Tensor, ...]:
            count = len(x[rows])
            key = "second" if second else "first", count, x.dtype, guided
            engine = self.engine
            with engine.exclusive():
                half = engine.recording(
                    key,
                    lambda recorder, pair, run_both: Half(
                        recorder, pair, run_both, count, x.dtype, step, second
                    ),
                    _roles(guided),
                )
                modulations = {
                    role: self._kept_rows(role, rows, count)[evaluation] for role in half.nets.pair
                }
                half.load(
                    step, self.guidance[evaluation], modulations, *(t[rows] for t in (x, *rest))
                )
                half.run()
                results = (half.result,) if second else (half.x_next, half.slope)
                raws = half.nets.raws
                outputs[:] = list(raws)
                return tuple(t.clone() for t in (*results, *raws.values()))

        found = self._in_parts(len(x), run)
        count = 1 if second else 2
        self.outputs += zip(outputs, found[count:], strict=True)
        return found[:count]

    def _rows(self, role: str, rows: slice, count: int, levels: Tensor) -> Tensor:
        labels = self.class_labels
        if labels is not None and len(labels) > 1:
            labels = labels[rows]
        weights = told_guidance(self.cond, role)
        if weights is not None and len(weights) > 1:
            weights = weights[rows]
        return self.engine.pair[role].modulations(levels, labels, count, weights)

    def _kept_rows(self, role: str, rows: slice, count: int) -> Tensor:
        key = role, rows.start, count
        if key not in self._modulations:
            self._modulations[key] = self._rows(role, rows, count, self.levels)
        return self._modulations[key]

    def _in_parts(self, count: int, run: Callable[[slice], tuple[Tensor, ...]]) -> Sequence[Tensor]:
        """`run` for slices of the batch, which returns tuples of images; and these joined."""
        engine = self.engine
        size = max(1, min(count, engine.largest or count))
        while True:
            try:
                found = [run(slice(i, i + size)) for i in range(0, max(count, 1), size)]
                # Copies of what recordings wrote, made while it was theirs.
                return (
                    found[0]
                    if len(found) == 1
                    else [torch.cat(t) for t in zip(*found, strict=True)]
                )
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                reason = str(error).split("\n")[0].split(". ")[0]
            # Here, where no frame of what failed holds memory any more.
            self._modulations.clear()
            engine.close()
            if size < count or count == 1:
                remedy = f"pass a batch_size below {size}" if size > 1 else "use smaller networks"
                raise torch.OutOfMemoryError(
                    f"Engine: the memory of {engine.device} must last for {size} images at a time, "
                    f"got: {reason}; {remedy}"
                )
            size = engine.largest = -(-count // 2)
            warnings.warn(
                f"Engine: memory of {engine.device} does not last for {count} images at a time "
                f"({reason}); running {size} at a time from here on",
                stacklevel=2,
            )


def _roles(guided: bool) -> tuple[str, ...]:
    return ("model", "guide") if guided else ("model",)
