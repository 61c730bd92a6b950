"""Kinds of guidance by name and options, as a command line gives them."""

from __future__ import annotations

import inspect

from .apg import APG
from .cfg_plus_plus import CFGPlusPlus
from .cfg_zero import CFGZero
from .damping import MagnitudeAware
from .feedback import Feedback
from .frequency import FrequencyDecoupled
from .kind import OneGuide
from .rescaled import Rescaled
from .tangential import Tangential

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
