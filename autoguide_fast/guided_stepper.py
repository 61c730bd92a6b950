"""Steps along what any kind of guidance makes of any nets, and what samplers call: the denoiser."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from . import ops
from .guidance import Evaluation, Guidance
from .guidance.combination import Basis, Combination, Images, PerImage, as_tensor
from .guidance.disturbed import Disturbing
from .preconditioning import c_skip_and_c_out
from .sampler import Step, Stepper
from .unet import Drop


class Nets(Protocol):
    """The nets of one pair, or of a model and several guides, as `GuidedStepper` evaluates them.

    Attributes:
        sigma_data: of the preconditioning that what they return still needs; None: D itself.
    """

    sigma_data: float | None

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
        """What the nets `roles` return at `x [N, ...]`, float64 `sigma` on its device.

        Args:
            x, class_labels: of the images that are evaluated.
            sigma: one level, 0-dim, or one for each image, `[N]`.
            roles: which nets.
            rows: which images of the batch these are, int64 `[N]`; None: all of them.
            embedding_noise, drop: as for `Precond`.

        Returns:
            Tensors of the shape of `x`, of any floating type; they hold until the next call.
        """
        ...


class GuidedStepper(Stepper):
    """Any nets under any `Guidance`; the fused steppers serve one guide and one weight alone.

    Args:
        nets: what is evaluated.
        roles: "model", then those of the guides.
        guidance: which has begun with this batch.
        class_labels: `[N or 1, label_dim]`, or None.
        sigmas: the noise levels of the schedule, the last 0.
        device: where the state lives.
        known: what is known of the images, and where: batches `[N, ...]` and a mask `[N or 1, ...]`
            that is 1 where images are sampled and 0 where they are known. None: nothing.
        disturbing: what changes the inputs of some of the nets, by role.
    """

    def __init__(
        self,
        nets: Nets,
        roles: Sequence[str],
        guidance: Guidance,
        class_labels: Tensor | None,
        sigmas: Sequence[float],
        device: torch.device,
        known: tuple[Tensor, Tensor] | None = None,
        disturbing: Mapping[str, Disturbing] | None = None,
    ) -> None:
        self.nets, self.roles, self.guidance = nets, tuple(roles), guidance
        self.class_labels, self.sigmas, self.device = class_labels, tuple(sigmas), device
        self.known, self.disturbing = known, disturbing or {}
        self._one = torch.ones([], dtype=torch.float64, device=device)
        self.outputs = []

    def denoised(self, x: Tensor, at: Evaluation) -> Tensor:
        """The guided denoised images at `x [N, ...]` and `at`, like `x`; nobody else holds them."""
        if not at.levels:
            return self._denoised(x, at, self.guidance.runs(at))
        groups: dict[tuple[bool, ...], list[int]] = {}  # images by which guides run
        for image in range(len(x)):
            runs = tuple(self.guidance.runs(at.of_one(image)))
            groups.setdefault(runs, []).append(image)
        if len(groups) == 1:
            return self._denoised(x, at, next(iter(groups)))
        result = torch.empty_like(x)
        for runs, images in groups.items():
            result[images] = self._denoised(x[images], at.of(images), runs)
        return result

    def _denoised(self, x: Tensor, at: Evaluation, runs: Sequence[bool]) -> Tensor:
        roles = ["model", *(role for role, on in zip(self.roles[1:], runs, strict=True) if on)]
        labels = self.guidance.class_labels(_part(self.class_labels, at.rows), at)
        level = at.level.flatten() if at.levels else at.level
        plain = [role for role in roles if role not in self.disturbing]
        outputs = self.nets.outputs(x, level, labels, plain, at.rows) if plain else []
        basis = Basis(x, *(output.to(x.dtype) for output in outputs))
        state = basis.image({0: 1.0})
        own = self._preconditioning(at)
        images = {role: self._image(basis, 0, i + 1, own) for i, role in enumerate(plain)}
        self.outputs += zip(plain, outputs, strict=True)
        for role in roles:
            if role in self.disturbing:
                images[role] = self._disturbed(role, basis, at, labels)
        found: Images = images["model"]
        if any(runs) or self.guidance.always:
            guides = [images.get(role) for role in self.roles[1:]]
            found = self.guidance.combine(images["model"], guides, state, at)
        result = as_tensor(found)
        self._check(result, x)
        if self.known is not None:
            given, mask = (_part(value, at.rows) for value in self.known)
            result = torch.lerp(given, result, mask)
        return result

    def _disturbed(
        self, role: str, basis: Basis, at: Evaluation, labels: Tensor | None
    ) -> Combination:
        """What a net says that is given other inputs, as a combination; adds terms for it."""
        given = self.disturbing[role].inputs(basis.terms[0], at, labels)
        held = [basis.terms[i].clone() for i in range(1, len(basis.terms))]
        (output,) = self.nets.outputs(
            given.x,
            given.level,
            given.class_labels,
            [role],
            None,
            given.embedding_noise,
            given.drop,
        )
        basis.terms[1:] = held
        self.outputs.append((role, output))
        basis.terms += [given.x, output.to(given.x.dtype)]
        last = len(basis.terms) - 1
        place = replace(at, sigma=given.sigma, level=given.level)
        return self._image(basis, last - 1, last, self._preconditioning(place))

    def _preconditioning(self, at: Evaluation) -> tuple[PerImage, PerImage] | None:
        """c_skip and c_out, for nets whose outputs need them."""
        if self.nets.sigma_data is None:
            return None
        if at.levels:
            return c_skip_and_c_out(at.level, self.nets.sigma_data)
        return _c_skip_and_c_out(at.sigma, self.nets.sigma_data)

    def _image(
        self, basis: Basis, x: int, output: int, own: tuple[PerImage, PerImage] | None
    ) -> Combination:
        """What a net says, as a combination of the terms that it was given and returned."""
        return basis.image({output: 1.0} if own is None else {x: own[0], output: own[1]})

    def _check(self, result: object, x: Tensor) -> None:
        if not isinstance(result, Tensor) or (result.shape, result.dtype) != (x.shape, x.dtype):
            kind = type(result).__name__
            if isinstance(result, Tensor):
                kind = f"{result.dtype} {list(result.shape)}"
            raise ValueError(
                f"sample: guidance must combine to images {x.dtype} {list(x.shape)} like the "
                f"state, got {kind} from {type(self.guidance).__name__}"
            )

    def first(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """See `Stepper.first`."""
        self.outputs.clear()
        at = self.evaluation(step.index, step.sigma_hat, step.level, False)
        denoised = self.denoised(x, at)
        x_next, slope = ops.guided_heun_first(
            x, denoised, None, step.level, step.level_next, self._one
        )
        self.outputs.append(("state", x_next))
        return x_next, slope

    def second(self, x: Tensor, x_next: Tensor, slope: Tensor, step: Step) -> Tensor:
        """See `Stepper.second`."""
        at = self.evaluation(step.index, step.sigma_next, step.level_next, True)
        return ops.guided_heun_second(
            x,
            x_next,
            slope,
            self.denoised(x_next, at),
            None,
            step.level,
            step.level_next,
            self._one,
        )

    def evaluation(self, index: int, sigma: float, level: Tensor, correction: bool) -> Evaluation:
        """Where the nets are evaluated: within the step `index`, at the noise level `sigma`."""
        following = next((s for s in self.sigmas[index + 1 :] if s < sigma), 0.0)
        return Evaluation(sigma, level, index, len(self.sigmas) - 1, following, correction)


def _part(value: Tensor | None, rows: Tensor | None) -> Any:
    """The rows of `value` `[N or 1, ...]`."""
    return value if value is None or rows is None or len(value) == 1 else value[rows]


@functools.lru_cache(1 << 12)
def _c_skip_and_c_out(sigma: float, sigma_data: float) -> tuple[float, float]:
    level = torch.tensor(sigma, dtype=torch.float64, device="cpu")
    c_skip, c_out = c_skip_and_c_out(level, sigma_data)
    return c_skip.item(), c_out.item()


class Denoise:
    """The guided denoiser of one batch, as a sampler calls it: `denoise(x, sigma) -> D`.

    Args:
        stepper: evaluates.
        randn: draws noise like the state; None where there are no seeds to draw it from.
        on_step: called after each step with its index and the state.

    Attributes:
        evaluations: of the model so far, for each image: int64 `[N]`, once there was one.
        levels: that the images have reached, float64 `[N]`, where a sampler has said so.
    """

    def __init__(
        self,
        stepper: GuidedStepper,
        randn: Callable[[], Tensor] | None,
        on_step: Callable[[int, Tensor], Tensor | None] | None,
    ) -> None:
        self._stepper, self._randn, self.on_step = stepper, randn, on_step
        self._steps, self._evaluations = 0, 0  # done; of the step under way
        self.evaluations = torch.zeros(0, dtype=torch.int64, device="cpu")
        self.levels: Tensor | None = None

    def __call__(self, x: Tensor, sigma: float | Tensor, rows: Tensor | None = None) -> Tensor:
        """The guided denoised images at the state `x [n, ...]` and its noise levels.

        Args:
            x: the state; it is only read.
            sigma: one level, a number, or a tensor that holds it once or one for each image.
            rows: which images of the batch these are, int64 `[n]` on the CPU; None: all.

        Returns:
            D, like `x`, which the sampler may keep and write to.
        """
        levels = sigma.flatten().tolist() if isinstance(sigma, Tensor) else [float(sigma)]
        wrong = [level for level in levels if not 0 < level < math.inf]
        if wrong:
            raise ValueError(
                f"sample: sampler must evaluate at noise levels above 0, got {wrong[0]:g}; at the "
                "end, return what the last evaluation gave"
            )
        if len(levels) not in (1, len(x)):
            raise ValueError(
                f"sample: sampler must evaluate at one noise level, or at one for each of {len(x)} "
                f"images, got {len(levels)}; pass as many"
            )
        stepper, guidance = self._stepper, self._stepper.guidance
        if (rows is not None or len(set(levels)) > 1) and not guidance.levels_may_differ:
            raise ValueError(
                "sample: guidance must not follow the steps where each image has its own, as in "
                f"adaptive_heun, got {type(guidance).__name__}; take another kind or sampler, or "
                "set levels_may_differ of a kind that remembers nothing"
            )
        if (rows is not None or len(set(levels)) > 1) and stepper.disturbing:
            raise ValueError(
                "sample: sampler must have one step for all images for disturbed nets, whose noise "
                "is of a step, got one in which each image has its own; take another"
            )
        if not self._evaluations:
            stepper.outputs.clear()
        if not len(self.evaluations):
            self.evaluations = self.evaluations.new_zeros(len(x))
        self.evaluations[slice(None) if rows is None else rows] += 1
        index = min(self._steps, len(stepper.sigmas) - 2)
        if len(set(levels)) == 1:
            levels = levels[:1]
        level = torch.tensor(levels, dtype=torch.float64, device="cpu").to(stepper.device)
        place = None if rows is None else rows.to(stepper.device)
        if len(levels) == 1:
            at = stepper.evaluation(index, levels[0], level[0], self._evaluations > 0)
            at = replace(at, rows=place)
        else:
            level = level.view(-1, *[1] * (x.ndim - 1))
            steps, later = len(stepper.sigmas) - 1, self._evaluations > 0
            none = math.nan
            at = Evaluation(none, level, index, steps, none, later, tuple(levels), place)
        self._evaluations += 1
        return stepper.denoised(x, at)

    def randn(self) -> Tensor:
        """Fresh standard normal noise like the state, each image's from its own seed."""
        if self._randn is None:
            raise ValueError(
                "sample: seeds must be given beside noise for a sampler that adds noise, got None; "
                "pass one seed per image"
            )
        return self._randn()

    def after_step(self, x: Tensor, levels: Tensor | None = None) -> Tensor:
        """To be called with the state after each step; returns the one to go on with.

        `levels` are those that the images have reached, float64 `[N]`, of a sampler whose steps are
        not those of the schedule.
        """
        index, self._steps, self._evaluations = self._steps, self._steps + 1, 0
        self.levels = levels
        if self.on_step is None:
            return x
        if levels is None and index >= len(self._stepper.sigmas) - 1:
            return x
        self._stepper.outputs.append(("state", x))
        changed = self.on_step(index, x)
        return x if changed is None else changed

    def finish(self, x: Tensor) -> None:
        """For samplers that never call `after_step`: report the end."""
        if not self._steps:
            self._steps = len(self._stepper.sigmas) - 2
            self.after_step(x)
