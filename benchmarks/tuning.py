"""`autoguide-fast tune` against a full grid: is a tenth of the images enough?

    autoguide-fast train --out runs/main --duration 76800 --snapshots 12
    python benchmarks/tuning.py --run runs/main --out tuning.json

The grid is weight x the guide's training time x its EMA length, for the run's last net; the guide
is an earlier state of it. Both searches draw the same seeds. The best of each, and no guidance, are
then measured on seeds that neither has seen. `--out` keeps the grid and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np

import autoguide_fast
from autoguide_fast import checkpoints
from autoguide_fast.cli import main as command_line
from autoguide_fast.files import write_atomically
from autoguide_fast.trainer.tune_space import LINEAR, Task, Trials
from autoguide_fast.trainer.yardstick import yardstick

WEIGHTS = (1.2, 1.4, 1.6, 1.8, 2.0, 2.5)
SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)  # of the run, at which the guide stood
EMAS = (0.05, 0.10, 0.15)
MAIN_EMA, STEPS, FRESH_SEED = 0.05, 8, 60_000_000


def main() -> None:
    """Search the grid, then tune, then measure what they found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, help="a run of `train` on the digits")
    parser.add_argument("--images", type=int, default=1000, help="of each point of the grid")
    parser.add_argument("--fresh", type=int, default=5000, help="of each repeat of the comparison")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="how often to tune, on other seeds")
    parser.add_argument("--trials", type=int, default=13, help="of `tune`")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    run = checkpoints.Snapshots(arguments.run)
    net = folder / "main.safetensors"
    checkpoints.save(run.net(run.times[-1], MAIN_EMA), net, nimg=run.times[-1], sigma_rel=MAIN_EMA)
    limits = (1.0, max(WEIGHTS) + 0.5)
    task = Task(
        main=str(net),
        guides=(arguments.run,),
        data="digits",
        reference=None,
        detector_file=None,
        metric="fd_pixels",
        variety=None,
        images=arguments.images,
        fewest=arguments.images,
        steps=STEPS,
        seed=1_000_000,
        guidance=limits,
        kinds=(LINEAR,),
        interval=False,
    )
    trials = Trials(task)
    kept = arguments.out.with_suffix(".parts")
    kept.mkdir(parents=True, exist_ok=True)

    file = kept / "grid.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def measured(guidance: float, nimg: int, ema: float) -> float:
        key = f"{guidance:g} {nimg} {ema:g}"
        if key not in known:
            figures = list(trials.figures(_choice(guidance, nimg, ema)))[-1][1]
            known[key] = figures["fd_pixels"]
            write_atomically(file, lambda path: path.write_text(json.dumps(known, indent=1)))
        return known[key]

    times = [run.nearest_time(share) for share in SHARES]
    grid = [
        (measured(w, nimg, ema), w, nimg, ema)
        for nimg, ema, w in itertools.product(times, EMAS, WEIGHTS)
    ]
    found: dict = {"grid": {"points": len(grid), "images": len(grid) * arguments.images}}
    fd, *best = min(grid)
    found["grid"] |= {"search_fd": fd, "best": best, "fresh": _fresh(trials, best, arguments)}
    none = [1.0, times[0], EMAS[0]]
    found["no guidance"] = _fresh(trials, none, arguments)
    for number in range(arguments.seeds):
        out = kept / f"tuned{number}"
        command = ["tune", "--main", str(net), "--guide", arguments.run, "--data", "digits"]
        command += ["--images", str(arguments.images), "--fewest", str(arguments.images // 4)]
        command += ["--steps", str(STEPS), "--seed", str(1_000_000 * (number + 1))]
        command += ["--guidance", *map(str, limits), "--trials", str(arguments.trials)]
        command += ["--out", str(out)]
        if command_line(command):
            raise SystemExit(1)
        report = json.loads((out / "tune.json").read_text())
        choice = report["best"]["choice"]
        best = [choice["guidance"], choice["guide_nimg"], choice["guide_ema"]]
        found[f"tune {number}"] = {
            "images": report["sampled"],
            "best": best,
            "search_fd": report["best"]["figures"]["fd_pixels"],
            "fresh": _fresh(trials, best, arguments),
        }
    text = json.dumps(found, indent=1) + "\n"
    write_atomically(arguments.out, lambda path: path.write_text(text))
    print(text)


def _choice(guidance: float, nimg: int, ema: float) -> dict:
    return {
        "guidance": guidance,
        "main_ema": MAIN_EMA,
        "guide": 0,
        "guide_nimg": nimg,
        "guide_ema": ema,
        "kind": LINEAR,
        "interval": None,
    }


def _fresh(trials: Trials, best: list, arguments: argparse.Namespace) -> list[float]:
    """The distance to the training digits in each repeat, on seeds of no search."""
    main_net, guide = trials.nets(_choice(*best))
    measure, count = yardstick("digits"), arguments.fresh
    values = []
    for repeat in range(arguments.repeats):
        first = FRESH_SEED + repeat * count
        images = autoguide_fast.sample(
            main_net,
            guide,
            best[0],
            class_labels=measure.classes(count),
            seeds=range(first, first + count),
            num_steps=STEPS,
            batch_size=128,
        )
        values.append(round(float(np.float64(measure.training.frechet(images))), 5))
    return values


if __name__ == "__main__":
    main()
