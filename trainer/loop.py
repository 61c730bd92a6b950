"""The training loop: steps, snapshots, checkpoints, interruption and resumption of one net."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoguide_fast.checkpoints.run_folder import OPTIONS, SNAPSHOTS
from autoguide_fast.files import write_atomically
from autoguide_fast.locks import sole_writer

from .durable import (
    checkpoint_files,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from .interruption import interruption
from .options import TrainOptions
from .precision import as_stored
from .processes import Processes
from .runlog import RunLog, make_folder, peak_memory_mib, progress_bar
from .snapshots import average_path, check_snapshots, save_average
from .trainer import Trainer
from .training_data import attention_note

CHECKPOINTS = "checkpoints"
LOG_LINES = 500  # of a whole run, at most
CHECKPOINT_MINUTES = 10.0
# A loss that is not finite may be one bad batch; as many in a row are a run that has diverged.
BAD_LOSSES = 10


@dataclass(frozen=True)
class Sitting:
    """What a job has while it runs: the folder's lock, its log, and an ear for signals."""

    log: RunLog
    interrupted: Callable[[], bool]


@contextlib.contextmanager
def sitting(out: Path, processes: Processes) -> Iterator[Sitting]:
    """Takes a folder for this job alone, which writes there until it leaves.

    Raises:
        ValueError: another job writes there.
        OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if processes.first:
            try:
                stack.enter_context(sole_writer(out, "train"))
            except (OSError, ValueError) as error:
                problem = error
        if any(processes.sum(problem is not None)):
            with processes.speaking_once():
                raise problem or ValueError("the first process says it")
        log = stack.enter_context(contextlib.closing(RunLog(out, processes.first)))
        yield Sitting(log, stack.enter_context(interruption()))


def train(
    options: TrainOptions,
    out: str | os.PathLike,
    resume: bool = False,
    progress: bool = True,
    stop: Callable[[int], bool] | None = None,
    *,
    net: str = "main",
    within: Sitting | None = None,
    processes: Processes | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    on_snapshot: Callable[[Trainer], None] | None = None,
    on_start: Callable[[], None] | None = None,
    job: dict | None = None,
) -> Trainer:
    """Trains to `options.duration`, leaving snapshots and checkpoints in the folder `out`.

    Written there: `options.json`, `log.jsonl` (see `RunLog`), `checkpoints/NIMG-DIGEST.pt` (the
    newest two) and `snapshots/NIMG-SIGMA_REL.safetensors`. Each file is written whole under
    another name and then renamed, so that whatever happens the last one stays readable. Ctrl-C,
    SIGTERM or SIGHUP ends the run after the step in progress and saves it; a second one ends it
    at once.

    Args:
        options: what to train.
        out: folder, made if missing.
        resume: continue the run in `out`, from its newest checkpoint that is not damaged.
        progress: show a bar with loss, images per second and time left.
        stop: asked after every step with the images seen; True ends the run as Ctrl-C does.
        net: what the log and the bar call this net.
        within: the job that this net belongs to; default: a job of its own, in `out`.
        processes: those that train together; default: this one alone.
        checkpoint_minutes: save this often, and at every snapshot.
        on_snapshot: called after each snapshot, in every process.
        on_start: called in the first process, when nothing speaks against the run any more.
        job: what the job was asked for, kept in the checkpoints.

    Returns:
        The trainer in its last state; `trainer.nimg < options.duration` if it was interrupted.

    Raises:
        ValueError: `out` holds a run and `resume` is False, holds none and `resume` is True, or
            holds one with other options or data.
        OSError: a file could not be written; what was saved before is intact.
        FloatingPointError: the loss is no longer finite.
    """
    out = Path(out)
    processes = processes if processes is not None else Processes()
    with contextlib.ExitStack() as stack:
        with processes.speaking_once():
            check_folder(out, resume, has_run(out))
        within = within or stack.enter_context(sitting(out, processes))
        unlogged: list[float] = []
        with processes.speaking_once():
            check_folder(out, resume, has_run(out))
            report = warn if processes.first else (lambda text: None)
            state = load_checkpoint(out / CHECKPOINTS, report) if resume else None
            if state is not None:
                options = as_stored(options, state["options"])
            trainer = Trainer(options, processes=processes)
            stack.callback(trainer.close)
            options = trainer.options
            for note in getattr(trainer.dataset, "notes", ()):
                report(note)
            if trainer.precision_note:
                report(trainer.precision_note)
            if note := attention_note(options, trainer.dataset.resolution):
                report(note)
            if state is not None:
                trainer.load_state_dict(state)
                unlogged = list(state.get("unlogged_losses", ()))
                state = None
            else:
                trainer.know_data()
        processes.wait()  # nobody writes before all have read
        if processes.first:
            prepare_folder(out, options)
            if on_start is not None:
                on_start()
        if resume:
            _mend_snapshots(trainer, out)
        within.log.rewind(net, trainer.nimg)
        _run(
            trainer,
            out,
            net,
            within,
            unlogged,
            progress,
            stop,
            checkpoint_minutes * 60,
            on_snapshot,
            job,
        )
    return trainer


def _mend_snapshots(trainer: Trainer, out: Path) -> None:
    """Looks after the snapshots of a run that goes on; writes those of this moment again."""
    processes = trainer.processes
    found = check_snapshots(out, trainer.nimg) if processes.first else {}
    wrong = {path: f"damaged ({damage})" for path, damage in found.items()}
    passed = {m for m in marks(trainer.options, trainer.options.snapshots) if m <= trainer.nimg}
    mine = [average_path(out, trainer.nimg, s) for s in trainer.ema.sigma_rels]
    if processes.first and trainer.nimg in passed:
        wrong |= {path: "missing" for path in mine if not path.is_file()}
    if processes.first and passed and not any((out / SNAPSHOTS).glob("[0-9]*.safetensors")):
        warn(
            f"{out / SNAPSHOTS} holds none of the snapshots that the run has stored; restore "
            "them to reconstruct averages from all of them"
        )
    again = [path in wrong for path in mine]
    for i, wanted in enumerate(processes.sum(*again)):
        if wanted:
            average = trainer.average(i)  # which takes all processes
            if average is not None:
                path = save_average(average, out, trainer.nimg, trainer.ema.sigma_rels[i])
                warn(f"the snapshot {path} was {wrong.pop(path)}; it is written again")
    for path, what in wrong.items():
        warn(f"the snapshot {path} is {what}; restore it, or remove it to do without")


def _run(
    trainer: Trainer,
    out: Path,
    net: str,
    within: Sitting,
    losses: list[float],
    progress: bool,
    stop: Callable[[int], bool] | None,
    checkpoint_seconds: float,
    on_snapshot: Callable[[Trainer], None] | None,
    job: dict | None,
) -> None:
    """`train` between the first step and the last; `losses` are those not yet in the log."""
    options, processes = trainer.options, trainer.processes
    snapshot_marks = marks(options, options.snapshots)
    log_marks = snapshot_marks | marks(options, LOG_LINES)
    bar = progress_bar(net, options.duration, trainer.nimg, progress and processes.first)
    bad = 0
    saved = logged = began = time.perf_counter()
    images = 0
    before = trainer.seconds
    with bar:
        while trainer.nimg < options.duration:
            with processes.together():
                losses.append(trainer.step())
            bad = 0 if math.isfinite(losses[-1]) else bad + 1
            if bad == BAD_LOSSES:
                raise FloatingPointError(
                    f"train: loss must stay finite, got {losses[-1]} in {bad} steps in a row, by "
                    f"{trainer.nimg} images; start again with a lower --lr, or with --resume from "
                    f"the checkpoint in {out / CHECKPOINTS} if that is from before"
                )
            now = time.perf_counter()
            trainer.seconds = before + now - began
            images += options.batch
            speed = images / max(now - logged, 1e-9)
            bar.update(options.batch)
            bar.set_postfix(loss=f"{losses[-1]:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
            wanted = within.interrupted() or (stop is not None and stop(trainer.nimg))
            late = now - saved >= checkpoint_seconds
            # Every process must stop and save at the same step.
            wanted, late = processes.sum(wanted, late and processes.first)
            if trainer.nimg in log_marks:
                within.log.write(
                    net=net,
                    nimg=trainer.nimg,
                    loss=sum(losses) / len(losses),
                    precision=options.precision,
                    lr=trainer.lr,
                    gradient_norm=trainer.gradient_norm,
                    images_per_s=round(speed, 3),
                    seconds=round(trainer.seconds, 3),
                    repaired_steps=trainer.repaired_steps,
                    skipped_steps=trainer.skipped_steps,
                    memory_mib=round(peak_memory_mib(trainer.device), 1),
                    **_dropped_labels(trainer, len(losses) * options.batch),
                )
                losses, images, logged = [], 0, now
            done = trainer.nimg >= options.duration
            if trainer.nimg in snapshot_marks:
                for i, sigma_rel in enumerate(trainer.ema.sigma_rels):
                    average = trainer.average(i)  # which takes all processes
                    if average is not None:
                        save_average(average, out, trainer.nimg, sigma_rel)
            if wanted or late or done or trainer.nimg in snapshot_marks:
                state = trainer.state_dict()
                if processes.first:
                    state["unlogged_losses"] = losses  # so that a resumed run logs the same means
                    state["job"] = job
                    save_checkpoint(out / CHECKPOINTS, trainer.nimg, state)
                del state
                processes.wait()
                saved = time.perf_counter()
            if trainer.nimg in snapshot_marks and on_snapshot is not None:
                on_snapshot(trainer)
            if wanted:
                break


def _dropped_labels(trainer: Trainer, images: int) -> dict[str, int]:
    """How many of the last so many images were shown without their label, for the log."""
    if not trainer.options.label_dropout:
        return {}
    first = trainer.nimg - images
    return {"labels_dropped": int(trainer.dropped(first, images).sum())}


def has_run(out: Path) -> bool:
    """Whether a run was begun in a folder and has a checkpoint to go on from."""
    return bool(checkpoint_files(out / CHECKPOINTS))


def check_folder(out: Path, resume: bool, begun: bool) -> None:
    """Raises ValueError where a run cannot begin in the folder `out`, or go on if it has begun."""
    lost = None if has_run(out) else lost_run(out)
    if lost:
        raise ValueError(
            f"train: {out / CHECKPOINTS} must hold a checkpoint of the run that has been there, "
            f"got none beside {lost}; restore it from a backup, or choose another --out"
        )
    if resume and not begun:
        raise ValueError(
            f"train: out must hold a checkpoint to resume from, got {out} without one; leave out "
            "--resume to start there"
        )
    if not resume and begun:
        raise ValueError(
            f"train: out must be a folder without a run, got {out}; add --resume to go on with "
            "that run, or choose another folder"
        )


def lost_run(out: Path) -> Path | None:
    """A trace of a run whose checkpoints are gone, in a folder without any; None if there is none.

    A run makes the folder of its checkpoints first, before `options.json`, and writes a checkpoint
    with each snapshot, before it trains on. So one that was killed before its first checkpoint has
    an empty folder of them, and at most one snapshot.
    """
    if (out / OPTIONS).is_file() and not (out / CHECKPOINTS).is_dir():
        return out / OPTIONS
    snapshots = sorted((out / SNAPSHOTS).glob("[0-9]*.safetensors"))
    if len({path.name.partition("-")[0] for path in snapshots}) > 1:
        return snapshots[-1]
    return None


def prepare_folder(out: Path, options: TrainOptions) -> None:
    """Makes the folder of a run and writes its options into it.

    Raises:
        OSError: that is not possible.
    """
    for folder in (out / SNAPSHOTS, out / CHECKPOINTS):
        make_folder(folder)
    for folder in (out, out / SNAPSHOTS, out / CHECKPOINTS):
        remove_leftovers(folder)
    text = json.dumps(options.as_dict(), indent=1) + "\n"
    write_atomically(out / OPTIONS, lambda path: path.write_text(text))


def marks(options: TrainOptions, count: int) -> set[int]:
    """Image counts that split a run evenly, at whole steps, the last one included."""
    count = min(count, options.steps)
    return {round(options.steps * (k + 1) / count) * options.batch for k in range(count)}


@functools.cache  # main net and guide have the same to say of their data
def warn(text: str) -> None:
    """Says something that does not end the run."""
    print(f"train: {text}", file=sys.stderr)
