"""`train --guide auto`: the candidates for a guide, within a budget."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .estimate import evaluation_macs
from .loop import marks
from .options import TrainOptions
from .presets import PRESETS, SIZES, preset, sibling
from .training_data import shape_of

AUTO = "auto"
BUDGET = 0.05
CANDIDATES = "guides"  # folder of the candidates' runs, inside that of the main net

_NARROWER = (2, 3)  # the main net's width through these
_LENGTHS = 4  # at which a candidate's run is looked at
# The main net's past, as its duration through these: at T/2 it still differs enough to guide.
_PAST = (2, 3, 4, 6, 8, 12, 16)


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
    # Of one image in training, in shares of the main net's.
    whole = evaluation_macs(main, *shape) * main.duration
    runs: dict[str, TrainOptions] = {}
    costs: dict[str, float] = {}
    for divisor in _NARROWER:
        run = _nearest(main, main.channels / divisor, shape, main_preset, changes)
        if run is not None and (name := str(run.channels)) not in runs:
            runs[name] = run
            costs[name] = evaluation_macs(run, *shape) / whole
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
            evaluation_macs(run, *shape)
        except ValueError:
            continue  # this width does not divide into heads
        return run
    return None
