"""`autoguide-fast evaluate compare`, and how figures and protocol are printed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def run_compare(arguments: argparse.Namespace) -> None:
    """Prints in what two evaluations differ."""
    from autoguide_fast.metrics.protocol import differences

    first, second = (_read(path) for path in (arguments.first, arguments.second))
    changed = differences(first["protocol"], second["protocol"])
    for title, matters in (
        ("The protocols differ in what figures depend on:", True),
        ("They differ also in where and with which versions they were made:", False),
    ):
        rows = [row for row in changed if row[3] == matters]
        if rows:
            print(title)
            for name, a, b, _ in rows:
                print(f"  {name}: {_plain(a)} | {_plain(b)}")
    if not any(row[3] for row in changed):
        print("The protocols agree in what figures depend on.")
    names = dict.fromkeys([*first["metrics"], *second["metrics"]])
    print(f"{'':24} {'first':>24} {'second':>24} {'difference':>12}")
    for name in names:
        a, b = (each["metrics"].get(name) for each in (first, second))
        cells = [shown(each) if each else "-" for each in (a, b)]
        change = ""
        if a and b and None not in (a["mean"], b["mean"]):
            change = f"{b['mean'] - a['mean']:+.4g}"
        print(f"{name:24} {cells[0]:>24} {cells[1]:>24} {change:>12}")


def as_text(content: dict) -> str:
    """Figures and protocol of an evaluation, for people."""
    from autoguide_fast.metrics.protocol import flat

    lines = [f"{name:24} {shown(figure)}" for name, figure in content["metrics"].items()]
    for label, figures in content["per_class"].items():
        cells = (f"{name} {shown(figure)}" for name, figure in figures.items())
        lines.append(f"  class {label}: {', '.join(cells)}")
    lines.append("protocol:")
    lines += [f"  {name}: {value}" for name, value in flat(content["protocol"]).items()]
    return "\n".join(lines)


def shown(figure: dict) -> str:
    """A figure as text, with its spread where there are repeats."""
    if figure["mean"] is None:
        return "none: too few images"
    text = f"{figure['mean']:.6g}"
    if figure["std"] is not None:
        text += f" ± {figure['std']:.2g} ({len(figure['values'])} repeats)"
    return text


def _plain(value: Any) -> str:
    return "-" if value is None else str(value)


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content["protocol"], dict) and isinstance(content["metrics"], dict):
            return content
        raise ValueError("it has no protocol and metrics")
    except OSError as error:
        raise ValueError(
            f"evaluate compare: {path} must be a file that can be read, got {error.strerror}; "
            "check the spelling"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"evaluate compare: {path} must be what `evaluate --out` wrote, got another file "
            f"({error}); name that"
        ) from None
