"""The CPU engine's stepper: prepared nets and the fused half step in one call."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..guidance import Cond, Weight, told_guidance
from ..preconditioning import c_in
from ..sampler import Step, Stepper, step_weights
from .prepared import PreparedNet, check_call


class CpuStepper(Stepper):
    """Runs prepared nets and the fused half steps.

    Args:
        model, guide: `guide` may be None where no step is guided.
        guidance: the weight w, a number or a function of the noise level.
        class_labels: `[N or 1, label_dim]`, or None.
        steps: those that will be run; their modulations are computed here, all at once.
        cond: by role, the guidance weights of a net that takes them as an input.
        joint: the plan of both, where the guide begins as the model does.

    All tensors are allocated in the first step and written again in those after it: what `first`
    returns holds until the next step, what `second` returns until the one after that. What the
    last step returns is the caller's.
    """

    def __init__(
        self,
        model: PreparedNet,
        guide: PreparedNet | None,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
        joint: PreparedNet | None = None,
    ) -> None:
        self.nets = {"model": model}
        if any(s.guided or s.guided_next for s in steps):
            assert guide is not None
            self.nets["guide"] = guide
        self.joint = joint if "guide" in self.nets else None
        self.sigma_data = model.sigma_data
        self.guidance = step_weights(guidance, steps)
        levels = torch.stack([level for s in steps for level in (s.level, s.level_next)])
        # The last level is 0, where nothing is evaluated.
        levels = levels[:-1].to(torch.float32)
        self.c_in = c_in(levels, self.sigma_data).tolist()
        with torch.inference_mode():
            rows = [
                net.modulations(levels, class_labels, told_guidance(cond, role))
                for role, net in self.nets.items()
            ]
            self.modulations = [list(level) for level in zip(*rows, strict=True)]
        self.plans = [net.lowered.plan.number for net in self.nets.values()]
        self.weights = [net.lowered.weights for net in self.nets.values()]
        self.state: _State | None = None
        self.outputs = []

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See `sampler.Stepper.first`."""
        check_call(x)
        self.outputs.clear()
        x = x.contiguous()
        state = self.state
        if state is None or not state.fits(x):
            state = self.state = _State(x, len(self.nets))
        x_next, slope = state.x_next, state.slope
        self._half(state, 0, x, None, x_next, step, step.guided)
        self.outputs.append(("state", x_next))
        if step.is_last:
            self.state = None
        return x_next, slope

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """See `sampler.Stepper.second`."""
        state = self.state
        assert state is not None  # since `first`
        out = state.other(x)
        self._half(state, 1, x.contiguous(), x_next, out, step, step.guided_next)
        return out

    def _half(
        self,
        state: "_State",
        half: int,
        x: Tensor,
        x_next: Tensor | None,
        out: Tensor,
        step: Step,
        guided: bool,
    ) -> None:
        """Evaluate the nets and take half a step to `out`, all in one call of an operator."""
        evaluation, images, threads = 2 * step.index + half, len(x), torch.get_num_threads()
        count = 2 if guided else 1  # of the nets that take part
        nets = list(self.nets.values())[:count]
        raws = state.raws[half]
        self.outputs += zip(list(self.nets)[:count], raws, strict=False)
        results = list(raws[:count])
        plans, weights = self.plans[:count], self.weights[:count]
        if guided and self.joint is not None:
            nets, results = [self.joint], [raws]
            plans, weights = [self.joint.lowered.plan.number], [self.joint.lowered.weights]
        arena = nets[0].arena
        with arena.lock, torch.inference_mode():
            block = arena.reserve(nets, images, threads)
            torch.ops.autoguide_fast.guided_half_step.default(
                plans,
                weights,
                self.modulations[evaluation][: len(nets)],
                results,
                [net.chunk(images, threads) for net in nets],
                block,
                threads,
                x,
                x_next,
                state.slope,
                out,
                self.c_in[evaluation],
                step.sigma_hat,
                step.sigma_next,
                self.guidance[evaluation],
                self.sigma_data,
            )


class _State:
    """The tensors of a run, float32 or float64 `[N, C, H, W]`; the nets' outputs float32."""

    def __init__(self, x: Tensor, nets: int) -> None:
        self.x_next, self.slope, *self._states = (torch.empty_like(x) for _ in range(4))
        self.raws = [
            torch.empty([nets, *x.shape], dtype=torch.float32, device="cpu") for half in range(2)
        ]

    def fits(self, x: Tensor) -> bool:
        """Whether they are of the shape and type of `x`."""
        return (self.x_next.shape, self.x_next.dtype) == (x.shape, x.dtype)

    def other(self, x: Tensor) -> Tensor:
        """The one of two tensors that is not `x`, in turn."""
        return self._states[x.data_ptr() == self._states[0].data_ptr()]
