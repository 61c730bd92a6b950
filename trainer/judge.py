"""Judges a trained pair against its data, on seeds that no search has seen."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.run_folder import is_run_folder, stored_options
from autoguide_fast.cli.arguments import check_image_count, check_output_file, weight_or_file
from autoguide_fast.files import write_atomically
from autoguide_fast.guidance import SavedWeights, Unlabelled, weights_of
from autoguide_fast.metrics.names import FEATURES

from .chosen_nets import NetChoice, of_folder, of_run
from .options import UNLABELLED
from .workers import map_jobs
from .yardstick import NAMES, Data, classes_of, net_names, yardstick

if TYPE_CHECKING:
    from autoguide_fast.networks import Precond

FIRST_SEED = 20_000_000
METHODS = ("none", "CFG", "autoguidance")
_GUIDES = {"none": None, "CFG": "uncond", "autoguidance": "guide"}  # role of the net that guides
MORE = ("kid", "dc")  # kinds of metrics that can be asked for besides

# Column of the table -> figure in a row of results, and its decimals; those that no row has are
# left out.
_COLUMNS = {
    "FD to training {data}": ("fd_train", 4),
    "FD to held-out {data}": ("fd_heldout", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "class agreement": ("agreement", 4),
    "nearest of training {data}": ("memorisation", 3),
    "share of near repeats": ("near_repeats", 3),
    "KD to training {data}": ("kid", 6),
    "density": ("density", 3),
    "coverage": ("coverage", 3),
}

_EXAMPLES = """\
examples:
  autoguide-fast judge --images 10000 --repeats 3 --workers 2 --out results.json
  autoguide-fast judge --pair pair/ --images 2000 --repeats 1
  autoguide-fast judge --data photos --images 1000 --steps 16

  # what `train` wrote, and any two files, on data of any kind
  autoguide-fast judge --pair runs/pair --guidance 1.5 --images 2000
  autoguide-fast judge --model s.safetensors --guide xs.safetensors --guidance 2 \\
      --data img64.zip --heldout img64-val.zip --features efficientnet
