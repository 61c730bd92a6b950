"""`train --guide auto`: candidates for a guide within a budget, and the one that scores best."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.run_folder import OPTIONS, SNAPSHOTS
from autoguide_fast.diagnosis import SIGMAS
from autoguide_fast.files import with_checksum, without_checksum, write_atomically
from autoguide_fast.guidance.saved import place_beside

from . import guide_scores
from .durable import remove_leftovers
from .estimate import estimate
from .guide_scores import AT_ONCE, IMAGES, Candidate
from .loop import marks
from .options import TrainOptions
from .presets import PRESETS, SIZES, preset, sibling
from .runlog import make_folder
from .snapshots import average_path
from .training_data import shape_of

AUTO = "auto"
BUDGET = 0.05
PUBLISHED = 0.036  # what the paper's guides cost, in shares of the main net's training
CANDIDATES = "guides"  # folder of the candidates' runs, inside that of the main net
TABLE = "guide.json"  # which guide was chosen, and why

_NARROWER = (2, 3)  # the main net's width through these
_LENGTHS = 4  # at which a candidate's run is looked at
# The main net's past, as its duration through these: at T/2 it still differs enough to guide.
_PAST = (2, 3, 4, 6, 8, 12, 16)
_IMAGES_SAVED = 1000  # that the weights for `--guidance auto` are found on


@dataclass(frozen=True)
class AutoGuide:
    """A guide that is yet to be chosen.

    runs: the nets that are trained as candidates, by their channels in words.
    past: images after which the main net itself is a candidate.
    costs: of one image in each run, in shares of the main net's whole training.
    budget: what the runs may cost together, likewise.
    asked: what the job was asked for, to be asked again.
    """

    runs: dict[str, TrainOptions]
    past: tuple[int, ...]
    costs: dict[str, float]
    budget: float
    asked: dict

    def in_precision(self, precision: str) -> AutoGuide:
        """The same candidates, trained in another type."""
        runs = {k: dataclasses.replace(run, precision=precision) for k, run in self.runs.items()}
        return dataclasses.replace(self, runs=runs)

    @property
    def cost(self) -> float:
        """What all runs cost, in shares of the main net's training."""
        return sum(self.costs[name] * run.duration for name, run in self.runs.items())


def auto_guide(
    main: TrainOptions,
    main_preset: str | None = None,
    changes: dict | None = None,
    budget: float = BUDGET,
) -> AutoGuide:
    """The candidates for the guide of a main net.

    Its own past costs nothing; nets of half and a third of its width, or the nearest that can be
    built (of a preset: smaller sizes of it), share the budget equally. All are counted in
    multiply-accumulates (see `estimate`).

    Args:
        main: the main net's options.
        main_preset: the preset that they come from, whose smaller sizes have rates of their own.
        changes: options of the candidates that differ from what they would have.
        budget: what the runs may cost together, in shares of the main net's training.

    Raises:
        ValueError: a budget that is no share, or that not one step fits into; changes of what is to
            be chosen; fewer snapshots than a past takes.
    """
    if not 0 < budget <= 1:
        raise ValueError(
            f"train: guide_budget must be a share of the main net's training in (0, 1], got "
            f"{budget}; {BUDGET} is usual"
        )
    changes = changes or {}
    if "channels" in changes:
        raise ValueError(
            "train: guide_set must leave channels out where the guide is auto, got "
            f"channels={changes['channels']}; name the size instead of auto, as in --guide 8:T/4"
        )
    if main.snapshots < 2:
        raise ValueError(
            f"train: snapshots must be >= 2 where the guide is auto, got {main.snapshots}; the "
            "main net's past is among the candidates: raise it"
        )
    shape = shape_of(main)
    whole = estimate(main, *shape).training_macs
    runs: dict[str, TrainOptions] = {}
    costs: dict[str, float] = {}
    for divisor in _NARROWER:
        run = _nearest(main, main.channels / divisor, shape, main_preset, changes)
        if run is not None and (name := str(run.channels)) not in runs:
            runs[name] = run
            costs[name] = estimate(run, *shape).training_macs / run.duration / whole
    for name, run in runs.items():
        steps = int(budget / len(runs) / costs[name]) // main.batch
        if steps < 1:
            needed = len(runs) * max(costs.values()) * main.batch
            raise ValueError(
                f"train: guide_budget must be enough for a step of each candidate, {needed:.2g}, "
                f"got {budget}; raise it, or --duration"
            )
        runs[name] = dataclasses.replace(
            run, duration=min(steps, main.steps) * main.batch, snapshots=_LENGTHS
        )
    stored = sorted(marks(main, main.snapshots) - {main.duration})
    past = {min(stored, key=lambda nimg: abs(nimg - main.duration / k)) for k in _PAST}
    past = {nimg for nimg in past if 2 * nimg <= main.duration} or {stored[0]}
    asked = {
        "guide": AUTO,
        "preset": main_preset,
        "guide_set": changes,
        "guide_budget": budget,
    }
    return AutoGuide(runs, tuple(sorted(past)), costs, budget, asked)


