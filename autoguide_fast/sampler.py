"""Heun's method for the probability flow, written once, for any denoiser (EDM alg. 1 and 2).

`plan_steps` settles on the host all that a run's noise levels decide: where to churn, where the
guide runs. `heun` is the one loop; it asks a `Stepper` for the first and the second half of each
step. `eager.EagerStepper` evaluates any callables; other steppers may run the same loop, and record
it as a CUDA graph: noise levels are device tensors and nothing is read back.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .guidance import Weight, guides_at, weight_at
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
        outputs: pairs of role ("model", "guide" or what several are called, "state") and tensor of
            the step under way, in the order in which they came to be, for whoever asks which of
            them became non-finite first: `first` empties it, then `first` and `second` add what the
            nets returned, and `first`
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
    on_step: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Integrate from pure noise to an image.

    Args:
        stepper: takes the two halves of each step.
        noise: `[N, C, H, W]` float32 or float64, standard normal; its type is that of the state.
        steps: from `plan_steps`, on the device of `noise`.
        randn: called for the churn noise, shaped and typed as `noise`; needed where a step has
            `churn_std > 0`.
        on_step: `on_step(index, x)` after each step, to look at the state, and to go on with
            another: what it returns, unless that is None. A stepper writes to `x` again in the
            steps that follow, so keep and change a copy.

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
            changed = on_step(step.index, x)
            x = x if changed is None else changed
    return x
