"""The CPU engine's stepper: prepared nets and the fused half step in one call."""

import torch

from ..preconditioning import c_in
from ..sampler import Stepper
from .prepared import check_call


class CpuStepper(Stepper):
    """Runs prepared nets and the fused half steps.

    Args:
        model, guide (PreparedNet): `guide` may be None where no step is guided.
        guidance (float): The weight w.
        class_labels (Tensor [N or 1, label_dim] or None)
        steps (sequence of sampler.Step): The steps that will be run; their modulations are computed
            here, all at once.

    All tensors are allocated in the first step and written again in those after it: what `first`
    returns holds until the next step, what `second` returns until the one after that. What the
    last step returns is the caller's.
    """

    def __init__(self, model, guide, guidance, class_labels, steps):
        self.nets = {"model": model}
        if any(s.guided or s.guided_next for s in steps):
            self.nets["guide"] = guide
        self.sigma_data = model.sigma_data
        self.guidance = float(guidance)
        levels = torch.stack([level for s in steps for level in (s.level, s.level_next)])
        # The last level is 0, where nothing is evaluated.
        levels = levels[:-1].to(torch.float32)
        self.c_in = c_in(levels, self.sigma_data).tolist()
        with torch.inference_mode():
            rows = [net.modulations(levels, class_labels) for net in self.nets.values()]
            self.modulations = [list(level) for level in zip(*rows, strict=True)]
        self.plans = [net.lowered.plan.number for net in self.nets.values()]
        self.weights = [net.lowered.weights for net in self.nets.values()]
        self.state = None
        self.outputs = []

    def first(self, x, step):
        """See `sampler.Stepper.first`."""
        check_call(x)
        self.outputs.clear()
        x = x.contiguous()
        if self.state is None or not self.state.fits(x):
            self.state = _State(x, self.nets)
        x_next, slope = self.state.x_next, self.state.slope
        self._half(0, x, None, x_next, step, step.guided)
        self.outputs.append(("state", x_next))
        if step.is_last:
            self.state = None
        return x_next, slope

    def second(self, x, x_next, slope, step):
        """See `sampler.Stepper.second`."""
        out = self.state.other(x)
        self._half(1, x.contiguous(), x_next, out, step, step.guided_next)
        return out

    def _half(self, half, x, x_next, out, step, guided):
        """Evaluate the nets and take half a step to `out`, all in one call of an operator."""
        evaluation, images, threads = 2 * step.index + half, len(x), torch.get_num_threads()
        count = 2 if guided else 1  # of the nets that take part
        nets = list(self.nets.values())[:count]
        raws = self.state.raws[half][:count]
        self.outputs += zip(list(self.nets)[:count], raws, strict=True)
        arena = nets[0].arena
        with arena.lock, torch.inference_mode():
            block = arena.reserve(nets, images, threads)
            torch.ops.autoguide_fast.guided_half_step.default(
                self.plans[:count],
                self.weights[:count],
                self.modulations[evaluation][:count],
                raws,
                [net.chunk(images, threads) for net in nets],
                block,
                threads,
                x,
                x_next,
                self.state.slope,
                out,
                self.c_in[evaluation],
                step.sigma_hat,
                step.sigma_next,
                self.guidance,
                self.sigma_data,
            )


class _State:
    """The tensors of a run, float32 or float64 `[N, C, H, W]`; the nets' outputs float32."""

    def __init__(self, x, nets):
        self.x_next, self.slope, *self._states = (torch.empty_like(x) for _ in range(4))
        self.raws = [[torch.empty_like(x, dtype=torch.float32) for _ in nets] for half in range(2)]

    def fits(self, x):
        """Whether they are of the shape and type of `x`."""
        return (self.x_next.shape, self.x_next.dtype) == (x.shape, x.dtype)

    def other(self, x):
        """The one of two tensors that is not `x`, in turn."""
        return self._states[x.data_ptr() == self._states[0].data_ptr()]
