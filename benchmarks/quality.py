"""Which sampler, schedule and kind of guidance, or one net for two: Frechet distance on the digits.

    python benchmarks/quality.py samplers --images 10000 --repeats 3 --out samplers.json
    python benchmarks/quality.py kinds --images 10000 --repeats 3 --out kinds.json
    python benchmarks/quality.py distilled --student student.safetensors --images 4000 --repeats 2
    python benchmarks/quality.py head --model head.safetensors --images 2000 --repeats 2
    python benchmarks/quality.py adaptive --images 64

`distilled` compares the bundled pair with a net that `autoguide-fast distill` made of it; `head`
guides a net that `autoguide-fast train --head-after` made by its own head. Each row
draws the same seeds, in `--repeats` disjoint sets, and prints the distance to the training and to
the held-out digits and the processor's milliseconds for an image, mean and standard deviation over
the repeats. `--out` keeps every figure and goes on where it stopped. `adaptive` prints, by
tolerance, the evaluations of `adaptive_heun` and its distance to exact samples, and that of Heun's
method with as many.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import autoguide_fast
from autoguide_fast import guidance, samplers
from autoguide_fast.files import write_atomically
from autoguide_fast.trainer.yardstick import yardstick

FIRST_SEED = 30_000_000
WEIGHT = 1.7  # recommended for the pair
DISTILLED_WEIGHTS = (1.3, 1.7, 2.2)
HEAD_WEIGHTS = (1.2, 1.5, 2.0)
EVALUATIONS = (8, 16, 25, 32, 63)
SCHEDULES = ("rho", "flow")
NOISY = ("euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")  # which want many evaluations
KINDS: dict[str, dict[str, Any]] = {
    "none": {"guidance": 1.0},
    "autoguidance": {"guidance": WEIGHT},
    "autoguidance, weight by level": {"guidance": guidance.table({0.3: 1.9, 3.0: 1.3})},
    "autoguidance in an interval": {"guidance": WEIGHT, "interval": (0.05, 2.0)},
    "CFG": {"guide": "digits-uncond", "guidance": 1.1},
    "autoguidance and CFG": {
        "guide": ["digits-guide", "digits-uncond"],
        "guidance": [WEIGHT, 1.05],
    },
    "Rescaled": {"guidance": guidance.Rescaled(WEIGHT, 0.7)},
    "APG": {"guidance": guidance.APG(WEIGHT, eta=0.0, momentum=-0.5)},
    "APG, eta = 1, no momentum, length 1": {
        "guidance": guidance.APG(WEIGHT, eta=1.0, momentum=0.0, most=1.0)
    },
    "CFGZero": {"guidance": guidance.CFGZero(WEIGHT)},
    "Tangential": {"guidance": guidance.Tangential(WEIGHT)},
    "MagnitudeAware": {"guidance": guidance.MagnitudeAware(2.0, alpha=2.0)},
    "FrequencyDecoupled": {"guidance": guidance.FrequencyDecoupled(WEIGHT, low=1.3)},
    "Feedback": {"guidance": guidance.Feedback(0.35, temperature=0.02)},
    "Reused, every 2nd step": {"guidance": guidance.Reused(guidance.Linear([WEIGHT]), every=2)},
    "Reused, every 4th step": {"guidance": guidance.Reused(guidance.Linear([WEIGHT]), every=4)},
    "attention the identity": {"guide": "self:attn_temperature=0", "guidance": 1.1},
    "a block left out": {"guide": "self:left_out=dec.8x8_block0", "guidance": 1.1},
    "input noise": {"guide": "self:input_noise=0.1", "guidance": 1.3},
    "random labels": {"guide": "self:random_labels", "guidance": 1.1},
    "embedding noise": {"guide": "self:embedding_noise=0.3", "guidance": 1.3},
    "dropout": {"guide": "self:dropout=0.1", "guidance": 1.3},
    "CFGPlusPlus, Euler": {"guidance": guidance.CFGPlusPlus(0.25), "sampler": "euler"},
}


def sampler_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sampler and schedule at each number of evaluations, autoguided."""
    for evaluations in EVALUATIONS:
        for name in ("heun", *samplers.SAMPLERS):
            if name == "adaptive_heun" or (name in NOISY and evaluations < 32):
                continue
            steps = (evaluations + 1) // 2 if name == "heun" else evaluations
            for schedule in SCHEDULES:
                options = {"sampler": name, "schedule": schedule, "num_steps": steps}
                yield f"{evaluations} {name} {schedule}", options | {"guidance": WEIGHT}


