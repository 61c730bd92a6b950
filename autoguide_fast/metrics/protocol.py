"""The protocol of an evaluation: what it depends on, and in what two of them differ."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

# What may differ between two evaluations whose figures can be compared: how long ago and where they
# were made, not what of.
HARMLESS = ("versions", "processor", "processes")


def versions() -> dict[str, str]:
    """Versions of the packages that figures are computed by."""
    import numpy
    import torch

    try:
        own = version("autoguide_fast")
    except PackageNotFoundError:
        own = "(not installed)"
    return {"autoguide_fast": own, "torch": torch.__version__, "numpy": numpy.__version__}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, with names such as `images.count`."""
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{name}.{key}" if name else str(key))
    return found


def differences(a: dict, b: dict) -> list[tuple[str, Any, Any, bool]]:
    """In what two protocols differ: name, value in each, and whether that may change figures.

    What one of them does not have is None there.
    """
    first, second = flat(a), flat(b)
    names = [*first, *(name for name in second if name not in first)]
    return [
        (name, first.get(name), second.get(name), name.split(".")[0] not in HARMLESS)
        for name in names
        if first.get(name) != second.get(name)
    ]
