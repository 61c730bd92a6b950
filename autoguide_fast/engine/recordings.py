"""What the GPU engine records: half a step, and a whole sampling, each over buffers of its own.

Both run `sampler.heun`'s arithmetic. Noise levels, guidance weight, modulations and churn noise are
buffers on the device, so that one recording serves any schedule, weight and labels. A recording
reads nothing back to the host, and neither reads nor writes memory that a user holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import ops
from ..preconditioning import c_in
from ..sampler import Step, Stepper, heun
from ..unet import Midway
from .baked import BakedNet
from .graphs import CudaGraphs

# Runs two functions, one after the other or concurrently.
RunBoth = Callable[[Callable[[], None], Callable[[], None]], None]


class Evaluations(Stepper):
    """Evaluations of model and guide at given levels, and the half steps that follow them.

    For steps whose `index` counts from 0. What it records, nobody looks at between the steps:
    `outputs` stays empty, and `raws` holds what the nets return.

    Args:
        pair: by role, those that are evaluated.
        run_both: how both are run.
        images: how many.
        dtype: of the state.
        levels: at how many noise levels the nets are evaluated.
    """

    def __init__(
        self,
        pair: Mapping[str, BakedNet],
        run_both: RunBoth,
        images: int,
        dtype: torch.dtype,
        levels: int,
    ) -> None:
        model = next(iter(pair.values()))
        self.pair, self.run_both, self.sigma_data = pair, run_both, model.sigma_data
        self.channels = model.img_channels
        size = images, model.img_channels, model.img_resolution, model.img_resolution
        self.device = model.device

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        self.buffer, self.shape = buffer, size
        self.guidance = buffer(levels, dtype=torch.float64)
        # Of a step: from where to where.
        self.levels = buffer(-(-levels // 2), 2, dtype=torch.float64)
        # Nets of one type read one image, and outputs of several types are widened.
        self.images = {net.dtype: net.image(images) for net in pair.values()}
        self.outputs = []
        common = model.dtype if len(self.images) == 1 else torch.float32
        self.raws = {role: buffer(*size, dtype=common) for role in pair}
        self.modulations = {
            role: buffer(
                levels, images * sum(c.stop - c.start for c in net.columns), dtype=net.dtype
            )
            for role, net in pair.items()
        }

    def begin(self) -> None:
        """Derive from the levels what each evaluation needs; to be recorded first."""
        levels = self.levels.flatten().to(torch.float32)
        self.c_in = c_in(levels, self.sigma_data)

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See `sampler.Stepper.first`."""
        raws = self._evaluate(x, 2 * step.index, step.guided)
        return ops.guided_heun_first(
            x, *raws, step.level, step.level_next, self._weight(2 * step.index), self.sigma_data
        )

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """See `sampler.Stepper.second`."""
        raws = self._evaluate(x_next, 2 * step.index + 1, step.guided_next)
        return ops.guided_heun_second(
            x,
            x_next,
            slope,
            *raws,
            step.level,
            step.level_next,
            self._weight(2 * step.index + 1),
            self.sigma_data,
        )

    def _weight(self, evaluation: int) -> Tensor:
        # Half a step has one weight, whichever half it is.
        return self.guidance[evaluation % len(self.guidance)]

    def _evaluate(self, x: Tensor, evaluation: int, guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return self.evaluate(x, evaluation, ["model"])[0], None
        raw, guide_raw = self.evaluate(x, evaluation, ["model", "guide"])
        return raw, guide_raw

    def evaluate(self, x: Tensor, evaluation: int, roles: Sequence[str]) -> list[Tensor]:
        """What the nets `roles` return at `x`, in buffers of their own."""
        for image in self.images.values():
            torch.mul(x, self.c_in[evaluation], out=image[:, : self.channels])

        def modulations(role: str) -> Tensor:
            # Half a step reads one row of modulations, whichever half it is.
            rows = self.modulations[role]
            return rows[evaluation % len(rows)]

        begun = {role: Midway(self.images[self.pair[role].dtype]) for role in roles}
        if roles[0] == "model":  # whose first layers may be those of guides, too
            alike = {role: self.pair[role].alike for role in roles[1:] if self.pair[role].alike}
            for count in sorted(set(alike.values())):
                at = self.pair["model"].advance(begun["model"], modulations("model"), count)
                begun["model"] = at
                begun.update({role: at for role in alike if alike[role] == count})

        def run(role: str) -> None:
            self.raws[role].copy_(self.pair[role].run(begun[role], modulations(role)))

        if len(roles) == 2:
            self.run_both(lambda: run(roles[0]), lambda: run(roles[1]))
        else:
            for role in roles:
                run(role)
        return [self.raws[role] for role in roles]


class Outputs:
    """What nets return at their noise levels, for whatever is made of it outside of recordings.

    Args:
        recorder, pair, run_both, images, dtype: as for `Half`; all nets of `pair` are evaluated.
    """

    def __init__(
        self,
        recorder: CudaGraphs,
        pair: Mapping[str, BakedNet],
        run_both: RunBoth,
        images: int,
        dtype: torch.dtype,
    ) -> None:
        nets = self.nets = Evaluations(pair, run_both, images, dtype, levels=1)
        self.scales = nets.buffer(1, images, 1, 1, 1)  # c_in of each image
        nets.c_in = self.scales
        self.x = nets.buffer(*nets.shape)

        def run() -> None:
            nets.evaluate(self.x, 0, list(pair))

        self._replay = recorder.record(run, warm_up=run)

    def run(self, x: Tensor, sigma: Tensor, modulations: Mapping[str, Tensor]) -> list[Tensor]:
        """The nets' outputs at `sigma`, 0-dim or `[N]`, in buffers that the next call writes to."""
        scales = c_in(sigma.to(torch.float32), self.nets.sigma_data)
        self.scales[0].copy_(scales.view(-1, 1, 1, 1))
        self.x.copy_(x)
        for role, rows in self.nets.modulations.items():
            rows.copy_(modulations[role])
        self._replay()
        return list(self.nets.raws.values())


class Half:
    """One half of a step: evaluations at one noise level, and what the sampler makes of them.

    Args:
        recorder: a `CudaGraphs`, or what stands for it.
        pair, run_both, images, dtype: as for `Evaluations`.
        step: one of the steps that this half serves.
        second: which half.
    """

    def __init__(
        self,
        recorder: CudaGraphs,
        pair: Mapping[str, BakedNet],
        run_both: RunBoth,
        images: int,
        dtype: torch.dtype,
        step: Step,
        second: bool,
    ) -> None:
        nets = self.nets = Evaluations(pair, run_both, images, dtype, levels=1)
        nets.levels[0, 0], nets.levels[0, 1] = 2.0, 1.0  # levels are divided by, while warming up
        step = replace(step, index=0, level=nets.levels[0, 0], level_next=nets.levels[0, 1])
        self.x, self.x_next, self.slope, self.result = (nets.buffer(*nets.shape) for _ in range(4))

        def run() -> None:
            nets.begin()
            if second:
                self.result.copy_(nets.second(self.x, self.x_next, self.slope, step))
                return
            x_next, slope = nets.first(self.x, step)
            self.x_next.copy_(x_next)
            self.slope.copy_(slope)

        self._replay = recorder.record(run, warm_up=run)

    def load(
        self,
        step: Step,
        guidance: Tensor,
        modulations: Mapping[str, Tensor],
        x: Tensor,
        x_next: Tensor | None = None,
        slope: Tensor | None = None,
    ) -> None:
        """Set the buffers; `modulations` are of this half's level."""
        self.nets.levels.copy_(torch.stack([step.level, step.level_next])[None])
        self.nets.guidance.copy_(guidance)
        for role, rows in self.nets.modulations.items():
            rows.copy_(modulations[role][None])
        for buffer, value in ((self.x, x), (self.x_next, x_next), (self.slope, slope)):
            if value is not None:
                buffer.copy_(value)

    def run(self) -> None:
        """Run on what is loaded."""
        self._replay()


class Loop:
    """The whole of `sampler.heun`.

    Args:
        recorder, pair, run_both, images, dtype: as for `Half`.
        steps: steps like those that will be run: as many of them, guided and churned at the same
            places.
    """

    def __init__(
        self,
        recorder: CudaGraphs,
        pair: Mapping[str, BakedNet],
        run_both: RunBoth,
        images: int,
        dtype: torch.dtype,
        steps: Sequence[Step],
    ) -> None:
        nets = self.nets = Evaluations(pair, run_both, images, dtype, levels=2 * len(steps) - 1)
        falling = torch.arange(2 * len(steps), 0, -1.0, dtype=torch.float64, device=nets.device)
        nets.levels.copy_(falling.view(-1, 2))  # as in `Half`
        self.x, self.result = nets.buffer(*nets.shape), nets.buffer(*nets.shape)
        self.churn = nets.buffer(sum(bool(s.churn_std) for s in steps), *nets.shape)
        steps = recordable(steps, nets.levels)

        def run(steps: Sequence[Step] = steps) -> None:
            nets.begin()
            self.result.copy_(heun(nets, self.x, steps, iter(self.churn).__next__))

        self._replay = recorder.record(run, warm_up=lambda: run([most_demanding(steps)]))

    def load(
        self,
        steps: Sequence[Step],
        guidance: Tensor,
        modulations: Callable[[str], Tensor],
        noise: Tensor,
        churn: Sequence[Tensor],
    ) -> None:
        """Set the buffers; `modulations` is a function of the role, `churn` a list of noise."""
        self.nets.guidance.copy_(guidance)
        for role, rows in self.nets.modulations.items():
            rows.copy_(modulations(role))
        load_run(self.nets.levels, self.x, self.churn, steps, noise, churn)

    def run(self) -> None:
        """Run on what is loaded."""
        self._replay()


def recordable(steps: Sequence[Step], levels: Tensor) -> list[Step]:
    """`steps` as a recording holds them: their noise levels are rows of the buffer `levels`.

    The state comes scaled to the first level, churn noise to its standard deviation: `load_run`.
    """
    return [
        replace(step, sigma=1.0, churn_std=float(bool(step.churn_std)), level=a, level_next=b)
        for step, (a, b) in zip(steps, (row.unbind() for row in levels), strict=True)
    ]


def most_demanding(steps: Sequence[Step]) -> Step:
    """A step with both halves, churn and guide, which needs every kernel that any of them needs."""
    return replace(
        steps[0],
        sigma_next=1.0,
        churn_std=max(s.churn_std for s in steps),
        guided=any(s.guided for s in steps),
        guided_next=any(s.guided_next for s in steps),
    )


def load_run(
    levels: Tensor,
    x: Tensor,
    churn_buffers: Tensor,
    steps: Sequence[Step],
    noise: Tensor,
    churn: Sequence[Tensor],
) -> None:
    """Set the buffers of what `recordable` steps run over."""
    rows = [level for step in steps for level in (step.level, step.level_next)]
    levels.copy_(torch.stack(rows).view(-1, 2))
    torch.mul(noise, steps[0].sigma, out=x)
    stds = [step.churn_std for step in steps if step.churn_std]
    for buffer, std, drawn in zip(churn_buffers, stds, churn, strict=True):
        torch.mul(drawn, std, out=buffer)
