"""Presets in files: nets and how they are guided, as `autoguide-fast tune` found them.

A JSON object with `preset`: "autoguide_fast", `version`: 1, `model` and `guide` (paths, relative to
the file; `guide` may be null), `guidance`, `interval` (two numbers or null), `kind` (of
`guidance.KINDS`, or null), `steps`, and whatever else its writer has to say.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

MARK, VERSION = "autoguide_fast", 1


def write_preset(path: Path, nets: dict[str, Path | None], options: dict[str, Any]) -> None:
    """Writes a preset.

    Args:
        path: the file.
        nets: files of "model" and "guide"; those in the folder of `path` are named relative to it.
        options: the rest of what stands there.
    """
    from ..files import write_atomically

    named = {
        role: None if net is None else os.path.relpath(net, path.parent)
        for role, net in nets.items()
    }
    text = json.dumps({"preset": MARK, "version": VERSION, **named, **options}, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def read_preset(path: str | os.PathLike, function: str = "read_preset") -> dict[str, Any]:
    """What a preset file says, with `model` and `guide` as paths that can be opened from here.

    Args:
        path: the file.
        function: which messages name.

    Returns:
        `model`, `guide` (or None), `guidance`, `interval`, `kind`, `steps`, ready for
        `sample(...)` as `model`, `guide`, `guidance`, `interval`, `num_steps`.

    Raises:
        ValueError: it is not such a file.
    """
    path = Path(path)
    remedy = "`autoguide-fast tune` writes such a file"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{function}: preset must be a file of JSON, got {path} ({error}); {remedy}"
        ) from None
    problem = None
    if not isinstance(found, dict) or found.get("preset") != MARK:
        problem = "another file"
    elif found.get("version") != VERSION:
        problem = f"version {found.get('version')!r}"
    elif not isinstance(found.get("model"), str) or not isinstance(found.get("guide"), str | None):
        problem = "no paths for model and guide"
    elif not _is_number(found.get("guidance")):
        problem = f"guidance {found.get('guidance')!r}"
    elif not _is_interval(found.get("interval")) or not isinstance(found.get("kind"), str | None):
        problem = f"interval {found.get('interval')!r} and kind {found.get('kind')!r}"
    elif type(found.get("steps")) is not int or found["steps"] < 1:
        problem = f"steps {found.get('steps')!r}"
    if problem:
        raise ValueError(
            f"{function}: preset must be one of version {VERSION}, got {path} with {problem}; "
            f"{remedy}"
        )
    chosen = {name: found[name] for name in ("guidance", "interval", "kind", "steps")}
    nets = {
        role: None if found[role] is None else str(path.parent / found[role])
        for role in ("model", "guide")
    }
    return {**nets, **chosen}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_interval(value: object) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
    )
