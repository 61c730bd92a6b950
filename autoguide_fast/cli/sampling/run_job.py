"""One job of `sample` from its options to the finished output, with whoever works along."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...claims import Claims, sharing
from . import manifest, processes
from .job import Job
from .options import Sampling
from .outputs import FileOutput, FolderOutput, open_output
from .progress import Progress
from .work import Worker

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended
_SECONDS = 0.2  # between looks at what the others have done


@dataclass(frozen=True)
class Running:
    """The options on which the images do not depend."""

    out: Path
    device: str | None
    accept_licence: bool
    quiet: bool


def run_all(
    samplings: Sequence[Sampling], running: Running, expected: dict[str, Any] | None
) -> int:
    """Do one job after the other in the same output; returns the exit code.

    Args:
        samplings: the options of each.
        running: the others.
        expected: the manifest that is repeated, or None.
    """
    for i, sampling in enumerate(samplings):
        with processes.speaking_once():
            job = Job(sampling, running.accept_licence)
            output = open_output(running.out, job)
            if isinstance(output, FileOutput) and len(samplings) > 1:
                raise ValueError(
                    "sample: --out must be a folder where the manifest has several jobs, got "
                    f"{running.out} for {len(samplings)}; name a folder"
                )
            if expected is not None:
                manifest.check_repeats(job, expected)
            device = processes.own_device(running.device)
        if expected is not None and processes.rank() == 0:
            _say_differences(expected["jobs"][i], device)
        if code := _run(job, output, device, running.quiet):
            return code
    return 0


def _say_differences(job: dict[str, Any], device: str) -> None:
    differences = manifest.differences(job, manifest.environment(device))
    if differences:
        print(
            f"sample: images may differ by rounding from those that are repeated: "
            f"{', '.join(differences)}",
            file=sys.stderr,
        )


def _run(job: Job, output: FolderOutput | FileOutput, device: str, quiet: bool) -> int:
    start, first = time.perf_counter(), processes.rank() == 0
    folder = output.folder
    with contextlib.ExitStack() as stack:
        with processes.speaking_once():
            claims = stack.enter_context(
                sharing(
                    folder.path,
                    "sample",
                    job.key,
                    len(job.batches) + 1,  # the last is to finish the output
                    lambda alone: output.begin() if alone else None,
                    output.end,
                )
            )
            if output.complete:
                for piece in claims.take():
                    claims.finish(piece)
            if not claims.done():
                # Of no batch: says what is wrong with the options before anything is written.
                job.sample((), lambda batch, images: None, device)
        there = folder.there()
        if first and not claims.done():
            folder.warn_of_little_room(len(job.first) - len(there), output.copies)

        def record() -> None:
            with claims.one_at_a_time():
                folder.record(manifest.environment(device))

        show = first and not quiet
        progress = Progress(job, claims, there, show)
        # On a GPU a callback would keep whole samplings from being replayed.
        on_step = progress.on_step if show and device == "cpu" else None
        try:
            with progress:
                worker = Worker(job, folder, claims, record)
                worker.run(device, on_step)
                _finish(output, claims)
            sampled = progress.sampled()
        except KeyboardInterrupt:
            if not first:
                return INTERRUPTED
            print(
                f"\nautoguide-fast sample: interrupted; {len(folder.there())} of "
                f"{len(job.first)} images are in {folder.path}, repeat the command to go on",
                file=sys.stderr,
            )
            return INTERRUPTED
    if first:
        print(_summary(job, output, sampled, time.perf_counter() - start))
    return 0


def _finish(output: FolderOutput | FileOutput, claims: Claims) -> None:
    """Returns when the output is finished, here or by another process."""
    while True:
        for piece in claims.take():
            with claims.one_at_a_time():
                output.folder.record(None)
            output.finish()
            claims.finish(piece)
        if claims.done():
            return
        time.sleep(_SECONDS)


def _summary(job: Job, output: FolderOutput | FileOutput, sampled: int, seconds: float) -> str:
    count = len(job.first)
    done = (
        f"{sampled} images in {seconds:.1f} s ({sampled / seconds:.1f} images/s, loading included)"
    )
    if not sampled:
        done = f"all {count} images were there, sampled with these settings"
    elif sampled < count:
        done += f", {count - sampled} were there"
    return f"{done}: {output}"
