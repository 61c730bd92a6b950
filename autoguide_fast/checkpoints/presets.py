"""The published presets: a model, its guide and a guidance weight under one name."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

# Millions of parameters by size.
PARAMETERS = {"xs": 125, "s": 280, "m": 498, "l": 777, "xl": 1119, "xxl": 1523}

_FILE = re.compile(r"edm2-(img\d+)-(\w+?)(-uncond)?-(\d+)-(0\.\d+)\.pkl")


@dataclass(frozen=True)
class Weights:
    """A published file of weights, by its name.

    Attributes:
        file: Its name.
        dataset: `img512` (latents of 64x64) or `img64` (pixels).
        size: `xs` to `xxl`.
        labels: Whether the net is told the class.
        images: Images that it was trained for.
        ema: Length of its average, relative to the training.
    """

    file: str
    dataset: str = field(init=False)
    size: str = field(init=False)
    labels: bool = field(init=False)
    images: int = field(init=False)
    ema: float = field(init=False)

    def __post_init__(self) -> None:
        parts = _FILE.fullmatch(self.file)
        assert parts is not None  # as of all that were published
        dataset, size, unlabelled, thousands, ema = parts.groups()
        for name, value in (
            ("dataset", dataset),
            ("size", size),
            ("labels", not unlabelled),
            ("images", int(thousands) * 1000),
            ("ema", float(ema)),
        ):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Preset:
    """What is sampled under a published name.

    Attributes:
        name: The name.
        net: The model.
        guide: What it is guided by, or None.
        guidance: The guidance weight; 1 without a guide.
        published: The published distances, by metric (`fid`, `fd_dinov2`).
    """

    name: str
    net: Weights
    guide: Weights | None
    guidance: float
    published: dict


@functools.cache
def _table() -> dict:
    path = Path(__file__).with_name("sampling_presets.json")
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets by name, in the order of the publications."""
    found = {}
    for name, entry in _table()["presets"].items():
        guide = entry.get("gnet")
        found[name] = Preset(
            name=name,
            net=Weights(entry["net"]),
            guide=None if guide is None else Weights(guide),
            guidance=float(entry.get("guidance", 1)),
            published=entry["published"],
        )
    return found


def preset(name: object) -> Preset | None:
    """The preset called `name`, or None."""
    return presets().get(name) if isinstance(name, str) else None


@functools.cache
def published_files() -> frozenset[str]:
    """Names of all files that the presets use."""
    pairs = ((each.net, each.guide) for each in presets().values())
    return frozenset(weights.file for pair in pairs for weights in pair if weights is not None)


def weights_root() -> str:
    """Address under which the files are published."""
    return _table()["weights_root"]


def licence() -> str:
    """The licence of the files."""
    return _table()["license_of_weights"]
