"""Evaluations that a search has made, kept as they come: a search that is stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from autoguide_fast.files import reason, remedy, with_checksum, without_checksum

FILE = "evaluations.jsonl"


def remembering(
    out: Path, about: dict, evaluate: Callable[..., dict[str, float]]
) -> Callable[..., dict[str, float]]:
    """`evaluate`, but what `evaluations.jsonl` in a folder knows is not computed again.

    Args:
        out: the folder; several processes may add to its file, which takes whole lines.
        about: what the figures depend on besides the point, as JSON holds it.
        evaluate: called with the coordinates of a point by name; returns figures by name.
    """
    path = out / FILE
    known: dict[str, dict[str, float]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = without_checksum(json.loads(line))
            known[_key(row["about"], row["point"])] = row["figures"]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # cut short when the search was killed, or damaged: computed again

    def evaluated(**point: float) -> dict[str, float]:
        key = _key(about, point)
        if key not in known:
            known[key] = evaluate(**point)
            row = {"about": about, "point": point, "figures": known[key]}
            try:
                with open(path, "ab") as file:
                    # Begun on a line of its own, after what may have been cut short.
                    file.write(b"\n" + json.dumps(with_checksum(row)).encode() + b"\n")
            except OSError as error:
                raise OSError(
                    f"search: {path} must be written, got {reason(error)}; {remedy(error)}, then "
                    "repeat the command: it goes on where it stopped"
                ) from error
        return known[key]

    return evaluated


def _key(about: dict, point: dict) -> str:
    return json.dumps([about, point], sort_keys=True)
