"""Evaluates models and guides of any kind as they are, and takes the steps on what they say."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import ops
from .guidance import Cond, Denoiser, Weight, bare, evaluated, module_of, weight_at
from .networks import Precond
from .sampler import Step, Stepper
from .unet import Drop


class EagerNets:
    """A model and its guides, evaluated as they are; `guided_stepper.Nets` says what that means.

    Autocast is left on for a callable that is not ours, whose author may count on it; a `Precond`
    is evaluated without.

    Args:
        nets: by role. A module gets `x` and the 0-dim `sigma` in its own floating type, a bare
            callable in that of the state.
        cond: conditioning by role, handed on by its names, on the device.
    """

    sigma_data: float | None = None

    def __init__(
        self, nets: Mapping[str, Denoiser], cond: Mapping[str, Cond] | None = None
    ) -> None:
        self.nets, self.cond = nets, cond or {}

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
        """See `guided_stepper.Nets.outputs`."""
        return [
            self.output(role, x, sigma, class_labels, rows, embedding_noise, drop) for role in roles
        ]

    def labels_of(self, role: str, class_labels: Tensor | None) -> Tensor | None:
        """What a net is told: nothing where its `label_dim` is 0."""
        return None if getattr(self.nets[role], "label_dim", None) == 0 else class_labels

    def told(self, role: str, rows: Tensor | None) -> Cond | None:
        """The conditioning of the net `role` for some images of the batch."""
        cond = self.cond.get(role)
        if cond is None or rows is None:
            return cond
        return {name: value if len(value) == 1 else value[rows] for name, value in cond.items()}

    def output(
        self,
        role: str,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        rows: Tensor | None = None,
        embedding_noise: Tensor | None = None,
        drop: Drop | None = None,
    ) -> Tensor:
        """What the net `role` returns, checked, in the type of `x`."""
        labels, cond = self.labels_of(role, class_labels), self.told(role, rows)
        disturbing: dict[str, Any] = {"embedding_noise": embedding_noise, "drop": drop}
        disturbing = {name: value for name, value in disturbing.items() if value is not None}
        cond = {**(cond or {}), **disturbing} if disturbing else cond
        net = bare(self.nets[role])
        if not sigma.ndim or isinstance(net, Precond) or getattr(net, "takes_sigmas", False):
            return self.evaluated(role, x, sigma, labels, cond)
        # One by one: a denoiser need not know more than one level at a time.
        parts = [torch.empty_like(x[:0])]
        for i in range(len(x)):
            one = slice(i, i + 1)
            label = labels if labels is None or len(labels) == 1 else labels[one]
            own = {k: v if len(v) == 1 else v[one] for k, v in (cond or {}).items()}
            parts.append(self.evaluated(role, x[one], sigma[i], label, own))
        return torch.cat(parts)

    def evaluated(
        self, role: str, x: Tensor, sigma: Tensor, labels: Tensor | None, cond: Cond | None
    ) -> Tensor:
        """What the net `role` returns for these labels, checked, in the type of `x`."""
        net = self.nets[role]
        dtype = input_dtype(net, x.dtype)
        if labels is not None and labels.is_floating_point():
            labels = labels.to(dtype)
        with _autocast_off(x.device) if isinstance(bare(net), Precond) else nullcontext():
            output = evaluated(net, x.to(dtype), sigma.to(dtype), labels, cond)
        _check_output(role, output, x)
        return output.as_subclass(torch.Tensor).to(x.dtype)


class EagerStepper(Stepper):
    """Evaluates a model and one guide as they are, then takes the fused half step.

    Args:
        model, guide: `guide` may be None where no step is guided.
        guidance: the weight w, a number or a function of the noise level.
        class_labels: handed to both; None to a net whose `label_dim` is 0.
        device: where the state lives.
        cond: conditioning by role, as for `EagerNets`.
    """

    def __init__(
        self,
        model: Denoiser,
        guide: Denoiser | None = None,
        guidance: Weight = 1.0,
        class_labels: Tensor | None = None,
        device: torch.device | str = "cpu",
        cond: Mapping[str, Cond] | None = None,
    ) -> None:
        self.nets = EagerNets({"model": model} | ({} if guide is None else {"guide": guide}), cond)
        self.class_labels = class_labels
        self.guidance, self.device = guidance, device
        self._weights: dict[float, Tensor] = {}  # by noise level, on the device
        self.outputs = []

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See `Stepper.first`."""
        self.outputs.clear()
        denoised = self._evaluate(x, step.level, step.guided)
        x_next, slope = ops.guided_heun_first(
            x, *denoised, step.level, step.level_next, self._weight(step, False)
        )
        self.outputs.append(("state", x_next))
        return x_next, slope

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """See `Stepper.second`."""
        denoised = self._evaluate(x_next, step.level_next, step.guided_next)
        return ops.guided_heun_second(
            x, x_next, slope, *denoised, step.level, step.level_next, self._weight(step, True)
        )

    def _weight(self, step: Step, second: bool) -> Tensor:
        """The guidance weight of half a step, 0-dim float64 on the device."""
        sigma = step.sigma_next if second else step.sigma_hat
        key = sigma if callable(self.guidance) else 0.0
        if key not in self._weights:
            value = torch.tensor(weight_at(self.guidance, sigma), dtype=torch.float64, device="cpu")
            self._weights[key] = value.to(self.device)
        return self._weights[key]

    def _evaluate(self, x: Tensor, sigma: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        roles = ("model", "guide") if guided else ("model",)
        outputs = self.nets.outputs(x, sigma, self.class_labels, roles)
        self.outputs += zip(roles, outputs, strict=True)
        return (outputs[0], outputs[1]) if guided else (outputs[0], None)


def _autocast_off(device: torch.device) -> AbstractContextManager:
    return torch.autocast(device.type, enabled=False)


def input_dtype(net: Denoiser, state_dtype: torch.dtype) -> torch.dtype:
    """The floating type in which `net` is fed: a module's own, else that of the state.

    Float32 for a `Precond`, which casts for itself, and for modules of mixed or no types; what a
    module says in its attribute `input_dtype`, if it has one.
    """
    module = module_of(net)
    if module is None:
        return state_dtype
    if isinstance(said := getattr(module, "input_dtype", None), torch.dtype):
        return said
    own = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return own.pop() if len(own) == 1 and not isinstance(module, Precond) else torch.float32


def _check_output(role: str, output: object, x: Tensor) -> None:
    if not isinstance(output, torch.Tensor):
        raise TypeError(
            f"sample: {role} must return a tensor, got {type(output).__name__}; return the "
            "denoised images [N, C, H, W]"
        )
    dense = output.layout == torch.strided and output.is_floating_point()
    if output.shape != x.shape or not dense:
        kind = "" if output.layout == torch.strided else f"{output.layout} "
        raise ValueError(
            f"sample: {role} must return floating-point images {list(x.shape)} like its input, got "
            f"{kind}{output.dtype} {list(output.shape)}; return the denoised images themselves"
        )
    if output.device != x.device:
        raise ValueError(
            f"sample: {role} must return images on {x.device} like its input, got them on "
            f"{output.device}; move them back"
        )