"""


@dataclass(frozen=True)
class Job:
    """One set of samples to draw and judge.

    nets: by role, as pairs. weight: of the guidance. more: kinds of metrics besides.
    """

    data: Data
    nets: tuple[tuple[str, NetChoice], ...]
    method: str
    weight: float | SavedWeights
    repeat: int
    images: int
    steps: int
    seed: int
    dtype: str = "float32"
    more: tuple[str, ...] = ()


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `judge` to the command line."""
    parser = subparsers.add_parser(
        "judge",
        help="measure no guidance, CFG and autoguidance side by side, with repeats",
        description="Draws images without guidance, with CFG and with autoguidance at the weights "
        "recorded in the nets or given, in several repeats with fresh seeds, and prints mean and "
        "standard deviation over the repeats as a Markdown table. For the metrics of papers, see "
        "`autoguide-fast evaluate`.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("nets").add_argument
    add("--pair", type=Path, metavar="DIR", help="folder of `tune` or of a run of `train`")
    add("--ema", type=float, metavar="S", help="of a run's main net (default: its first)")
    add("--guide-ema", type=float, metavar="S", help="of a run's guide (default: its last)")
    add("--model", metavar="NET", help="file of the main net, instead of --pair")
    add("--guide", metavar="NET", help="file of its guide")
    add(
        "--uncond",
        metavar="NET",
        help="file of a net without labels, for CFG; 'unlabelled': the main net without its label",
    )
    add(
        "--guidance",
        type=weight_or_file,
        metavar="W",
        help="of autoguidance, or auto or a file that `diagnose` wrote, as for `sample` (default: "
        "as recorded)",
    )
    add("--cfg-guidance", type=float, metavar="W", help="of CFG (default: as recorded)")
    add = parser.add_argument_group("what to judge by").add_argument
    add(
        "--data",
        metavar="DATA",
        help="'digits', 'photos', 'mnist', a folder or a ZIP file of pictures (default: what "
        "--pair was trained on, otherwise digits)",
    )
    add(
        "--heldout",
        metavar="DATA",
        help="such that was not trained on (default: the held-out part of what is bundled)",
    )
    add(
        "--features",
        choices=tuple(FEATURES),
        metavar="F",
        help=f"by which images are compared, of {', '.join(FEATURES)} (default: pixels, at two "
        "scales where images are larger than 32x32)",
    )
    add("--detector-file", metavar="FILE", help="of --features, where it is not in its usual place")
    add(
        "--metrics",
        nargs="+",
        choices=MORE,
        default=[],
        metavar="M",
        help="besides: kid (kernel distance), dc (density and coverage)",
    )
    add = parser.add_argument_group("running").add_argument
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
    choices, name = chosen(arguments)
    data = Data(name, arguments.heldout, arguments.features, arguments.detector_file)
    yardstick(data)  # says now what is missing
    nets = {role: choice.load() for role, choice in choices.items()}
    methods = arguments.methods or [m for m, role in _GUIDES.items() if role in (None, *nets)]
    given = {"autoguidance": arguments.guidance, "CFG": arguments.cfg_guidance}
    weights: dict[str, float | SavedWeights] = {}
    for method in methods:
        role = _GUIDES[method]
        if role is not None and role not in nets:
            raise ValueError(
                f"judge: --methods must be those that there are nets for, got {method} without "
                f"{net_names(name)[role]}; leave it out"
            )
        weight = guidance_weight(nets, method, given.get(method))
        if isinstance(weight, str):
            weight = weights_of(weight, choices["main"].file, "judge")
            weight.check(nets["main"], [nets["guide"]], "judge")
        elif not np.isfinite(weight):
            raise ValueError(f"judge: --guidance must be finite, got {weight}; 1.5 is usual")
        weights[method] = weight
    jobs = [
        Job(
            data,
            tuple(choices.items()),
            method,
            weights[method],
            repeat,
            arguments.images,
            arguments.steps,
            arguments.seed + repeat * arguments.images,
            arguments.dtype,
            tuple(arguments.metrics),
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
    print(table(rows, Path(name).name))


def chosen(arguments: argparse.Namespace) -> tuple[dict[str, NetChoice], str]:
    """The nets by role, and the data to judge by.

    Raises:
        ValueError: options that do not fit, or a folder without nets.
    """
    folder, data = arguments.pair, arguments.data
    of_a_run = folder is not None and is_run_folder(folder)
    if (arguments.ema is not None or arguments.guide_ema is not None) and not of_a_run:
        raise ValueError(
            "judge: --ema and --guide-ema must come with the folder of a run in --pair, got one of "
            f"them with {folder or 'no folder'}; a file holds one average"
        )
    if arguments.model is not None:
        if folder is not None:
            raise ValueError("judge: --model must come without --pair, got both; leave out one")
        found = {"main": NetChoice(arguments.model)}
        if arguments.guide is not None:
            found["guide"] = NetChoice(arguments.guide)
        if arguments.uncond == UNLABELLED:
            found["uncond"] = replace(found["main"], without_label=True)
        elif arguments.uncond is not None:
            found["uncond"] = NetChoice(arguments.uncond)
        return found, data or "digits"
    if arguments.guide is not None or arguments.uncond is not None:
        raise ValueError(
            "judge: --guide and --uncond must come with --model, got one without; name the main net"
        )
    if of_a_run:
        found = of_run(folder, arguments.ema, arguments.guide_ema, "judge")
        return found, data or stored_options(folder).get("data", "digits")
    if folder is not None:
        data = data or _tuned(folder) or "digits"
        return of_folder(folder, net_names(data)), data
    data = data or "digits"
    if data not in NAMES:
        raise ValueError(
            f"judge: nets must be named for other data than {' and '.join(NAMES)}, got none for "
            f"{data}; add --pair or --model"
        )
    names = net_names(data)
    return {r: NetChoice(n) for r, n in names.items() if n in checkpoints.BUNDLED}, data


def _tuned(folder: Path) -> str | None:
    """The data that `tune` in a folder went by, or None where it does not say."""
    try:
        found = json.loads((folder / "tune.json").read_bytes())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def guidance_weight(
    nets: dict[str, Precond], method: str, given: float | str | None = None
) -> float | str:
    """The weight for a method: what was given, or what the nets recommend; 1 without guidance.

    Raises:
        ValueError: they record none.
    """
    if _GUIDES[method] is None:
        return 1.0
    if given is not None:
        return given
    net = nets["uncond" if method == "CFG" else "main"]
    weight = None if isinstance(net, Unlabelled) else net.info.get("recommended_guidance")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not np.isfinite(weight):
        option = "--cfg-guidance" if method == "CFG" else "--guidance"
        raise ValueError(
            f"judge: --pair must hold nets that record their recommended_guidance, got {weight!r} "
            f"for {method}; add {option} W, or leave {method} out of --methods"
        )
    return weight


def judge(job: Job) -> dict:
    """Draws one set of samples and measures it against training and held-out images."""
    import torch

    from autoguide_fast import Engine, metrics

    nets, measure = dict(job.nets), yardstick(job.data)
    main, role = nets["main"].load(), _GUIDES[job.method]
    guide = None if role is None else nets[role].load()
    weight = job.weight
    if isinstance(weight, SavedWeights):
        shown: float | str = Path(weight.name).name
        guidance: Any = weight.functions()[0]
    else:
        shown = guidance = float(weight)
    classes = classes_of(main, job.images)
    started = time.perf_counter()
    images = Engine(main, guide, getattr(torch, job.dtype)).sample(
        guidance=guidance,
        class_labels=classes,
        num_steps=job.steps,
        batch_size=128,
        seeds=range(job.seed, job.seed + job.images),
    )
    seconds = time.perf_counter() - started

    quality = measure.training.quality(images, classes)
    row = {
        "method": job.method,
        "w": shown,
        "dtype": job.dtype,
        "repeat": job.repeat,
        "images": job.images,
        "fd_train": quality.frechet,
        "precision": quality.precision,
        "recall": quality.recall,
    }
    if not np.isnan(quality.agreement):
        row["agreement"] = quality.agreement
    real, fake = measure.training.features, measure.extract(images)
    if measure.heldout is not None:
        near = metrics.memorisation(fake, real, measure.heldout.features)
        row["fd_heldout"] = measure.heldout.frechet(images)
        row["memorisation"] = near.ratio
        row["near_repeats"] = near.share_nearer_than(0.05)
    if "kid" in job.more:
        subsets = 100 if min(len(real), len(fake)) >= 1000 else None
        row["kid"] = metrics.kernel_distance(real, fake, subsets).mean
    if "dc" in job.more:
        row["density"], row["coverage"] = metrics.density_coverage(real, fake)
    return {**row, "images_per_s": job.images / seconds}


def table(rows: list[dict], data: str) -> str:
    """Mean and standard deviation over the repeats of each method, as a Markdown table."""
    columns = {
        title: (figure, digits)
        for title, (figure, digits) in _COLUMNS.items()
        if any(figure in row for row in rows)
    }
    head = " | ".join(columns).format(data=data)
    lines = [f"| method | w | {head} |", "|---|---|" + "---|" * len(columns)]
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        weight = mine[0]["w"]
        cells = [method, weight if isinstance(weight, str) else f"{weight:g}"]
        for figure, digits in columns.values():
            values = [row[figure] for row in mine]
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
