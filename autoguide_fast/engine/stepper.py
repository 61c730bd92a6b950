"""The engine's stepper: prepared nets through the fused guided step."""

import torch

from .. import ops


class EngineStepper:
    """Runs prepared nets and the fused half steps; a stepper for `sampler.heun`.

    Args:
        model, guide (PreparedNet): `guide` may be None where no step is guided.
        guidance (float): The weight w.
        class_labels (Tensor [N or 1, label_dim] or None)
        steps (list of sampler.Step): The steps that will be run; their modulations are computed
            here, all at once.
    """

    def __init__(self, model, guide, guidance, class_labels, steps):
        self.nets = {"model": model}
        if any(s.guided or s.guided_next for s in steps):
            self.nets["guide"] = guide
        self.sigma_data = model.sigma_data
        self.guidance = torch.tensor(guidance, dtype=torch.float64)
        levels = torch.stack([level for s in steps for level in (s.level, s.level_next)])
        # The last level is 0, where nothing is evaluated.
        levels = levels[:-1].to(torch.float32)
        self.c_in = (1 / (levels**2 + self.sigma_data**2).sqrt()).tolist()
        with torch.inference_mode():
            self.modulations = {
                role: net.modulations(levels, class_labels).unbind(0)
                for role, net in self.nets.items()
            }
        self.results = {}  # (role, half): the nets' outputs, written again at every step
        self.outputs = []  # (role, tensor) of the step under way, in order of appearance

    def first(self, x, step):
        """Euler's step from `step.level` to `step.level_next`."""
        self.outputs.clear()
        raw, guide_raw = self._evaluate(x, step.index, 0, step.guided)
        x_next, slope = ops.guided_heun_first(
            x, raw, guide_raw, step.level, step.level_next, self.guidance, self.sigma_data
        )
        self.outputs.append(("state", x_next))
        return x_next, slope

    def second(self, x, x_next, slope, step):
        """Heun's correction with the slope found at the end of Euler's step."""
        raw, guide_raw = self._evaluate(x_next, step.index, 1, step.guided_next)
        return ops.guided_heun_second(
            x, x_next, slope, raw, guide_raw, step.level, step.level_next, self.guidance,
            self.sigma_data,
        )  # fmt: skip

    def _evaluate(self, x, index, half, guided):
        evaluation, raws = 2 * index + half, []
        for role in ("model", "guide") if guided else ("model",):
            if (role, half) not in self.results:
                self.results[role, half] = torch.empty(x.shape, dtype=torch.float32)
            raw = self.results[role, half]
            modulations = self.modulations[role][evaluation]
            self.nets[role].evaluate(x, self.c_in[evaluation], modulations, raw)
            self.outputs.append((role, raw))
            raws.append(raw)
        return raws[0], raws[1] if guided else None
