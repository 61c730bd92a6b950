"""Heun's method for the probability flow, written once, for any denoiser (EDM alg. 1 and 2).

`plan_steps` settles on the host all that a run's noise levels decide: where to churn, where the
guide runs. `heun` is the one loop; it asks a `Stepper` for the first and the second half of each
step. `EagerStepper` evaluates any callables; other steppers may run the same loop, and record it
as a CUDA graph: noise levels are device tensors and nothing is read back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import ops
from .guidance import Cond, Denoiser, Weight, bare, evaluated, guides_at, module_of, weight_at
from .networks import Precond
from .schedules import Churn


@dataclass(frozen=True)
class Step:
    """One step of the sampler, from `sigma` (raised to `sigma_hat`) down to `sigma_next`."""

    index: int
    num_steps: int
    sigma: float
    sigma_hat: float
    sigma_next: float
    churn_std: float  # of the noise that raises sigma to sigma_hat; 0 for none
    guided: bool  # the guide runs in the first half, at sigma_hat
    guided_next: bool  # the guide runs in the second half, at sigma_next
    level: Tensor  # sigma_hat, 0-dim float64 on the device
    level_next: Tensor  # sigma_next, likewise

    @property
    def is_last(self) -> bool:
        """The last step, to sigma = 0, has no second half."""
        return self.sigma_next == 0


def plan_steps(
    sigmas: Iterable[float] | Tensor,
    guidance: Weight = 1.0,
    interval: tuple[float, float] | None = None,
    churn: Churn | None = None,
    device: torch.device | str = "cpu",
) -> list[Step]:
    """The list of `Step` for the noise levels `sigmas` (float64 [num_steps + 1], last 0).

    `guidance` and `interval` decide where the guide runs, `churn` (a `schedules.Churn`)
    where noise is added.
    """
    churn = churn or Churn()
    sigmas = [float(s) for s in sigmas]
    num_steps = len(sigmas) - 1
    raised = [churn.raised(s, num_steps) for s in sigmas[:-1]]
    levels = [[hat, following] for (hat, _), following in zip(raised, sigmas[1:], strict=True)]
    levels = torch.tensor(levels, dtype=torch.float64, device="cpu").to(device)
    return [
        Step(
            index=i,
            num_steps=num_steps,
            sigma=sigmas[i],
            sigma_hat=sigma_hat,
            sigma_next=sigmas[i + 1],
            churn_std=churn_std,
            guided=guides_at(sigma_hat, weight_at(guidance, sigma_hat), interval),
            guided_next=guides_at(sigmas[i + 1], weight_at(guidance, sigmas[i + 1]), interval),
            level=levels[i, 0],
            level_next=levels[i, 1],
        )
        for i, (sigma_hat, churn_std) in enumerate(raised)
    ]


def step_weights(guidance: Weight, steps: Sequence[Step]) -> list[float]:
    """The guidance weights of both halves of each step, in order."""
    levels = [sigma for step in steps for sigma in (step.sigma_hat, step.sigma_next)]
    return [weight_at(guidance, sigma) for sigma in levels]


class Stepper(Protocol):
    """What takes the steps of one run, for a pair of nets, a guidance weight and labels.

    `heun` calls `first` for each step, in order, then `second` for each but the last; `sample` may
    call `whole` instead of `heun`, and begin anew with `heun` after it. The state is
    `[N, C, H, W]`, float32 or float64, of one shape, type and device during a run; so are all
    tensors that pass here. A stepper may keep what it returned and write to it again in the steps
    that follow: what `first` returns holds until the next `first`, what `second` returns until the
    next but one `second`, what the last step returns for good. It does not write to what it is
    given. One thread at a time calls it.

    Attributes:
        outputs: pairs of role ("model", "guide", "state") and tensor of the step under way, in the
            order in which they came to be, for whoever asks which of them became non-finite first:
            `first` empties it, then `first` and `second` add what the nets returned, and `first`
            the state after it. The last state is not in it. Of any floating type.
    """

    outputs: list[tuple[str, Tensor]]

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Euler's step from `x` at `step.level` to `step.level_next`.

        Returns:
            The state at `step.level_next`, and the slope dx/dsigma at `step.level`, both like `x`.
        """
        ...

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """Heun's correction of `x_next` by the slope found there; never called for the last step.

        `x` is what `first` was given for this step, `x_next` and `slope` what it returned.

        Returns:
            The corrected state at `step.level_next`, like `x`.
        """
        ...

    def whole(self, noise: Tensor, randn: Callable[[], Tensor] | None = None) -> Tensor | None:
        """The result of `heun(self, noise, steps, randn)`, where there is a faster way to it.

        None, without a call of `randn`, where it is not. `outputs` may be empty afterwards.
        """
        return None