def distilled_rows(student: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The main net alone, the pair, and the net that was made of it, at the same weights."""
    steps = {"num_steps": 16}
    yield "main net alone", {**steps, "guidance": 1.0}
    for w in DISTILLED_WEIGHTS:
        yield f"pair, w = {w:g}", {**steps, "guidance": w}
        yield f"student, w = {w:g}", {**steps, "model": student, "guidance": w}


def head_rows(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A net alone, and guided by its own head."""
    options = {"model": model, "num_steps": 16}
    yield "none", {**options, "guidance": 1.0}
    for w in HEAD_WEIGHTS:
        yield f"self:head, w = {w:g}", {**options, "guide": "self:head", "guidance": w}


def measured(options: dict[str, Any], images: int, repeat: int) -> dict[str, float]:
    """The distances of one set of samples, and the processor's time for an image, ms."""
    measure = yardstick("digits")
    first = FIRST_SEED + repeat * images
    options = {"model": "digits", **options}
    autoguide_fast.sample(**{**options, "num_steps": 2}, seeds=[0])  # makes the engine
    began = time.process_time()
    samples = autoguide_fast.sample(
        **options,
        class_labels=measure.classes(images),
        seeds=range(first, first + images),
        batch_size=128,
    )
    spent = 1e3 * (time.process_time() - began) / images
    training, heldout = measure.training.frechet(samples), measure.heldout.frechet(samples)
    return {"fd_train": training, "fd_heldout": heldout, "cpu_ms": spent}


def adaptive(images: int) -> None:
    """Print the table of adaptive steps."""
    options: dict[str, Any] = {"guidance": WEIGHT, "class_labels": 3, "raw": True}
    options["seeds"] = range(images)
    exact = autoguide_fast.sample("digits", num_steps=256, **options)

    def distance(**given: Any) -> float:
        found = autoguide_fast.sample("digits", **given, **options)
        return (found - exact).square().mean().sqrt().item()

    for tolerance in (0.05, 0.02, 0.01, 0.005):
        seen: list[Any] = []
        sampler = samplers.AdaptiveHeun(tolerance)
        own = distance(sampler=sampler, batch_size=images, callback=seen.append)
        counts = seen[-1].evaluations
        mean = counts.double().mean().item()
        other = distance(num_steps=round((mean + 1) / 2))
        print(
            f"| {tolerance:g} | {mean:.1f}, {counts.min()} to {counts.max()} | {own:.3f} | "
            f"{other:.3f} |",
            flush=True,
        )


def _keep(file: Path, text: str) -> None:
    write_atomically(file, lambda path: path.write_text(text))


def main() -> None:
    """Measure the rows asked for and print them, the best last."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("samplers", "kinds", "distilled", "head", "adaptive"))
    parser.add_argument("--student", help="file of a net that was made of the digits pair")
    parser.add_argument("--model", help="file of a net with a head")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if (arguments.what == "distilled") != (arguments.student is not None):
        parser.error("--student must come with distilled, and only with it")
    if (arguments.what == "head") != (arguments.model is not None):
        parser.error("--model must come with head, and only with it")
    if arguments.what == "adaptive":
        adaptive(arguments.images)
        return
    rows = KINDS
    if arguments.what == "samplers":
        rows = dict(sampler_rows())
    elif arguments.student is not None:
        rows = dict(distilled_rows(arguments.student))
    elif arguments.model is not None:
        rows = dict(head_rows(arguments.model))
    found: dict[str, list[dict[str, float]]] = {}
    if arguments.out and arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    for name, options in rows.items():
        if arguments.only not in name:
            continue
        values = found.setdefault(name, [])
        while len(values) < arguments.repeats:
            values.append(measured(options, arguments.images, len(values)))
            if arguments.out:
                _keep(arguments.out, json.dumps(found, indent=1) + "\n")
        figures = {key: [value[key] for value in values] for key in values[0]}
        spread = min(1, len(values) - 1)  # of one repeat none is known
        shown = (f"{np.mean(v):.4f} ± {np.std(v, ddof=spread):.4f}" for v in figures.values())
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
