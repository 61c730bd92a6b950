"""`autoguide-fast toy`: the paper's two-dimensional toy, trained, sampled, measured and drawn."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from autoguide_fast.cli.arguments import positive_integer
from autoguide_fast.files import write_atomically
from autoguide_fast.locks import sole_writer

from ..interruption import EXIT_CODE, interruption, patient_terminal

if TYPE_CHECKING:
    from autoguide_fast.toy import ToyModel

    from .measures import Judge

_FEWEST_POINTS = 1000

_DESCRIPTION = """\
Train the paper's two-dimensional toy (arXiv 2406.02507, section 3): points of a fractal tree of
Gaussians, of which density and score are known exactly. Sample it without guidance, with
classifier-free guidance, with autoguidance and with naive truncation; measure each against the true
distribution, and draw the paper's two figures. Takes minutes on two CPU cores that are free, and
nothing from the network. The trained nets are kept in the folder, so that a repeat takes one.
"""

_EXAMPLES = """\
examples:
  autoguide-fast toy
  # figures that scatter over trainings, too: three of them, each sampled three times
  autoguide-fast toy --trainings 3 --out toy/

exit code: 0 finished; 75 stopped by Ctrl-C, SIGTERM or SIGHUP: repeat the command to go on; 2 an
error
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `toy` to the command line."""
    parser = subparsers.add_parser(
        "toy",
        help="train and draw the paper's two-dimensional toy",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("autoguide-fast-toy"),
        metavar="DIR",
        help="folder for nets, figures and numbers (default: ./autoguide-fast-toy)",
    )
    add(
        "--trainings",
        type=positive_integer,
        default=1,
        metavar="N",
        help="train the nets this often, from other first weights (default: 1)",
    )
    add(
        "--repeats",
        type=positive_integer,
        default=3,
        metavar="N",
        help="sample those of each training this often (default: 3)",
    )
    add(
        "--points",
        type=positive_integer,
        default=8192,
        metavar="N",
        help=f"points of each repeat, at least {_FEWEST_POINTS} (default: 8192)",
    )
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Trains, samples, measures, draws; returns 0, or 75 if the training was stopped."""
    if arguments.points < _FEWEST_POINTS:
        raise ValueError(
            f"toy: --points must be >= {_FEWEST_POINTS}, got {arguments.points}; with fewer, the "
            "thinnest branches get none by chance"
        )
    from .threads import one_thread_each

    started = time.perf_counter()
    with sole_writer(arguments.out, "toy"), patient_terminal(), one_thread_each():
        with interruption() as stopped:
            nets = _nets(arguments, stopped)
        if nets is None:
            print(f"stopped; go on by the same command: autoguide-fast toy --out {arguments.out}")
            return EXIT_CODE
        seconds = time.perf_counter() - started
        judge, rows = _measured(arguments, nets)
        _write(arguments, nets[0], judge, rows)
    print(f"{seconds:.0f} s of training, {time.perf_counter() - started:.0f} s in all")
    return 0


def _nets(
    arguments: argparse.Namespace, stopped: Callable[[], bool]
) -> list[dict[str, ToyModel]] | None:
    """The nets of each training by role; None where it was stopped."""
    from tqdm import tqdm

    from .training import RECIPES, trained

    total = arguments.trainings * sum(recipe.iterations for recipe in RECIPES.values())
    trainings = []
    done = 0
    with tqdm(total=total, unit="step", disable=arguments.quiet) as bar:
        for seed in range(arguments.trainings):
            nets = {}
            for role, recipe in RECIPES.items():
                bar.set_description(f"training {role}")

                def progress(iteration: int, loss: float | None, before: int = done) -> None:
                    bar.update(before + iteration - bar.n)

                net = trained(arguments.out / "nets", role, recipe, seed, progress, stopped)
                if net is None:
                    return None
                nets[role] = net
                done += recipe.iterations
            trainings.append(nets)
    return trainings


def _measured(
    arguments: argparse.Namespace, trainings: list[dict[str, ToyModel]]
) -> tuple[Judge, list[dict]]:
    """The judge, and a row for each training, repeat and method: which, and its `Figures`."""
    import torch
    from tqdm import tqdm

    from autoguide_fast.toy import fractal

    from .measures import Judge
    from .methods import FIRST_SEED, METHODS, sampled
    from .report import TRUTH
    from .threads import cores

    points, judge = arguments.points, Judge(fractal("A"))

    def row(training: int | None, repeat: int, name: str) -> dict:
        if training is None:
            generator = torch.Generator().manual_seed(1 + repeat)
            drawn = judge.data.sample(points, generator)
        else:
            first = FIRST_SEED + repeat * points
            drawn = sampled(trainings[training], METHODS[name], range(first, first + points))
        which = {"training": training, "repeat": repeat, "method": name, "points": points}
        return {**which, **dataclasses.asdict(judge.measure(drawn))}

    jobs: list[tuple[int | None, int, str]] = [(None, r, TRUTH) for r in range(arguments.repeats)]
    jobs += itertools.product(range(len(trainings)), range(arguments.repeats), METHODS)
    with ThreadPoolExecutor(cores()) as pool:
        done = pool.map(lambda job: row(*job), jobs)
        bar = tqdm(done, "sampling", len(jobs), unit="set", disable=arguments.quiet)
        try:
            return judge, list(bar)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write(
    arguments: argparse.Namespace, nets: dict[str, ToyModel], judge: Judge, rows: list[dict]
) -> None:
    """Prints and writes what was measured, and draws the figures with the first training's nets."""
    from .methods import NUM_STEPS
    from .pictures import densities_picture, points_picture
    from .report import NOTE, summary, table, verdict

    found, out = summary(rows), arguments.out
    claims = verdict(found)
    means = {
        method: {name: dataclasses.asdict(spread) for name, spread in figures.items()}
        for method, figures in found.items()
    }
    text = json.dumps({"methods": means, "claims": claims, "sets": rows}, indent=1) + "\n"
    write_atomically(out / "toy.json", lambda path: path.write_text(text))
    footnote = (
        f"{arguments.points:,} points per set; {arguments.trainings} "
        f"training{'s' * (arguments.trainings > 1)}, {arguments.repeats} "
        f"set{'s' * (arguments.repeats > 1)} of seeds each; {NUM_STEPS} Heun steps."
    )
    print(table(found), textwrap.fill(f"{footnote} {NOTE}", width=88), sep="\n\n", end="\n\n")
    for claim in claims:
        print(claim)
    points_picture(out / "points.png", nets, found, judge, footnote)
    densities_picture(out / "densities.png", nets)
    print(f"\nwritten to {out}: points.png, densities.png, toy.json, and the nets in nets/")