def heun(
    stepper: Stepper,
    noise: Tensor,
    steps: Sequence[Step],
    randn: Callable[[], Tensor] | None = None,
    on_step: Callable[[Step, Tensor], None] | None = None,
) -> Tensor:
    """Integrate from pure noise to an image.

    Args:
        stepper: takes the two halves of each step.
        noise: `[N, C, H, W]` float32 or float64, standard normal; its type is that of the state.
        steps: from `plan_steps`, on the device of `noise`.
        randn: called for the churn noise, shaped and typed as `noise`; needed where a step has
            `churn_std > 0`.
        on_step: `on_step(step, x)` after each step, to look at the state: a stepper writes to `x`
            again in the steps that follow, so keep and change a copy.

    Returns:
        Tensor like `noise`. Differentiable where the stepper is; capturable in a CUDA graph unless
        `randn` or `on_step` is not.
    """
    x = noise * steps[0].sigma
    for step in steps:
        if step.churn_std:
            if randn is None:
                raise ValueError(
                    f"heun: randn must be given where noise is added, got None at step {step.index}"
                    "; pass what draws noise like the first, or steps without churn"
                )
            x = x + step.churn_std * randn()
        x_next, slope = stepper.first(x, step)
        if not step.is_last:
            x_next = stepper.second(x, x_next, slope, step)
        x = x_next
        if on_step is not None:
            on_step(step, x)
    return x


class EagerStepper(Stepper):
    """Evaluates model and guide as they are, then takes the fused half step.

    Autocast is left on for a callable that is not ours, whose author may count on it; a `Precond`
    is evaluated without.

    Args:
        model, guide: `guide` may be None where no step is guided. A module gets `x` and the 0-dim
            `sigma` in its own floating type, a bare callable in that of the state.
        guidance: the weight w, a number or a function of the noise level.
        class_labels: handed to both; None to a net whose `label_dim` is 0.
        device: where the state lives.
        cond: conditioning by role, handed on by its names, on the device.
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
        self.nets = {"model": model} | ({} if guide is None else {"guide": guide})
        self.cond = cond or {}
        self.labels = {
            role: None if getattr(net, "label_dim", None) == 0 else class_labels
            for role, net in self.nets.items()
        }
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
        denoised = self._output("model", x, sigma)
        return denoised, self._output("guide", x, sigma) if guided else None

    def _output(self, role: str, x: Tensor, sigma: Tensor) -> Tensor:
        output = self._output_of(role, x, sigma, self.labels[role], self.cond.get(role))
        self.outputs.append((role, output))
        return output

    def _output_of(
        self, role: str, x: Tensor, sigma: Tensor, labels: Tensor | None, cond: Cond | None
    ) -> Tensor:
        """What the net `role` returns, checked, in the type of `x`."""
        net = self.nets[role]
        dtype = input_dtype(net, x.dtype)
        if labels is not None and labels.is_floating_point():
            labels = labels.to(dtype)
        with _autocast_off(x.device) if isinstance(bare(net), Precond) else nullcontext():
            output = evaluated(net, x.to(dtype), sigma.to(dtype), labels, cond)
        _check_output(role, output, x)
        return output.as_subclass(torch.Tensor).to(x.dtype)


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
