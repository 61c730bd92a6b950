"""Finds the averages, the guide's training time and the guidance weight that suit a trained pair.

The search draws its samples from seeds of its own; `judge.py` judges what it found on others.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoguide_fast import checkpoints, sample
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.ema import check_sigma_rel, length_name
from autoguide_fast.files import write_atomically
from autoguide_fast.locks import sole_writer
from autoguide_fast.metrics.mmd import kernel_distance
from autoguide_fast.metrics.names import FEATURES
from autoguide_fast.networks import Precond

from .chosen_nets import OneNet, ema_grid, snapshots_of
from .evaluations import remembering
from .workers import map_jobs
from .yardstick import Data, classes_of, net_names, yardstick

FIRST_SEED = 1_000_000
METRICS = {"fd": "frechet", "kid": "kernel"}  # by their figure among those of a trial
EMA_GRID = (0.02, 0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20, 0.25)
WEIGHT_GRID = {
    "guide": (1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.2, 2.4, 2.7, 3.0),
    "uncond": (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0, 2.5, 3.0),
}
START_WEIGHT = {"guide": 1.4, "uncond": 1.1}
START_EMA = 0.10
START_SHARE = 0.4  # of the guide's run

_EXAMPLES = """\
examples:
  # after training runs/main and runs/uncond; the guide is an early snapshot of the main net
  autoguide-fast search --main runs/main --guide runs/main --uncond runs/uncond --out pair/

  # several guides on trial
  autoguide-fast search --main runs/main --guide runs/main runs/narrow --out pair/ --workers 2

  # the weight for any two files, on data of any kind, by a network's features
  autoguide-fast search --main s.safetensors --guide xs.safetensors --data img64.zip \\
      --features efficientnet --out pair/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `search` to the command line."""
    parser = subparsers.add_parser(
        "search",
        help="superseded by tune: guide, EMA lengths and weight by coordinate descent",
        description="Superseded by `autoguide-fast tune`. Searches, on the data that the nets were "
        "trained on, for the main net's EMA length without guidance and then for the guide, its "
        "training time, its EMA length and the weight, by coordinate descent on the distance to "
        "the training images. Of nets in files only the weight is searched for. Writes the nets "
        "and every evaluation. A search that was stopped goes on when the command is repeated.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--main", required=True, metavar="RUN", help="run of the main net, or its file")
    add("--guide", required=True, nargs="+", metavar="RUN", help="runs or files of guides to try")
    add(
        "--uncond",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs or files of unlabelled nets to try, for CFG",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for nets and search.json")
    add(
        "--data",
        metavar="DATA",
        help="'digits', 'photos', 'mnist', a folder or a ZIP file of pictures (default: what the "
        "main run was trained on)",
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
        "--metric",
        choices=tuple(METRICS),
        default="fd",
        help="what is to be small: the Frechet distance, or the kernel distance, which fewer "
        "images do for (default: fd)",
    )
    add("--images", type=int, default=2000, metavar="N", help="per evaluation (default: 2000)")
    add("--steps", type=int, default=16, metavar="N", help="of the sampler (default: 16)")
    add(
        "--seed",
        type=int,
        default=FIRST_SEED,
        metavar="S",
        help=f"first of the seeds (default: {FIRST_SEED})",
    )
    add("--main-ema", type=float, metavar="S", help="take this EMA length, do not search for it")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Searches and writes what was found."""
    trial = TrialOptions(arguments.images, arguments.steps, arguments.seed, arguments.metric)
    if arguments.main_ema is not None:
        check_sigma_rel("search", arguments.main_ema, "--main-ema")
    main = snapshots_of(arguments.main)
    for place in (*arguments.guide, *arguments.uncond):
        snapshots_of(place)  # says now what is missing, not after an hour
    name = arguments.data or main.options.get("data")
    if name is None:
        raise ValueError(
            "search: --data must be given for a net in a file, got none; name the pictures that it "
            "was trained on"
        )
    if isinstance(main, OneNet) and arguments.main_ema is not None:
        raise ValueError(
            f"search: --main-ema must be left out for a file, got {arguments.main_ema}; it holds "
            "one average"
        )
    data = Data(
        name,
        features=arguments.features,
        detector_file=arguments.detector_file,
        command="search",
    )
    yardstick(data)
    with sole_writer(arguments.out, "search"):
        _search(arguments, trial, main, data)


