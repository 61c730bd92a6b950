"""Kinds of guidance and guides of the model's own weights by name, as a command line has them."""

from __future__ import annotations

import inspect
from typing import Any, TypeGuard

from .apg import APG
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero import CFGZero
from .damping import MagnitudeAware
from .denoisers import Denoiser
from .disturbed import disturbed
from .feedback import Feedback
from .frequency import FrequencyDecoupled
from .intermediate_head import intermediate_head
from .kind import OneGuide
from .rescaled import Rescaled
from .tangential import Tangential
from .weakened import weakened

KINDS: dict[str, type[OneGuide]] = {
    "apg": APG,
    "cfg_plus_plus": CFGPlusPlus,
    "cfg_zero": CFGZero,
    "feedback": Feedback,
    "frequency": FrequencyDecoupled,
    "magnitude_aware": MagnitudeAware,
    "rescaled": Rescaled,
    "tangential": Tangential,
}


_SELF = "self:"


def is_of_model(net: object) -> TypeGuard[str]:
    """Whether `net` is text that `guide_of_model` understands."""
    return isinstance(net, str) and net.startswith(_SELF)


def guide_of_model(text: str, model: Denoiser) -> Denoiser:
    """The guide from the model's own weights that `text` says, as their functions do.

    Args:
        text: "self:" and options with commas between them: `left_out=BLOCK+BLOCK`,
            `attn_temperature=X`, `head`, `input_noise=X`, `embedding_noise=X`, `dropout=X`,
            `random_labels`; such as "self:attn_temperature=0,input_noise=0.1". `head` is
            `intermediate_head`.
        model: whose weights it has.

    Raises:
        TypeError, ValueError: other options, or what this model does not have.
    """
    weak: dict[str, Any] = {}
    told: dict[str, Any] = {}
    head = False
    for part in text.removeprefix(_SELF).split(","):
        option, _, value = part.partition("=")
        try:
            if option == "left_out":
                weak[option] = [name for name in value.split("+") if name]
            elif option == "head" and not value:
                head = True
            elif option == "random_labels" and not value:
                told[option] = True
            elif option in ("input_noise", "embedding_noise", "dropout"):
                told[option] = float(value)
            elif option == "attn_temperature":
                weak[option] = float(value)
            else:
                raise ValueError
        except ValueError:
            raise ValueError(
                "guide self must have left_out=BLOCK+BLOCK, attn_temperature=X, head, "
                f"input_noise=X, embedding_noise=X, dropout=X or random_labels, got {part!r}; put "
                "commas between them"
            ) from None
    guide: Any = weakened(model, **weak) if weak else model  # type: ignore[arg-type]
    guide = intermediate_head(guide) if head else guide
    return disturbed(guide, **told) if told else guide


def named_kind(
    text: str, weight: float | None = None, interval: tuple[float, float] | None = None
) -> OneGuide:
    """The kind that `text` names, such as "apg" or "apg:eta=0.2,momentum=-0.5".

    Args:
        text: one of `KINDS`, and after a colon numbers for its options, with commas between them.
        weight: its weight; None for the kind's own default, and for `feedback`, which has none.
        interval: as for `OneGuide`.

    Raises:
        ValueError: another name, or an option that the kind does not have.
    """
    name, _, rest = text.partition(":")
    if name not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {name!r}; see their papers")
    kind = KINDS[name]
    known = [p for p in inspect.signature(kind).parameters if p not in ("weight", "interval")]
    options: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        option, _, value = part.partition("=")
        try:
            if option not in known:
                raise ValueError
            options[option] = float(value)
        except ValueError:
            choices = ", ".join(f"{option}=NUMBER" for option in known) or "no options"
            raise ValueError(f"kind {name} must have {choices}, got {part!r}") from None
    if weight is not None and kind is not Feedback:
        options["weight"] = weight
    return kind(interval=interval, **options)
