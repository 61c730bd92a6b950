"""What the engines for a CPU and for a GPU have in common, and what they owe whoever runs them."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._extension import build_info
from ..guidance import Cond, Denoiser, Disturbance, Weight, bare, guide_roles, undisturbed_net
from ..guided_stepper import Nets
from ..sampler import Step, Stepper
from .prepared import device_of, unsupported_reason
from .profile import Profile

Kind = TypeVar("Kind", bound="BaseEngine")


class BaseEngine(abc.ABC):
    """A model and its guide, made ready to run on one device.

    `sample` takes any of these in the place of a model: it reads `model`, `guide` and `device`, and
    runs the steppers that `stepper` makes.

    Attributes:
        model, guides: the prepared denoisers, `(x, sigma, class_labels) -> D`.
        dtype: what it multiplies.
        device: where it runs.
        takes_cond: whether its nets may be told more than labels (`sample`'s `cond`).
        disturbances: of the nets whose inputs are changed (`guidance.disturbed`), by role.
        fingerprints: of model and guides that it was made of (`guidance.fingerprint`), by which
            weights that `diagnose` wrote know them.
    """

    takes_cond = False
    disturbances: Mapping[str, Disturbance] = MappingProxyType({})
    fingerprints: tuple[str | None, ...] = (None,)

    model: Denoiser
    guides: tuple[Denoiser, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def guide(self) -> Denoiser | None:
        """The first of the guides, or None."""
        return self.guides[0] if self.guides else None

    @property
    def by_role(self) -> dict[str, Denoiser]:
        """Model and guides by their roles."""
        return {"model": self.model} | dict(
            zip(guide_roles(len(self.guides)), self.guides, strict=True)
        )

    @abc.abstractmethod
    def stepper(
        self,
        guidance: Weight,
        class_labels: Tensor | None,
        steps: Sequence[Step],
        cond: Mapping[str, Cond] | None = None,
    ) -> Stepper:
        """A `sampler.Stepper` of this pair, of a model with one guide or none.

        Args:
            guidance: the weight w, a number or a function of the noise level.
            class_labels: `[N or 1, label_dim]`, or None.
            steps: those that will be run.
            cond: conditioning of each net by its role, where `takes_cond`.
        """

    @abc.abstractmethod
    def nets(
        self, class_labels: Tensor | None, sigmas: Sequence[float], cond: Mapping[str, Cond] | None
    ) -> Nets:
        """Model and guides for a `guided_stepper.GuidedStepper`, by the roles of `by_role`.

        Args:
            class_labels: `[N or 1, label_dim]`, or None: those that most evaluations will have.
            sigmas: noise levels at which most evaluations will be.
            cond: conditioning of each net by its role, where `takes_cond`.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the memory that running takes, not that of the weights; it may run again."""

    @abc.abstractmethod
    def peak_memory(self, batch: int, threads: int | None = None) -> int:
        """Bytes that sampling `batch` images takes."""

    @abc.abstractmethod
    def profile(self, batch: int = 1, repeats: int = 20) -> Profile:
        """Measure where the time of an evaluation goes, net by net; returns a `Profile`."""

    def info(self) -> str:
        """What the engine runs, and why, as lines for people."""
        nets = ", ".join(self.by_role)
        return f"{nets}: {str(self.dtype).removeprefix('torch.')} on {self.device}"

    def __enter__(self: Kind) -> Kind:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # What is packed, not the nets, which are not kept.
        return _restored, (type(self), build_info()["version"], self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return vars(self).copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _restored(kind: type[Kind], version: str, state: dict[str, Any]) -> Kind:
    """The engine with this state: what copies and pickles are made with."""
    if version != build_info()["version"]:
        raise ValueError(
            f"Engine: pickles must be of autoguide_fast {build_info()['version']}, got one of "
            f"{version}, whose packed weights may differ; pickle the networks, and make it anew"
        )
    engine = object.__new__(kind)
    engine.__setstate__(state)
    return engine


Guides = Denoiser | Sequence[Denoiser] | None  # what engines take for `guide`


def guide_list(guide: Guides) -> list[Denoiser]:
    """The guides in what engines take for `guide`: none, one, or several."""
    if guide is None:
        return []
    return list(guide) if isinstance(guide, (list, tuple)) else [guide]  # type: ignore[list-item]


def undisturbed_nets(
    model: Denoiser, guides: Sequence[Denoiser]
) -> tuple[Denoiser, list[Denoiser], dict[str, Disturbance]]:
    """Model and guides as they are, and what `guidance.disturbed` put around them, by role."""
    found: dict[str, Disturbance] = {}
    nets: list[Denoiser] = []
    for role, net in zip(["model", *guide_roles(len(guides))], [model, *guides], strict=True):
        plain, disturbance = undisturbed_net(net)
        nets.append(plain)
        if disturbance is not None:
            found[role] = disturbance
    return nets[0], nets[1:], found


def dtype_list(
    dtype: torch.dtype | str | Sequence[torch.dtype | str], guides: int
) -> list[torch.dtype | str]:
    """The type of the model, then those of the guides: one for all, or one for each."""
    if not isinstance(dtype, (list, tuple)):
        return [dtype] * (1 + guides)  # type: ignore[list-item]
    if len(dtype) != 1 + guides:
        raise ValueError(
            f"Engine: dtype must be one type, or one for the model and each of {guides} guides, "
            f"got {len(dtype)} of them; give each net one"
        )
    return list(dtype)


def check_nets(model: Denoiser, guides: Sequence[Denoiser]) -> None:
    """Raise ValueError where an engine cannot be made of these."""
    if reason := unsupported_reason_of(model, guides):
        raise ValueError(f"Engine: {reason}")


def unsupported_reason_of(
    model: Denoiser,
    guides: Sequence[Denoiser],
    disturbances: Mapping[str, Disturbance] = MappingProxyType({}),
) -> str | None:
    """Why no engine can be made of these, as the rest of a message; None where one can.

    `disturbances` are those of the nets, by role.
    """
    roles = guide_roles(len(guides))
    for role in ("model", *roles):
        if role in disturbances and (dropout := disturbances[role].dropout):
            return f"{role} must be without dropout, got {dropout:g}; sample evaluates it as it is"
    for role, net in (("model", model), *zip(roles, guides, strict=True)):
        if reason := unsupported_reason(net):
            return f"{role} must be a plain float32 Precond, got {reason}"
    for role, guide in zip(roles, guides, strict=True):
        ours, theirs = bare(model).sigma_data, bare(guide).sigma_data
        if ours != theirs:
            return (
                f"{role} must have the model's sigma_data {ours:g}, got {theirs:g}; the fused step "
                "preconditions both alike"
            )
        if device_of(guide) != device_of(model):
            return (
                f"{role} must be on the model's device {device_of(model)}, got one on "
                f"{device_of(guide)}; move it with .to()"
            )
    return None