def _search(
    arguments: argparse.Namespace, trial: TrialOptions, main: Snapshots | OneNet, data: Data
) -> None:
    out = arguments.out
    found, log = search_main(Trial(trial, data), main, arguments.main_ema, out)
    report: dict = {
        "data": data.data,
        "features": data.features,
        "search": trial.about(),
        "main": found,
        "log": log,
    }

    jobs = [
        GuideJob(
            trial,
            data,
            arguments.main,
            found["nimg"],
            found["ema"],
            role,
            folder,
            str(out),
        )
        for role, folders in (("guide", arguments.guide), ("uncond", arguments.uncond))
        for folder in folders
    ]
    results = map_jobs(search_guide, jobs, arguments.workers)
    for role in ("guide", "uncond"):
        mine = [best for job, (best, _) in zip(jobs, results, strict=True) if job.role == role]
        if mine:
            report[role] = min(mine, key=lambda best: best[trial.figure])
    report["log"] += [row for _, tried in results for row in tried]

    text = json.dumps(report, indent=1) + "\n"
    write_atomically(out / "search.json", lambda path: path.write_text(text))
    for role in ("main", "guide", "uncond"):
        if role in report:
            save_net(report, role, out)
            print(f"{role}: " + _line(report[role]))


def save_net(report: dict, role: str, out: Path) -> None:
    """Writes the net that the search found for a role, with what the sampler and the card need."""
    found = report[role]
    net = snapshots_of(found["run"]).net(found["nimg"], found["ema"])
    info = {"nimg": found["nimg"], "sigma_rel": found["ema"]}
    weight_from = {"main": "guide", "uncond": "uncond"}.get(role)
    if weight_from in report:
        info["recommended_guidance"] = report[weight_from]["weight"]
    name = net_names(report["data"])[role]
    checkpoints.save(net, out / f"{name}.safetensors", **info)


@dataclass(frozen=True)
class TrialOptions:
    """How nets are tried: images and sampler steps per evaluation, and the first seed."""

    images: int
    steps: int
    seed: int
    metric: str = "fd"

    @property
    def figure(self) -> str:
        """The figure that is to be small."""
        return METRICS[self.metric]

    def about(self) -> dict:
        """What figures depend on, as plain values; those of searches before there was a choice."""
        found = dataclasses.asdict(self)
        return found if self.metric != "fd" else {k: v for k, v in found.items() if k != "metric"}

    def __post_init__(self) -> None:
        for name, least in (("images", 100), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"search: {name} must be >= {least}, got {getattr(self, name)}; raise it"
                )


class Trial:
    """Samples with the same seeds every time, so that differences are the nets' own."""

    def __init__(self, options: TrialOptions, data: Data) -> None:
        judge = yardstick(data)
        self.seeds = range(options.seed, options.seed + options.images)
        self.steps = options.steps
        self.reference, self.options = judge.training, options
        self._about = {**judge.identity(), **options.about()}

    def about(self) -> dict:
        """What its figures depend on besides the nets, as plain values."""
        return self._about

    def __call__(
        self, net: Precond, guide: Precond | None = None, weight: float = 1.0
    ) -> dict[str, float]:
        """Quality of the samples: frechet, precision, recall, what else there is or is asked for.

        That is agreement if there are classes, and kernel for the kernel distance.
        """
        classes = classes_of(net, len(self.seeds))
        images = sample(
            net,
            guide,
            weight,
            class_labels=classes,
            seeds=self.seeds,
            num_steps=self.steps,
            batch_size=128,
        )
        quality = self.reference.quality(images, classes).as_dict()
        quality.pop("nimg")
        if self.options.metric == "kid":
            features = self.reference.extract(images)
            # Of all images at once, without a bias that would depend on their number.
            kernel = kernel_distance(self.reference.features, features, None).mean
            quality["kernel"] = kernel
        digits = {"kernel": 8}
        return {
            name: round(value, digits.get(name, 5))
            for name, value in quality.items()
            if not math.isnan(value)
        }


