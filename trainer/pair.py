"""A main net and its guide as one job: the guide first, then the main net, in one log."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autoguide_fast.files import with_checksum, without_checksum, write_atomically

from . import guide_choice
from .auto_guide import CANDIDATES, AutoGuide
from .devices import choose_device
from .durable import load_checkpoint
from .grids import Grids
from .loop import (
    CHECKPOINT_MINUTES,
    CHECKPOINTS,
    check_folder,
    has_run,
    marks,
    sitting,
    train,
    warn,
)
from .options import AUTO, TrainOptions, refuse_changes
from .precision import as_stored, settled
from .presets import PRESETS, SIZES, preset, sibling
from .processes import Processes
from .runlog import last_logged
from .trainer import Trainer
from .training_data import image_channels, open_training_data

JOB = "job.json"
NO_GUIDE: dict = {"guide": None, "preset": None, "guide_set": {}}
GUIDE = "guide"  # folder of the guide's run, inside that of the main net

_SPEC = re.compile(r"(?:([a-z]+|\d+):)?T(?:/(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Guide:
    """What a job's guide is.

    options: how it is trained; None for a guide that is an earlier state of the main net.
    nimg: images it has been trained on.
    asked: what the job was asked for (`guide`, `preset`, `guide_set`), to be asked again.
    """

    options: TrainOptions | None
    nimg: int
    asked: dict


def parse_guide(
    spec: str, main: TrainOptions, main_preset: str | None = None, changes: dict | None = None
) -> Guide:
    """The guide that a specification asks for.

    Args:
        spec: `SIZE:T/K`, a net of another size trained for 1/K of the main net's duration T; SIZE
            is a size of the preset (`xs:T/8`) or a number of channels (`8:T/4`). `T/K` alone is
            the main net itself as it stood at T/K, which costs nothing.
        main: the main net's options.
        main_preset: the preset that they come from.
        changes: options of the guide that differ from what it would have.

    Raises:
        ValueError: not such a specification, or a size that the preset does not have.
    """
    match = _SPEC.fullmatch(spec)
    divisor = float(match[2] or 1) if match else 0.0
    if match is None or divisor < 1 or (match[1] is None and divisor == 1):
        raise ValueError(
            f"train: guide must be SIZE:T/K or T/K with K >= 1, got {spec!r}; xs:T/8 is the preset "
            "of size xs trained for an eighth as long, 8:T/4 a net of 8 channels, T/16 the main "
            "net as it stood after a sixteenth"
        )
    asked = {"guide": spec, "preset": main_preset, "guide_set": changes or {}}
    steps = max(1, round(main.steps / divisor))
    nimg = steps * main.batch
    size = match[1]
    if size is None:
        if changes:
            raise ValueError(
                f"train: guide_set must be left out where the guide is the main net's own past, "
                f"got {', '.join(changes)}; give the guide a size, as in xs:{spec}"
            )
        return Guide(None, _nearest_mark(main, nimg), asked)
    if size.isdecimal():
        row = {"channels": int(size)}
    else:
        name = sibling(main_preset, size) if main_preset else None
        if name not in PRESETS:
            sizes = [s for s in SIZES if main_preset and sibling(main_preset, s) in PRESETS]
            rule = "have one of the sizes " + ", ".join(sizes)
            if not sizes:
                rule = "have a number of channels where there is no --preset"
            example = sizes[0] if sizes else max(1, main.channels // 2)
            raise ValueError(f"train: guide must {rule}, got {spec!r}; for example {example}:T/8")
        names = ("channels", "lr", "decay", "dropout", "P_mean", "P_std")
        row = {k: v for k, v in preset(name).items() if k in names}
    row.update(
        duration=nimg,
        snapshots=max(1, round(main.snapshots / divisor)) if main.snapshots else 0,
        seed=main.seed + 1,  # other first weights, so that the errors of the two are their own
    )
    row = {"head_after": "", **row, **(changes or {})}  # which would be a guide's guide
    return Guide(dataclasses.replace(main, **row), nimg, asked)


def _nearest_mark(main: TrainOptions, nimg: int) -> int:
    if not main.snapshots:
        raise ValueError(
            "train: snapshots must be >= 1 where the guide is the main net's own past, got 0; "
            "raise it"
        )
    return min(marks(main, main.snapshots), key=lambda mark: abs(mark - nimg))


def stored_job(out: Path, report: Callable[[str], object]) -> dict:
    """What the job in a folder was asked for, and the main net's options; {} if there is none.

    It is in `job.json` and in every checkpoint, which is asked where the file is missing or
    damaged. Checkpoints of earlier versions know the options of their own net alone: then `guide`
    is not among what is returned.

    Args:
        out: the folder of the job.
        report: told, in a sentence, of a file that is damaged or missing.

    Raises:
        ValueError: nothing there says what the job was.
    """
    path = out / JOB
    if not path.is_file():
        damage = "missing"
    else:
        try:
            job = json.loads(path.read_bytes())
            if isinstance(job, dict) and {"main", *NO_GUIDE} <= job.keys():
                return without_checksum(job)
            damage = "damaged (it is not a job)"
        except (OSError, ValueError) as error:
            damage = f"damaged ({error})"
    runs = [folder for folder in (out, out / GUIDE) if has_run(folder)]
    for folder in runs:
        state = load_checkpoint(folder / CHECKPOINTS, lambda text: None)
        job = state.get("job") or ({"main": state["options"]} if folder == out else None)
        if job:
            # A net that was trained by itself, without a job, never had such a file.
            if state.get("job") or damage != "missing":
                report(f"{path} is {damage}; the checkpoint in {folder} says what it said")
            return job
    if runs:
        raise ValueError(
            f"train: {path} must say what the job was, got one that is {damage}; restore it, or "
            "choose another --out"
        )
    return {}


@dataclass
class Result:
    """What came of a job: the trainers, `guide` None where there is no separate one.

    choice: what `guide.json` holds where the guide was chosen among candidates.
    """

    main: Trainer | None
    guide: Trainer | None
    finished: bool
    choice: dict | None = None

    @property
    def guide_share(self) -> float | None:
        """The guide's training time in shares of the main net's, as measured."""
        if self.guide is None or self.main is None or not self.main.seconds:
            return None
        return self.guide.seconds / self.main.seconds


def train_pair(
    main: TrainOptions,
    guide: Guide | AutoGuide | None,
    out: str | os.PathLike,
    resume: bool = False,
    progress: bool = True,
    processes: Processes | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    grid: int = 0,
    grid_guidance: float = 2.0,
    stop: Callable[[int], bool] | None = None,
) -> Result:
    """Trains the guide into `out/guide` and then the main net into `out`, with one log in `out`.

    The guide, which is the cheaper, comes first: so it is there to draw guided samples from while
    the main net trains, and only one net at a time has gradients and moments in memory. A guide
    that is yet to be chosen (`auto_guide`) comes after the main net, by which it is chosen.

    Args:
        main, guide: what to train; guide None trains the main net alone. Where the main net's
            precision is "auto", the guide takes what is found for it.
        out, resume, progress, processes, checkpoint_minutes, stop: as for `loop.train`; resume goes
            on with whichever net was in training.
        grid: images in a grid of samples at each snapshot; 0 draws none.
        grid_guidance: guidance weight of the guided half of the grid.

    Raises:
        ValueError, OSError, FloatingPointError: as `loop.train`.
    """
    out = Path(out)
    processes = processes if processes is not None else Processes()
    own = guide.options if isinstance(guide, Guide) else None
    asked = guide.asked if guide is not None else NO_GUIDE
    guide_out = out / GUIDE
    begun = has_run(out) or (own is not None and has_run(guide_out))

    def check() -> None:
        choose_device(main, processes)
        check_folder(out, resume, begun)
        if own is not None:
            check_folder(guide_out, has_run(guide_out), has_run(guide_out))
            if has_run(out) and not has_run(guide_out):
                raise ValueError(
                    f"train: {guide_out} must hold the run of the guide, which comes before the "
                    "main net, got none; restore it from a backup, or choose another --out"
                )

    with processes.speaking_once():
        check()
    with sitting(out, processes) as within:
        with processes.speaking_once():
            check()  # nobody else writes now
            report = warn if processes.first else (lambda text: None)
            stored = stored_job(out, report) if begun else {}
            if stored:
                main = as_stored(main, stored["main"])
                before, now = main.changes(stored["main"])
                known = {k: v for k, v in asked.items() if k in stored}
                refuse_changes(before | {k: stored[k] for k in known}, now | known)
            if main.precision == AUTO:
                data = open_training_data(main)
                shape = data.resolution, image_channels(data), data.num_classes * main.labelled
                main, note = settled(main, shape, processes, choose_device(main, processes))
                report(str(note))
            asks = "precision" in asked["guide_set"]  # for a type of its own
            if own is not None and own.precision == AUTO and not asks:
                own = dataclasses.replace(own, precision=main.precision)
            if isinstance(guide, AutoGuide) and not asks:
                guide = guide.in_precision(main.precision)
        processes.wait()  # nobody writes before all have read
        job = {"main": main.as_dict(), **asked}
        text = json.dumps(with_checksum(job), indent=1) + "\n"
        grids = Grids(out, within.log, grid, grid_guidance)
        shared: dict = {
            "progress": progress,
            "processes": processes,
            "within": within,
            "stop": stop,
            "checkpoint_minutes": checkpoint_minutes,
            "job": job,
            "on_start": lambda: write_atomically(out / JOB, lambda p: p.write_text(text)),
        }
        result = Result(None, None, finished=False)
        if own is not None:
            result.guide = train(
                own,
                guide_out,
                has_run(guide_out),
                net="guide",
                on_snapshot=grids.drawer("guide"),
                **shared,
            )
            # The signal may have come with the guide's last step.
            if result.guide.nimg < own.duration or any(processes.sum(within.interrupted())):
                return result
            result.guide.release()
            grids.guide = result.guide.average(-1)
        elif isinstance(guide, Guide):
            grids.guide_from = guide.nimg
        logged = last_logged(out, "main")
        if processes.first and logged and not has_run(out):
            warn(
                f"the main net, which the log knows up to {logged} images, was not saved before "
                "it was stopped; it begins anew"
            )
        result.main = train(
            main, out, has_run(out), net="main", on_snapshot=grids.drawer("main"), **shared
        )
        result.finished = result.main.nimg >= main.duration
        if not isinstance(guide, AutoGuide) or not result.finished:
            return result
        result.finished = False
        result.main.release()
        for name, options in guide.runs.items():
            if any(processes.sum(within.interrupted())):
                return result
            folder = out / CANDIDATES / name
            trained = train(options, folder, has_run(folder), net=f"guide of {name}", **shared)
            if trained.nimg < options.duration:
                return result
        steps = guide_choice.choosing(out, main, guide, job, choose_device(main, processes))
        while result.choice is None:
            if any(processes.sum(within.interrupted())):
                return result
            result.choice = processes.from_first(lambda: next(steps))
        result.finished = True
    return result