def _nearest(
    main: TrainOptions,
    wanted: float,
    shape: tuple[int, int, int],
    main_preset: str | None,
    changes: dict,
) -> TrainOptions | None:
    """A narrower net of a width near the one wanted, or None where there is none."""
    rows = {}
    for size in SIZES:
        if main_preset and (name := sibling(main_preset, size)) in PRESETS:
            row = preset(name)
            rows[row["channels"]] = {k: row[k] for k in ("lr", "decay", "dropout")}
    widths = [c for c in rows if c < main.channels] or range(1, main.channels)
    for channels in sorted(widths, key=lambda c: (abs(c - wanted), -c)):
        # Other first weights, so that the errors of the two are their own.
        new = {"channels": channels, "seed": main.seed + 1, "head_after": ""}
        new |= {**rows.get(channels, {}), **changes}
        run = dataclasses.replace(main, **new)
        try:
            estimate(run, *shape)
        except ValueError:
            continue  # this width does not divide into heads
        return run
    return None


def kept(out: Path, job: dict) -> dict | None:
    """The table of the guide that was chosen for just this job, None where there is none yet."""
    try:
        table = without_checksum(json.loads((out / TABLE).read_bytes()))
        chosen = table["candidates"][table["chosen"]]
        file = average_path(out / "guide", chosen["images"], chosen["ema"])
        return table if table["job"] == json.loads(json.dumps(job)) and file.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # it is made again, the same


