"""The training loop: steps, snapshots, checkpoints, interruption and resumption of one net."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .durable import (
    checkpoint_files,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    write_atomically,
)
from .interruption import interruption
from .options import TrainOptions
from .processes import Processes
from .runlog import RunLog, make_folder, peak_memory_mib, progress_bar
from .snapshots import OPTIONS, SNAPSHOTS, save_average
from .step import Trainer

CHECKPOINTS = "checkpoints"
LOG_LINES = 500  # of a whole run, at most
CHECKPOINT_MINUTES = 10.0
# A loss that is not finite may be one bad batch; as many in a row are a run that has diverged.
BAD_LOSSES = 10


def train(
    options: TrainOptions,
    out: str | os.PathLike,
    resume: bool = False,
    progress: bool = True,
    stop: Callable[[int], bool] | None = None,
    *,
    net: str = "main",
    log: RunLog | None = None,
    processes: Processes | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    on_snapshot: Callable[[Trainer], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> Trainer:
    """Trains to `options.duration`, leaving snapshots and checkpoints in the folder `out`.

    Written there: `options.json`, `log.jsonl` (see `RunLog`), `checkpoints/NIMG-DIGEST.pt` (the
    newest two) and `snapshots/NIMG-SIGMA_REL.safetensors`. Each file is written whole under
    another name and then renamed, so that whatever happens the last one stays readable. Ctrl-C
    (or SIGTERM) ends the run after the step in progress and saves it; a second Ctrl-C ends it
    at once.

    Args:
        options: what to train.
        out: folder, made if missing.
        resume: continue the run in `out`, from its newest checkpoint that is not damaged.
        progress: show a bar with loss, images per second and time left.
        stop: asked after every step with the images seen; True ends the run as Ctrl-C does.
        net: what the log and the bar call this net.
        log: where to log; default: `log.jsonl` in `out`.
        processes: those that train together; default: this one alone.
        checkpoint_minutes: save this often, and at every snapshot.
        on_snapshot: called after each snapshot, in every process.
        on_start: called in the first process, when nothing speaks against the run any more.

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
    with processes.speaking_once():
        check_folder(out, resume, has_run(out))
        trainer = Trainer(options, processes=processes)
        report = _warn if processes.first else (lambda text: None)
        for note in getattr(trainer.source, "notes", ()):
            report(note)
        if resume:
            trainer.load_state_dict(load_checkpoint(out / CHECKPOINTS, report))
        else:
            trainer.know_data()
    processes.wait()  # nobody writes before all have read
    if processes.first:
        prepare_folder(out, options)
        if on_start is not None:
            on_start()
    own_log = log is None
    log = RunLog(out, processes.first) if own_log else log
    log.rewind(net, trainer.nimg)
    try:
        _run(trainer, out, net, log, progress, stop, checkpoint_minutes * 60, on_snapshot)
    finally:
        trainer.close()
        if own_log:
            log.close()
    return trainer


def _run(trainer, out, net, log, progress, stop, checkpoint_seconds, on_snapshot) -> None:
    options, processes = trainer.options, trainer.processes
    snapshot_marks = marks(options, options.snapshots)
    log_marks = snapshot_marks | marks(options, LOG_LINES)
    bar = progress_bar(net, options.duration, trainer.nimg, progress and processes.first)
    losses: list[float] = []
    bad = 0
    saved = logged = sitting = time.perf_counter()
    images = 0
    before = trainer.seconds
    with interruption() as interrupted, bar:
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
            trainer.seconds = before + now - sitting
            images += options.batch
            speed = images / max(now - logged, 1e-9)
            bar.update(options.batch)
            bar.set_postfix(loss=f"{losses[-1]:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
            wanted = interrupted() or (stop is not None and stop(trainer.nimg))
            late = now - saved >= checkpoint_seconds
            # Every process must stop and save at the same step.
            wanted, late = processes.sum(wanted, late and processes.first)
            if trainer.nimg in log_marks:
                log.write(
                    net=net, nimg=trainer.nimg, loss=sum(losses) / len(losses),
                    lr=trainer.lr,
                    gradient_norm=trainer.gradient_norm, images_per_s=round(speed, 3),
                    seconds=round(trainer.seconds, 3), repaired_steps=trainer.repaired_steps,
                    skipped_steps=trainer.skipped_steps,
                    memory_mib=round(peak_memory_mib(trainer.device), 1),
                )  # fmt: skip
                losses, images, logged = [], 0, now
            done = trainer.nimg >= options.duration
            if trainer.nimg in snapshot_marks:
                for i, sigma_rel in enumerate(trainer.ema.sigma_rels):
                    average = trainer.average(i)  # which takes all processes
                    if processes.first:
                        save_average(average, out, trainer.nimg, sigma_rel)
            if wanted or late or done or trainer.nimg in snapshot_marks:
                state = trainer.state_dict()
                if processes.first:
                    save_checkpoint(out / CHECKPOINTS, trainer.nimg, state)
                del state
                processes.wait()
                saved = time.perf_counter()
            if trainer.nimg in snapshot_marks and on_snapshot is not None:
                on_snapshot(trainer)
            if wanted:
                break


def has_run(out: Path) -> bool:
    """Whether a run was begun in a folder and has a checkpoint to go on from."""
    return bool(checkpoint_files(out / CHECKPOINTS))


def check_folder(out: Path, resume: bool, begun: bool) -> None:
    """Raises ValueError where a run cannot begin in the folder `out`, or go on if it has begun."""
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


def prepare_folder(out: Path, options: TrainOptions) -> None:
    """Makes the folder of a run and writes its options into it.

    Raises:
        OSError: that is not possible.
    """
    make_folder(out / SNAPSHOTS)
    for folder in (out, out / SNAPSHOTS, out / CHECKPOINTS):
        remove_leftovers(folder)
    text = json.dumps(options.as_dict(), indent=1) + "\n"
    write_atomically(out / OPTIONS, lambda path: path.write_text(text))


def marks(options: TrainOptions, count: int) -> set[int]:
    """Image counts that split a run evenly, at whole steps, the last one included."""
    count = min(count, options.steps)
    return {round(options.steps * (k + 1) / count) * options.batch for k in range(count)}


@functools.cache  # main net and guide have the same to say of their data
def _warn(text: str) -> None:
    print(f"train: {text}", file=sys.stderr)
