"""Prepared nets on the CPU, evaluated one by one for any kind of guidance and any sampler."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..guidance import Cond, told_guidance
from ..preconditioning import c_in
from ..unet import Drop
from .prepared import PreparedNet, check_call


class CpuNets:
    """Prepared nets of one batch; `guided_stepper.Nets` says what that means.

    Args:
        nets: by role, all of one `sigma_data`.
        class_labels: `[N or 1, label_dim]`, or None: those of most evaluations.
        sigmas: noise levels of most evaluations, whose modulations are computed here all at once.
        cond: by role, the guidance weights of a net that takes them as an input.
        joint: of guides that begin as the model does, the plan of both, by role.
    """

    def __init__(
        self,
        nets: Mapping[str, PreparedNet],
        class_labels: Tensor | None,
        sigmas: Sequence[float],
        cond: Mapping[str, Cond] | None = None,
        joint: Mapping[str, PreparedNet] | None = None,
    ) -> None:
        self.nets, self.class_labels, self.joint = nets, class_labels, joint or {}
        self._guidance = {role: told_guidance(cond, role) for role in nets}
        self.sigma_data: float | None = nets["model"].sigma_data
        self._levels = [sigma for sigma in dict.fromkeys(sigmas) if sigma > 0]
        self._modulations: dict[str, dict[float, Tensor]] = {}
        self._results: dict[tuple[str, ...], Tensor] = {}

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
        """See `guided_stepper.Nets.outputs`; float32, and still to be preconditioned."""
        check_call(x)
        assert drop is None  # refused when the engine is made
        assert self.sigma_data is not None
        scales = c_in(sigma.to(torch.float32), self.sigma_data)
        scale = 1.0 if sigma.ndim else scales.item()
        if sigma.ndim:
            x = x * scales.view(-1, *[1] * (x.ndim - 1))
        outputs: dict[str, Tensor] = {}
        twin = next((role for role in roles if role in self.joint), "") if "model" in roles else ""
        for role in roles:
            if role in outputs:
                continue
            both = (role, twin) if role == "model" and twin else (role,)
            net = self.joint[twin] if len(both) > 1 else self.nets[role]
            shape = x.shape if len(both) == 1 else (2, *x.shape)
            result = self._results.get(both)
            if result is None or result.shape != shape:
                result = torch.empty(shape, dtype=torch.float32, device="cpu")
                self._results[both] = result
            told = self._modulation(role, sigma, class_labels, rows, embedding_noise)
            net.evaluate(x, scale, told, result)
            outputs |= zip(both, [result] if len(both) == 1 else result, strict=True)
        return [outputs[role] for role in roles]

    def _modulation(
        self,
        role: str,
        sigma: Tensor,
        class_labels: Tensor | None,
        rows: Tensor | None,
        embedding_noise: Tensor | None,
    ) -> Tensor:
        """The modulations of one level, or of one for each image, `[N or 1, modulations]`."""
        net, guidance = self.nets[role], self._guidance[role]
        if guidance is not None and rows is not None and len(guidance) > 1:
            guidance = guidance[rows]
        if sigma.ndim or embedding_noise is not None:
            levels = sigma.reshape(-1)
            return net.modulations_of_images(levels, class_labels, embedding_noise, guidance)
        level = sigma.item()
        if class_labels is self.class_labels and rows is None:
            if role not in self._modulations:
                levels = torch.tensor(self._levels, dtype=torch.float32, device="cpu")
                rows = net.modulations(levels, class_labels, self._guidance[role])
                self._modulations[role] = dict(zip(self._levels, rows, strict=True))
            if level in self._modulations[role]:
                return self._modulations[role][level]
        levels = torch.tensor([level], dtype=torch.float32, device="cpu")
        return net.modulations(levels, class_labels, guidance)[0]
