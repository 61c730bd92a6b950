"""A pair of networks made ready for one run: what is known before the loop leaves the loop.

Weights are normalised, scaled and laid out once instead of at every evaluation, and the
modulations, which depend on noise level and label only, are computed for all steps at once.
"""
import copy

import torch
import torch.nn.functional as F

from . import ops
from .guidance import Unlabelled
from .networks import Block, Precond
from .nn import MPConv


class PreparedConv(torch.nn.Module):
    """An `MPConv` whose weight has been prepared, with the gain that it is called with."""

    def __init__(self, conv, gain=1.0):
        super().__init__()
        weight = ops.mp_weight(conv.weight, gain)
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)

    def forward(self, x, gain=None):
        """Apply the layer to `x`; its gain is in the weight."""
        if self.weight.ndim == 2:
            return F.linear(x, self.weight)
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)


def prepare(net):
    """Return a copy of a `Precond` for inference, with prepared float32 weights.

    The copy is a snapshot: later changes of `net` do not reach it. Its unprepared parameters are
    shared with `net`, so that it costs the memory of its prepared weights alone.
    """
    shared = {id(t): t for t in (*net.parameters(), *net.buffers())}
    net = copy.deepcopy(net, memo=shared).eval()
    gains = {net.unet.out_conv: net.unet.out_gain}
    gains.update({m.emb_linear: m.emb_gain for m in net.modules() if isinstance(m, Block)})
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, MPConv):
                setattr(parent, name, PreparedConv(child, gains.get(child, 1.0)))
    return net


def prepare_pair(model, guide=None):
    """Return `(model, guide)` prepared, or None where one of them cannot be.

    That is where one is not a plain float32 `Precond` (which `unlabelled` may wrap), or where
    their `sigma_data` differ, by which the fused step preconditions both.
    """
    nets = [net.net if isinstance(net, Unlabelled) else net for net in (model, guide)]
    used = [net for net in nets if net is not None]
    if not all(map(_is_plain, used)) or len({net.sigma_data for net in used}) > 1:
        return None
    made = {id(net): prepare(net) for net in used}
    pair = [None if net is None else made[id(net)] for net in nets]
    return tuple(
        Unlabelled(net) if isinstance(given, Unlabelled) else net
        for given, net in zip((model, guide), pair, strict=True)
    )


def _is_plain(net):
    """Tell whether a call of `net` does what `Precond` does in float32, and nothing else."""
    return (
        isinstance(net, Precond)
        and type(net).forward is Precond.forward
        and "forward" not in vars(net)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        and all(p.dtype == torch.float32 for p in net.parameters())
        and not (net.use_fp16 and next(net.parameters()).is_cuda)
    )


class PreparedStepper:
    """Runs a prepared pair through the fused guided step; a stepper for `sampler.heun`.

    Args:
        model, guide: a pair from `prepare_pair`; `guide` may be None where no step is guided.
        guidance: the weight w.
        class_labels: `[N, label_dim]` or None; not for a net that has no labels or is unlabelled.
        steps: the list of `sampler.Step` that will be run.
    """

    def __init__(self, model, guide, guidance, class_labels, steps):
        self.nets = {"model": model, "guide": guide}
        self.sigma_data = model.sigma_data
        device = steps[0].level.device
        self.guidance = torch.tensor(guidance, dtype=torch.float64).to(device)
        levels = torch.stack([level for s in steps for level in (s.level, s.level_next)])
        # The last level is 0, where nothing is evaluated.
        levels = levels[:-1].to(torch.float32)
        self.c_in = 1 / (levels**2 + self.sigma_data**2).sqrt()
        self.modulations = {
            role: _modulations(net, levels, class_labels)
            for role, net in self.nets.items()
            if net is not None
        }
        self.outputs = []  # (role, tensor) of the step under way, in order of appearance

    def first(self, x, step):
        """Euler's step from `step.level` to `step.level_next`."""
        self.outputs.clear()
        raw, guide_raw = self._evaluate(x, 2 * step.index, step.guided)
        x_next, slope = ops.guided_heun_first(
            x, raw, guide_raw, step.level, step.level_next, self.guidance, self.sigma_data
        )
        self.outputs.append(("state", x_next))
        return x_next, slope

    def second(self, x, x_next, slope, step):
        """Heun's correction with the slope found at the end of Euler's step."""
        raw, guide_raw = self._evaluate(x_next, 2 * step.index + 1, step.guided_next)
        return ops.guided_heun_second(
            x, x_next, slope, raw, guide_raw, step.level, step.level_next, self.guidance,
            self.sigma_data,
        )  # fmt: skip

    def _evaluate(self, x, evaluation, guided):
        # Inference mode spares each operator the look for a gradient to record.
        with torch.inference_mode():
            x = (x.to(torch.float32) * self.c_in[evaluation]).contiguous(
                memory_format=torch.channels_last
            )
            for role in ("model", "guide") if guided else ("model",):
                modulations = [m[evaluation] for m in self.modulations[role]]
                self.outputs.append((role, self.nets[role].unet.run(x, modulations)))
        outputs = [output for _, output in self.outputs[-2 if guided else -1 :]]
        return outputs[0], outputs[1] if guided else None


def _modulations(net, levels, class_labels):
    """Return each block's modulations for all levels and images, `[levels, N or 1, channels]`."""
    if isinstance(net, Unlabelled):
        net, class_labels = net.net, None
    labels, rows = None, 1
    if net.label_dim:
        labels = class_labels
        if labels is None:
            labels = levels.new_zeros(1, net.label_dim)
        rows = len(labels)
        labels = labels.to(torch.float32).repeat(len(levels), 1)
    c_noise = (levels.log() / 4).repeat_interleave(rows)
    return [m.unflatten(0, (len(levels), rows)) for m in net.unet.modulations(c_noise, labels)]
