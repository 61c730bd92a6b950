"""Judges a trained pair against its data, on seeds that no search has seen."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoguide_fast.cli.arguments import check_image_count, check_output_file
from autoguide_fast.files import write_atomically

from .workers import map_jobs
from .yardstick import NAMES, yardstick

if TYPE_CHECKING:
    from autoguide_fast.networks import Precond

FIRST_SEED = 20_000_000
METHODS = ("none", "CFG", "autoguidance")
_GUIDES = {"none": None, "CFG": "uncond", "autoguidance": "guide"}  # role of the net that guides

# Column of the table -> figure in a row of results, and its decimals.
_COLUMNS = {
    "FD to training {data}": ("fd_train", 4),
    "FD to held-out {data}": ("fd_heldout", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "class agreement": ("agreement", 4),
    "nearest of training {data}": ("memorisation", 3),
    "share of near repeats": ("near_repeats", 3),
}

_EXAMPLES = """\
examples:
  autoguide-fast judge --images 10000 --repeats 3 --workers 2 --out results.json
  autoguide-fast judge --pair pair/ --images 2000 --repeats 1
  autoguide-fast judge --data photos --images 1000 --steps 16
"""


@dataclass(frozen=True)
class Job:
    """One set of samples to draw and judge: `folder` None stands for the bundled nets."""

    data: str
    folder: str | None
    method: str
    repeat: int
    images: int
    steps: int
    seed: int
    dtype: str = "float32"


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `judge` to the command line."""
    parser = subparsers.add_parser(
        "judge",
        help="measure no guidance, CFG and autoguidance on the bundled data, with repeats",
        description="Draws images without guidance, with CFG and with autoguidance at the weights "
        "recorded in the nets, in several repeats with fresh seeds, and prints mean and standard "
        "deviation over the repeats as a Markdown table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", choices=NAMES, default=NAMES[0], help=f"what to judge by (default: {NAMES[0]})")
    add("--pair", type=Path, metavar="DIR", help="folder written by search (default: bundled)")
    add("--images", type=int, default=10_000, metavar="N", help="per repeat (default: 10000)")
    add("--repeats", type=int, default=3, metavar="N", help="(default: 3)")
    add("--steps", type=int, default=32, metavar="N", help="of the sampler (default: 32)")
    add(
        "--seed",
        type=int,
        default=FIRST_SEED,
        metavar="S",
        help=f"first of the seeds (default: {FIRST_SEED})",
    )
    add(
        "--methods",
        nargs="+",
        choices=METHODS,
        metavar="M",
        help=f"which of {', '.join(METHODS)} (default: all that there are nets for)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="what the engine's convolutions multiply (default: float32)",
    )
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--out", type=Path, metavar="FILE", help="write every figure as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Judges, prints the table, writes the figures."""
    check_image_count(arguments.images, 100, "judge", "draw more in several --repeats")
    check_output_file(arguments.out, "judge")
    for name, least in (("repeats", 1), ("steps", 1), ("seed", 0), ("workers", 1)):
        value = getattr(arguments, name)
        if value < least:
            raise ValueError(f"judge: --{name} must be >= {least}, got {value}; raise it")
    folder = str(arguments.pair) if arguments.pair else None
    nets = load_nets(arguments.data, folder)
    methods = arguments.methods or [m for m, role in _GUIDES.items() if role in (None, *nets)]
    for method in methods:
        role = _GUIDES[method]
        if role is not None and role not in nets:
            raise ValueError(
                f"judge: --methods must be those that there are nets for, got {method} without "
                f"{yardstick(arguments.data).nets()[role]}; leave it out"
            )
        guidance_weight(nets, method)
    jobs = [
        Job(
            arguments.data,
            folder,
            method,
            repeat,
            arguments.images,
            arguments.steps,
            arguments.seed + repeat * arguments.images,
            arguments.dtype,
        )
        for repeat in range(arguments.repeats)
        for method in methods
    ]
    rows: list[dict] = []

    def keep(job: Job, row: dict) -> None:
        rows.append(row)
        print(
            "  "
            + ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )
        if arguments.out:
            text = json.dumps(rows, indent=1) + "\n"
            write_atomically(arguments.out, lambda path: path.write_text(text))

    map_jobs(judge, jobs, arguments.workers, keep)
    print(table(rows, arguments.data))


def load_nets(data: str, folder: str | os.PathLike | None = None) -> dict[str, Precond]:
    """The nets by role, from a folder that `search` wrote or bundled (None); 'uncond' if there."""
    from autoguide_fast import checkpoints, load

    nets: dict[str, Precond] = {}
    for role, name in yardstick(data).nets().items():
        file = Path(folder) / f"{name}.safetensors" if folder else None
        there = file.exists() if file is not None else name in checkpoints.BUNDLED
        if there or role != "uncond":
            nets[role] = load(file or name)
    return nets


def guidance_weight(nets: dict[str, Precond], method: str) -> float:
    """The weight that the nets recommend for a method; 1 without guidance.

    Raises:
        ValueError: they record none.
    """
    if _GUIDES[method] is None:
        return 1.0
    role = "uncond" if method == "CFG" else "main"
    weight = nets[role].info.get("recommended_guidance")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not np.isfinite(weight):
        raise ValueError(
            f"judge: --pair must hold nets that record their recommended_guidance, got {weight!r} "
            f"for {method}; save them with it, or leave {method} out of --methods"
        )
    return weight


def judge(job: Job) -> dict:
    """Draws one set of samples and measures it against training and held-out images."""
    import torch

    from autoguide_fast import Engine, metrics

    nets, measure = load_nets(job.data, job.folder), yardstick(job.data)
    role, weight = _GUIDES[job.method], guidance_weight(nets, job.method)
    guide = None if role is None else nets.get(role)
    classes = measure.classes(job.images)
    started = time.perf_counter()
    images = Engine(nets["main"], guide, getattr(torch, job.dtype)).sample(
        guidance=weight,
        class_labels=classes,
        num_steps=job.steps,
        batch_size=128,
        seeds=range(job.seed, job.seed + job.images),
    )
    seconds = time.perf_counter() - started

    quality = measure.training.quality(images, classes)
    near = metrics.memorisation(
        measure.extract(images), measure.training.features, measure.heldout.features
    )
    return {
        "method": job.method,
        "w": float(weight),
        "dtype": job.dtype,
        "repeat": job.repeat,
        "images": job.images,
        "fd_train": quality.frechet,
        "fd_heldout": measure.heldout.frechet(images),
        "precision": quality.precision,
        "recall": quality.recall,
        "agreement": quality.agreement,
        "memorisation": near.ratio,
        "near_repeats": near.share_nearer_than(0.05),
        "images_per_s": job.images / seconds,
    }


def table(rows: list[dict], data: str) -> str:
    """Mean and standard deviation over the repeats of each method, as a Markdown table."""
    head = " | ".join(_COLUMNS).format(data=data)
    lines = [f"| method | w | {head} |", "|---|---|" + "---|" * len(_COLUMNS)]
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        cells = [method, f"{mine[0]['w']:g}"]
        for figure, digits in _COLUMNS.values():
            values = [row[figure] for row in mine]
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
