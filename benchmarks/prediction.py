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
from prediction_likelihood import negative_log_likelihood
from prediction_pairs import Nets, Pair, all_pairs, toy_points
from prediction_verdict import picture, verdict

import autoguide_fast
from autoguide_fast import diagnose
from autoguide_fast.digits import load_digits
from autoguide_fast.guidance import table
from autoguide_fast.metrics import energy_distance
from autoguide_fast.toy import fractal
from autoguide_fast.trainer.yardstick import yardstick

CONSTANTS = {"digits": (0.8, 1.3, 1.7, 2.4), "toy": (0.85, 1.15, 1.3)}  # and 1: no guidance
FACTORS = (1, 2, 3)  # c of w(sigma) = 1 + c (w* - 1)
FIRST_SEED = 50_000_000
IMAGES = 640
LEVELS = {
    "digits": [float(f"{s:.3g}") for s in np.geomspace(0.03, 8, 8)],
    "toy": [float(f"{s:.3g}") for s in np.geomspace(0.005, 4, 9)],
}
POINTS = 3072  # of the toy


def schedule(levels: list[float], weights: list[float], factor: float) -> Callable[[float], float]:
    """`1 + factor (w* - 1)`; no guidance where w* is not known."""
    known = np.nan_to_num(np.array(weights, float) - 1)
    return table({s: 1 + factor * float(w) for s, w in zip(levels, known, strict=True)})


class Sets:
    """What a pair's nets are diagnosed on, in two sets."""

    def __init__(self, pair: Pair) -> None:
        self.data = pair.data
        self.labels: dict[str, Any] = {}
        if pair.data == "digits":
            self.images: dict[str, Any] = {}
            for name, split in (("training", "train"), ("heldout", "heldout")):
                images, labels = load_digits(split)
                chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(images))[:512])
                self.images[name], self.labels[name] = images[chosen], labels[chosen]
        else:
            assert not isinstance(pair.main, str)
            fresh = fractal("A").sample(POINTS, torch.Generator().manual_seed(5))
            points = toy_points(pair.main.run)
            # 400 points, each with several noises.
            self.images = {
                "training": fresh if points is None else points.repeat(POINTS // len(points), 1)
            }
            self.images["heldout"] = fractal("A").sample(POINTS, torch.Generator().manual_seed(6))


@torch.no_grad()
def against_truth(main: Any, guide: Any, sets: Sets) -> dict[str, list[float]]:
    """`<D* - D1, D1 - D0>` and `|D* - D1|^2` per point of the toy, whose perfect denoiser is D*."""
    y, data = sets.images["training"], fractal("A")
    generator = torch.Generator().manual_seed(31)
    found: dict[str, list[float]] = {"along": [], "error": []}
    for level in LEVELS["toy"]:
        x = y + level * torch.randn(y.shape, generator=generator)
        d1, d0 = (net(x, torch.tensor(level)).double() for net in (main, guide))
        lacks = data.denoised(x.double(), level) - d1
        found["along"].append(float((lacks * (d1 - d0)).sum()) / len(y))
        found["error"].append(float(lacks.square().sum()) / len(y))
    return found


def sampled(main: Any, guide: Any, weight: Any) -> dict[str, float]:
    """The distances of digits that are sampled with a weight, always on the same seeds."""
    samples = autoguide_fast.sample(
        main,
        None if weight == 1 else guide,
        weight,
        class_labels=[i % 10 for i in range(IMAGES)],
        seeds=range(FIRST_SEED, FIRST_SEED + IMAGES),
        sampler="dpmpp_2m",
        num_steps=12,
    )
    measure = yardstick("digits")
    assert measure.heldout is not None
    features = measure.extract(samples)
    return {
        "energy": energy_distance(features, measure.training.features),
        "train": measure.training.frechet(samples),
        "heldout": measure.heldout.frechet(samples),
    }


def measured(pair: Pair, nets: Nets, unguided: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Everything that is kept of a pair."""
    main, guide = nets.pair(pair)
    sets, levels = Sets(pair), LEVELS[pair.data]
    began = time.process_time()
    found = diagnose(main, guide, sets.images, sets.labels or None, sigmas=levels)
    row: dict[str, Any] = {"pair": pair.name, "data": pair.data, "kind": pair.kind}
    row["levels"] = levels
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
    if pair.data == "toy":
        row["truth"] = against_truth(main, guide, sets)
    row["diagnosis_seconds"] = time.process_time() - began
    settings: dict[str, Any] = {f"w={w:g}": w for w in CONSTANTS[pair.data]}
    for c in FACTORS:
        settings[f"training x{c}"] = schedule(levels, row["training"]["weights"], c)
    settings["heldout x2"] = schedule(levels, row["heldout"]["weights"], 2)

    def distances(weight: Any) -> dict[str, float]:
        if pair.data == "toy":
            return {"train": negative_log_likelihood(main, guide, weight)}
        return sampled(main, guide, weight)

    own = pair.name.partition(" by ")[0]
    if own not in unguided:
        unguided[own] = distances(1)
    row["distance"] = {"w=1": unguided[own]}
    for name, weight in settings.items():
        try:
            row["distance"][name] = distances(weight)
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
    sub.add_argument("--data", choices=("digits", "toy"))
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
