"""What was measured on this processor, kept in the user's cache folder; the one owner of the file.

One file for each processor, instruction set and version of the library, `choices-<hash>.json`:

    format: version of this form
    machine: what the choices hold for
    choices: {key: {"choice": name, "times": {name: [seconds, ...]}}}
    checksum: see `files.with_checksum`

Whoever misses a choice measures it under a lock, publishes it and only then uses it; others wait
for that and take the same. So all processes of a machine agree, also those that begin at once, as
long as the file stays. Where it cannot be written nothing is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from . import cpu, locks
from ._extension import build_info
from .files import reason, with_checksum, without_checksum, write_atomically

FORMAT = 1
OFF = "static rule, as AGF_AUTOTUNE=0 asks for"
_PATIENCE = 60.0  # seconds that others may take for their race


class Entry(TypedDict):
    """What was chosen, and the seconds of each candidate by classes of batches."""

    choice: str
    times: dict[str, list[float]]


def enabled() -> bool:
    """Whether choices are measured: unless `AGF_AUTOTUNE=0`.

    Raises:
        ValueError: the variable is something else than 0 or 1.
    """
    value = os.environ.get("AGF_AUTOTUNE") or "1"
    if value not in ("0", "1"):
        raise ValueError(
            f"autoguide_fast: AGF_AUTOTUNE must be 0 or 1, got {value!r}; 0 takes the static rules"
        )
    return value == "1"


def folder() -> Path | None:
    """Where choices are kept: `AGF_CACHE_DIR`, or the user's cache folder; None where none is."""
    if own := os.environ.get("AGF_CACHE_DIR"):
        return Path(own)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "autoguide_fast"
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else home / ".cache") / "autoguide_fast"


# What this process has used, by file: it stays, whatever becomes of the file.
_used: dict[Path, dict[str, Entry]] = {}
_thread = threading.RLock()
_depth = 0  # of `_alone`: a race may ask for other choices


def decide(
    candidates: Mapping[str, Sequence[str]],
    race: Callable[[Sequence[str]], dict[str, Entry]],
) -> tuple[dict[str, Entry], str]:
    """The choices by their keys, and where they are from, for people.

    Args:
        candidates: names that each key's choice must be one of.
        race: measures the choices of the keys that it is given.

    A choice is missing where it is not kept and could not be.
    """
    place = folder()
    if place is None:
        return {}, "static rule, as there is no folder to keep choices in"
    path = place / f"choices-{_machine_hash()}.json"
    with _thread:
        used = _used.setdefault(path, {})
        _take(used, path, candidates)
        missing = [key for key in candidates if key not in used]
        source = "measured earlier"
        if missing:
            try:
                with _alone(path):
                    _take(used, path, candidates)  # of whoever was faster
                    missing = [key for key in candidates if key not in used]
                    if missing:
                        found = race(missing)
                        _publish(path, found)
                        used |= found
                        source = "measured now"
            except (OSError, TimeoutError) as error:
                source = f"static rule, as {path} cannot be written ({reason(error)})"
        return {key: used[key] for key in candidates if key in used}, source


def _take(used: dict[str, Entry], path: Path, candidates: Mapping[str, Sequence[str]]) -> None:
    """Add what is kept of these keys and not used yet."""
    if all(key in used for key in candidates):
        return
    kept = _read(path)
    for key, names in candidates.items():
        if key in kept and key not in used and kept[key]["choice"] in names:
            used[key] = kept[key]


def _read(path: Path) -> dict[str, Entry]:
    """All choices of a file; none where it is missing, damaged or of another form."""
    try:
        values = without_checksum(json.loads(path.read_text(encoding="utf-8")))
        if values["format"] != FORMAT or values["machine"] != _machine():
            return {}
        choices: dict[str, Entry] = values["choices"]
        for entry in choices.values():  # a file without a checksum may hold anything
            str(entry["choice"]), [float(t) for ts in entry["times"].values() for t in ts]
        return choices
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _publish(path: Path, found: Mapping[str, Entry]) -> None:
    """Add choices to the file; the lock must be held."""
    choices = {**_read(path), **found}
    values = with_checksum({"format": FORMAT, "machine": _machine(), "choices": choices})
    text = json.dumps(values, indent=1)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else measures for this file meanwhile; raises OSError where it cannot be written."""
    global _depth
    if _depth:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.waiting(path.with_suffix(".lock"), _PATIENCE):
        _publish(path, {})  # so that nothing is measured in vain
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


def _machine() -> dict[str, Any]:
    return {
        "processor": cpu.processor_facts(),
        "instruction_set": cpu.isa(),
        "autoguide_fast": build_info()["version"],
    }


def _machine_hash() -> str:
    return hashlib.sha256(json.dumps(_machine(), sort_keys=True).encode()).hexdigest()[:16]
