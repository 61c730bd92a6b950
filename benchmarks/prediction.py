"""Does what `diagnose` finds without sampling foretell what guidance does to samples?

    python benchmarks/prediction.py measure --nets nets/ --out benchmarks/results/prediction.jsonl
    python benchmarks/prediction.py judge benchmarks/results/prediction.jsonl

The first trains and diagnoses each pair of `prediction_pairs.py`, guides it with constant weights
and with schedules made of the diagnosis, on the same seeds or true points, and writes a line for
each pair; it goes on where it stopped. The second says how well the one orders the other
(`prediction_verdict.py`). docs/prediction.md tells what was found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prediction_data import STUDIES
from prediction_nets import Nets
from prediction_pairs import Pair, all_pairs
from prediction_verdict import picture, verdict

from autoguide_fast import diagnose
from autoguide_fast.guidance import table

FACTORS = (1, 2, 3)  # c of w(sigma) = 1 + c (w* - 1)


def schedule(levels: list[float], weights: list[float], factor: float) -> Callable[[float], float]:
    """`1 + factor (w* - 1)`; no guidance where w* is not known."""
    known = np.nan_to_num(np.array(weights, float) - 1)
    return table({s: 1 + factor * float(w) for s, w in zip(levels, known, strict=True)})


def measured(pair: Pair, nets: Nets, unguided: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Everything that is kept of a pair."""
    main, guide = nets.pair(pair)
    study = STUDIES[pair.data]
    samples, labels = study.sets(pair)
    began = time.process_time()
    found = diagnose(main, guide, samples, labels, sigmas=study.levels)
    row: dict[str, Any] = {"pair": pair.name, "data": pair.data, "kind": pair.kind}
    row["levels"] = study.levels
    for name, moments in found.sets.items():
        low, high = found.interval(name, repeats=200)
        row[name] = {
            "error": moments.error.mean(1).sum(1).tolist(),
            "along": moments.along.mean(1).sum((1, 2)).tolist(),
            "gram": moments.gram.mean(1).sum((1, 2, 3)).tolist(),
            "weights": found.weights(name)[:, 0].tolist(),
            "low": low[:, 0].tolist(),
            "high": high[:, 0].tolist(),
        }
    if study.truth is not None:
        row["truth"] = study.truth(main, guide, pair)
    row["diagnosis_seconds"] = time.process_time() - began
    settings: dict[str, Any] = {f"w={w:g}": w for w in study.constants}
    for c in FACTORS:
        settings[f"training x{c}"] = schedule(study.levels, row["training"]["weights"], c)
    settings["heldout x2"] = schedule(study.levels, row["heldout"]["weights"], 2)
    own = pair.name.partition(" by ")[0]
    if own not in unguided:
        unguided[own] = study.distances(main, guide, 1)
    row["distance"] = {"w=1": unguided[own]}
    for name, weight in settings.items():
        try:
            row["distance"][name] = study.distances(main, guide, weight)
        except FloatingPointError:  # guided out of all bounds
            row["distance"][name] = {"train": None}
    return row


def measure(arguments: argparse.Namespace) -> None:
    """Measures the pairs that are not in the file yet."""
    torch.set_num_threads(1)
    rows = read(arguments.out) if arguments.out.exists() else []
    known = {row["pair"] for row in rows}
    unguided = {row["pair"].partition(" by ")[0]: row["distance"]["w=1"] for row in rows}
    nets = Nets(arguments.nets)
    pairs = [pair for pair in all_pairs() if arguments.data in (None, pair.data)]
    for pair in pairs[: arguments.pairs]:
        if pair.name in known:
            continue
        began = time.process_time()
        row = measured(pair, nets, unguided)
        with arguments.out.open("a") as file:
            file.write(json.dumps(row).replace("NaN", "null") + "\n")
        print(f"{pair.name}: {time.process_time() - began:.1f} s of the processor", flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of `measure`; one that was cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def judge(arguments: argparse.Namespace) -> None:
    """Prints the tables of what was measured."""
    rows = read(arguments.file)
    print(verdict(rows))
    if arguments.plot is not None:
        picture(rows, arguments.plot)


def main() -> None:
    """Measure, or judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("measure")
    sub.add_argument("--nets", type=Path, required=True, help="folder of the trained nets")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--data", choices=list(STUDIES))
    sub.add_argument("--pairs", type=int, help="the first so many (default: all)")
    sub.set_defaults(run=measure)
    sub = commands.add_parser("judge")
    sub.add_argument("file", type=Path, help="what `measure` wrote")
    sub.add_argument("--plot", type=Path, metavar="FILE", help="draw them as PNG")
    sub.set_defaults(run=judge)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