@dataclass(frozen=True)
class GuideJob:
    """One search for a guide: which main net is guided by the snapshots of which run."""

    trial: TrialOptions
    data: Data
    main: str
    main_nimg: int
    main_ema: float
    role: str
    run: str
    out: str


def search_main(
    trial: Trial, main: Snapshots | OneNet, ema: float | None, out: Path
) -> tuple[dict, list[dict]]:
    """The main net's EMA length at the end of its run, judged without guidance; and all tried.

    No guidance is the rival here, so it gets the main net that serves it best.
    """
    nimg = main.times[-1]
    about = {**trial.about(), "main": main.identity(), "nimg": nimg}
    best, tried = descend(
        remembering(out, about, lambda ema: trial(main.net(nimg, ema))),
        {"ema": ema_grid(main, EMA_GRID) if ema is None else (ema,)},
        {"ema": START_EMA if ema is None else ema},
        figure=trial.options.figure,
    )
    head = {"run": str(main.run), "nimg": nimg}
    return {**head, **best}, [{"role": "main", **head, **row} for row in tried]


def search_guide(job: GuideJob) -> tuple[dict, list[dict]]:
    """The time, EMA length and weight at which a run's snapshots guide best; and all tried."""
    trial = Trial(job.trial, job.data)
    main = snapshots_of(job.main)
    net = main.net(job.main_nimg, job.main_ema)
    guide = snapshots_of(job.run)
    get = functools.lru_cache(maxsize=8)(guide.net)
    about = {
        **trial.about(),
        "main": main.identity(),
        "main_nimg": job.main_nimg,
        "main_ema": job.main_ema,
        "guide": guide.identity(),
    }
    best, tried = descend(
        remembering(
            Path(job.out), about, lambda nimg, ema, weight: trial(net, get(nimg, ema), weight)
        ),
        {"weight": WEIGHT_GRID[job.role], "nimg": guide.times, "ema": ema_grid(guide, EMA_GRID)},
        {
            "weight": START_WEIGHT[job.role],
            "nimg": guide.nearest_time(START_SHARE),
            "ema": START_EMA,
        },
        figure=job.trial.figure,
    )
    head = {"role": job.role, "run": job.run}
    return {"run": job.run, **best}, [{**head, **row} for row in tried]


def descend(
    evaluate: Callable[..., dict[str, float]],
    grids: dict[str, Sequence[float]],
    start: dict[str, float],
    rounds: int = 3,
    figure: str = "frechet",
) -> tuple[dict, list[dict]]:
    """Coordinate descent over grids: walks each coordinate downhill in turn until none improves.

    Args:
        evaluate: called with the coordinates by name; returns figures by name.
        grids: the values of each coordinate, ascending.
        start: a value of each, taken to the nearest on its grid.
        rounds: passes over all coordinates at most.
        figure: which of the figures is to be small.

    Returns:
        The best coordinates together with their figures, and every point tried, in order.
    """
    at = {name: _nearest(grid, start[name]) for name, grid in grids.items()}
    tried: dict[tuple[int, ...], dict] = {}

    def height(indices: dict[str, int]) -> float:
        key = tuple(indices.values())
        if key not in tried:
            point = {k: grids[k][i] for k, i in indices.items()}
            tried[key] = {**point, **evaluate(**point)}
            print("  " + _line(tried[key]), flush=True)
        return tried[key][figure]

    for _ in range(rounds):
        before = dict(at)
        for name, grid in grids.items():
            for direction in (1, -1):
                while 0 <= at[name] + direction < len(grid):
                    there = {**at, name: at[name] + direction}
                    if height(there) >= height(at):
                        break
                    at = there
        if at == before:
            break
    height(at)
    return tried[tuple(at.values())], list(tried.values())


def _nearest(grid: Sequence[float], value: float) -> int:
    return min(range(len(grid)), key=lambda i: abs(grid[i] - value))


def _line(row: dict) -> str:
    return ", ".join(
        f"{k} {length_name(v) if k == 'ema' else f'{v:.4g}'}"
        if isinstance(v, float)
        else f"{k} {v}"
        for k, v in row.items()
    )
