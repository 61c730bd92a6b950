"""Guidance weights that `diagnose` wrote down, for the nets that they were found for."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from .denoisers import module_of, unwrapped
from .weights import table

AUTO = "auto"  # the weights beside the model's file
ENDING = ".guidance.json"
_REMEDY = "diagnose this pair: autoguide-fast diagnose --model M --guide G --data DATA --out FILE"


@dataclass(frozen=True)
class SavedWeights:
    """Weights by noise level, one for each guide, and the nets that they are for.

    Attributes:
        name: where they come from.
        sigmas: noise levels.
        weights: at each of these levels, one for each guide.
        model, guides: fingerprints of the nets, None for callables without weights.
    """

    name: str
    sigmas: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    model: str | None
    guides: tuple[str | None, ...]

    def functions(self) -> list[Callable[[float], float]]:
        """The weight of each guide as a function of the noise level."""
        return [
            table(dict(zip(self.sigmas, weights, strict=True)))
            for weights in zip(*self.weights, strict=True)
        ]

    def check(self, model: object, guides: Sequence[object], caller: str = "sample") -> None:
        """Raise ValueError where model or guides are others than those that were diagnosed."""
        self.check_fingerprints(fingerprint(model), [fingerprint(g) for g in guides], caller)

    def check_fingerprints(
        self, model: str | None, guides: Sequence[str | None], caller: str = "sample"
    ) -> None:
        """`check` of nets of which there are only the fingerprints."""
        if len(guides) != len(self.guides):
            raise ValueError(
                f"{caller}: guide must be the {len(self.guides)} that guidance {self.name} is for, "
                f"got {len(guides)}; {_REMEDY}"
            )
        nets = [("model", model, self.model)]
        nets += [("guide", g, known) for g, known in zip(guides, self.guides, strict=True)]
        for role, found, known in nets:
            if found != known:
                raise ValueError(
                    f"{caller}: {role} must be the net that guidance {self.name} was found for, "
                    f"got another; {_REMEDY}"
                )

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, and `from_dict` takes; `digest` stands for all of it but the name."""
        values = {
            "sigmas": list(self.sigmas),
            "weights": [list(row) for row in self.weights],
            "nets": {"model": self.model, "guides": list(self.guides)},
        }
        digest = xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())
        return {"name": self.name, "digest": digest, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str) -> SavedWeights:
        """That of a dict with `sigmas`, `weights` and `nets`.

        Raises:
            ValueError, TypeError, KeyError: another dict.
        """
        nets = values["nets"]
        sigmas = tuple(float(s) for s in values["sigmas"])
        weights = tuple(tuple(float(w) for w in row) for row in values["weights"])
        guides = tuple(nets["guides"])
        numbers = [*sigmas, *(w for row in weights for w in row)]
        if not sigmas or not all(map(math.isfinite, numbers)) or min(sigmas) <= 0:
            raise ValueError("levels or weights that are no finite numbers")
        if (
            not guides
            or len(weights) != len(sigmas)
            or {len(row) for row in weights} != {len(guides)}
        ):
            raise ValueError("weights that do not fit its levels and guides")
        return cls(name, sigmas, weights, nets["model"], guides)


def saved_weights(path: str | os.PathLike, caller: str = "saved_weights") -> SavedWeights:
    """The weights in a file that `diagnose` wrote; of one guide, `saved_weights(p).functions()[0]`.

    Args:
        path: what `autoguide-fast diagnose --out` or `Diagnosis.save` wrote.
        caller: which messages name.

    Raises:
        ValueError: no such file, or one of another kind.
    """
    try:
        found = json.loads(Path(path).read_bytes())
        if not isinstance(found, dict) or not {"sigmas", "auto", "nets"} <= found.keys():
            raise ValueError("one of another kind")
        return SavedWeights.from_dict({**found, **found["auto"]}, os.fspath(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing = isinstance(error, FileNotFoundError)
        got = "none" if missing else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{caller}: guidance must be a number, 'auto' or a file that `autoguide-fast diagnose` "
            f"wrote, got {str(path)[-100:]!r} ({got}); {_REMEDY}"
        ) from None


def place_beside(file: str | os.PathLike) -> Path:
    """Where the weights of a model's file lie: beside it, `main.guidance.json`."""
    path = Path(file)
    return path.with_name(path.stem + ENDING)


def weights_of(
    guidance: str | os.PathLike, file: Path | None, caller: str = "sample"
) -> SavedWeights:
    """The weights that a text asks for: "auto" or the path of a file.

    Args:
        guidance: the text.
        file: of the model, None for one that came as an object.
        caller: which messages name.

    Raises:
        ValueError: they are not there.
    """
    if guidance != AUTO:
        return saved_weights(guidance, caller)
    if file is None:
        raise ValueError(
            f"{caller}: guidance must be a number, or the path of a file that `autoguide-fast "
            "diagnose` wrote, for a model that is no name or path, got 'auto'; pass the path"
        )
    place = place_beside(file)
    if not place.is_file():
        raise ValueError(
            f"{caller}: guidance must be a number for a model without {place.name} beside it, got "
            "'auto'; make that file with autoguide-fast diagnose --model M --guide G --data DATA "
            "--save"
        )
    return saved_weights(place, caller)


def fingerprint(net: object) -> str | None:
    """128 bits of what a net is: its weights by their names, its options, whether it is unlabelled.

    The same wherever it lies and however it was loaded; None for a callable that is no module.
    """
    module = module_of(net)
    if module is None:
        return None
    config = getattr(module, "config", None)
    about = [type(module).__name__, unwrapped(net)[1], config if isinstance(config, dict) else None]
    total = xxhash.xxh3_128(json.dumps(about, sort_keys=True, default=str).encode())
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            if not isinstance(value, torch.Tensor):
                continue
            total.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            total.update(_bytes(value.detach().cpu()))
    return total.hexdigest()


def _bytes(value: torch.Tensor) -> memoryview | bytes:
    try:
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().data
    except (RuntimeError, TypeError):  # sparse, quantised, of a class of its own: no plain array
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()