def choose(
    out: Path,
    main: TrainOptions,
    auto: AutoGuide,
    job: dict,
    device: torch.device,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict | None:
    """Scores all candidates, keeps the best as the guide in `out/guide`, and says why.

    Beside the main net's average, the weights for `--guidance auto` are kept, and in `guide.json`
    what each candidate scored. The same whenever and however often it is done.

    Args:
        out: folder of the job, where the main net and all candidates are trained.
        main, auto, job: what it is.
        device: that evaluates the nets.
        interrupted: asked now and then whether to stop.

    Returns:
        What `guide.json` holds, or None where it was interrupted.
    """
    if (table := kept(out, job)) is not None:
        return table
    model_file = average_path(out, main.duration, main.ema[0])
    model = checkpoints.load(model_file, device)
    samples = guide_scores.samples_of(main, IMAGES)
    candidates = _candidates(out, main, auto)
    found: list[dict[str, float]] = []
    for first in range(0, len(candidates), AT_ONCE):
        if interrupted():
            return None
        part = candidates[first : first + AT_ONCE]
        found += guide_scores.scores(model, part, samples, main.seed, device)
    # Of equals the cheapest, and of these the first.
    by = list(samples)[-1]  # held-out images where there are such
    best = min(range(len(found)), key=lambda i: (-found[i][by], candidates[i].cost))
    _keep(out, main, auto, candidates[best])
    guide = checkpoints.load(candidates[best].file, device)
    many = guide_scores.samples_of(main, _IMAGES_SAVED)
    guide_scores.diagnosed(model, {"guide": guide}, many, SIGMAS, main.seed, device).save(
        place_beside(model_file)
    )
    table = {
        "job": job,
        "score": f"signed share of the main net's squared error removed, {by} images",
        "images": {name: len(y) for name, (y, _) in samples.items()},
        "main_ema": main.ema[0],
        "budget": auto.budget,
        "spent": auto.cost,
        "published": PUBLISHED,
        "candidates": [
            {
                "net": c.net,
                "channels": c.channels,
                "images": c.nimg,
                "ema": c.ema,
                "cost": c.cost,
                "gain": gain,
            }
            for c, gain in zip(candidates, found, strict=True)
        ],
        "chosen": best,
    }
    text = json.dumps(with_checksum(table), indent=1) + "\n"
    write_atomically(out / TABLE, lambda path: path.write_text(text))
    return table


def _candidates(out: Path, main: TrainOptions, auto: AutoGuide) -> list[Candidate]:
    found = [
        Candidate("past", average_path(out, nimg, ema), main.channels, nimg, ema, 0.0)
        for nimg in auto.past
        for ema in main.ema
    ]
    for name, run in auto.runs.items():
        folder = out / CANDIDATES / name
        found += [
            Candidate(
                f"{name} channels",
                average_path(folder, nimg, ema),
                run.channels,
                nimg,
                ema,
                auto.costs[name] * nimg,
            )
            for nimg in sorted(marks(run, run.snapshots))
            for ema in run.ema
        ]
    return found


def _keep(out: Path, main: TrainOptions, auto: AutoGuide, chosen: Candidate) -> None:
    """Makes `out/guide` the run of a candidate up to the moment that was chosen."""
    options = main if chosen.net == "past" else auto.runs[chosen.net.split()[0]]
    target = out / "guide"
    make_folder(target / SNAPSHOTS)
    remove_leftovers(target / SNAPSHOTS)
    source = chosen.file.parent
    wanted = {
        path.name: path
        for path in source.glob("[0-9]*.safetensors")
        if int(path.name.partition("-")[0]) <= chosen.nimg
    }
    for path in (target / SNAPSHOTS).glob("[0-9]*.safetensors"):
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        write_atomically(target / SNAPSHOTS / name, functools.partial(shutil.copyfile, path))
    # The last of the averages is what a guide is taken from.
    lengths = [*(ema for ema in options.ema if ema != chosen.ema), chosen.ema]
    values = options.as_dict() | {"duration": chosen.nimg, "ema": lengths}
    text = json.dumps(values, indent=1) + "\n"
    write_atomically(target / OPTIONS, lambda path: path.write_text(text))


def report(table: dict) -> str:
    """The candidates, best first, as text."""
    rows: Sequence[dict] = table["candidates"]
    sets = list(table["images"])
    by = sets[-1]
    order = sorted(range(len(rows)), key=lambda i: (-rows[i]["gain"][by], rows[i]["cost"]))
    heads = "".join(f"{name:>12}" for name in sets)
    lines = [
        "guides by the share of the main net's squared error that they remove, less what they "
        f"remove by weights below 1, on {table['images'][by]} {by} images",
        f"{'net':>14}{'images':>14}{'EMA':>8}{'cost':>9}{heads}",
    ]
    for i in order:
        row = rows[i]
        gains = "".join(f"{100 * row['gain'][name]:10.3f} %" for name in sets)
        lines.append(
            f"{row['net']:>14}{row['images']:14,}{row['ema']:8.3g}{100 * row['cost']:7.2f} %{gains}"
            + ("  kept" if i == table["chosen"] else "")
        )
    lines.append(
        f"the guide's training cost {100 * rows[table['chosen']]['cost']:.1f} % of the main net's, "
        f"that of all candidates {100 * table['spent']:.1f} %, counted in MAC; the paper's guides "
        f"cost {100 * table['published']:.1f} %"
    )
    return "\n".join(lines)
