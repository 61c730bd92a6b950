"""What a report consists of: sections of tables and figures, as the page's template shows them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers.

    caption: what it shows. folded: whether it opens at a click only.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A picture inside the page.

    source: a data URI. alt: for who cannot see it. caption: below it.
    """

    source: str
    alt: str
    caption: str
    kind: str = "figure"


@dataclass(frozen=True)
class Charts:
    """Figures side by side, as many as fit."""

    figures: Sequence[Figure]
    kind: str = "charts"


@dataclass(frozen=True)
class Text:
    """A paragraph, or a command to copy."""

    text: str
    code: bool = False
    kind: str = "text"


@dataclass
class Section:
    """What one input becomes."""

    title: str
    source: str
    blocks: list[Table | Figure | Charts | Text] = field(default_factory=list)


def picture(image: Image.Image, alt: str, caption: str) -> Figure:
    """A figure of a `PIL.Image`."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return Figure(data_uri(data.getvalue(), "image/png"), alt, caption)


def data_uri(data: bytes, kind: str) -> str:
    """An address that holds the data themselves."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shown(value: Any) -> str:
    """A value of a JSON file in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(each) for each in value)
    return str(value)


def flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Names and values of a JSON object; those of objects in it, also in lists, have both names."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        name = f"{before}{name}"
        if isinstance(value, dict) and value:
            rows += flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for i, each in enumerate(value):
                rows += flat(each, f"{name}.{i}." if len(value) > 1 else f"{name}.")
        else:
            rows.append((name, shown(value)))
    return rows
