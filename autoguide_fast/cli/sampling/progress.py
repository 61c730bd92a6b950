"""One bar over the images of all processes, with images per second and time left."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from ...claims import Claims
from .job import Job

if TYPE_CHECKING:
    from ...generate import StepInfo

_SECONDS = 0.5


class Progress:
    """Shows, as a context, how many of a job's images are there.

    Args:
        job, claims: whose images, and which batches are done, by whichever process.
        there: positions of the images for which there was a file before.
        show: False shows nothing, and counts only.
    """

    def __init__(self, job: Job, claims: Claims, there: set[int], show: bool) -> None:
        self._job, self._claims, self._show = job, claims, show
        self._written = [len(job.written(batch)) for batch in job.batches]
        self._before = [len(there.intersection(batch)) for batch in job.batches]
        self._part = 0.0  # of a batch that is being sampled here, in images
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def sampled(self) -> int:
        """How many images all processes have sampled."""
        states = self._claims.states()[: len(self._written)]
        return sum(state - 1 for state in states if state)

    def _there(self) -> int:
        """How many images are there: of a batch that is not done, those that were before."""
        states = self._claims.states()[: len(self._written)]
        each = zip(self._written, self._before, states, strict=True)
        return sum(number if state else before for number, before, state in each)

    def on_step(self, info: StepInfo) -> None:
        """Takes a step of a batch into account, where it is this process that samples it."""
        self._part = len(info.indices) * min(1.0, (info.step + 1) / info.num_steps)
        if info.is_last:
            self._part = 0.0

    def __enter__(self) -> Progress:
        if self._show:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        from tqdm import tqdm

        total = sum(self._written)
        begun, first = time.perf_counter(), self.sampled()
        form = "{percentage:3.0f}%|{bar}| {n:.0f}/{total} images, {elapsed}{postfix}"
        with tqdm(total=total, initial=self._there(), bar_format=form) as bar:
            waiting = True
            while waiting:
                waiting = not self._done.wait(_SECONDS)
                new = self.sampled() - first + self._part
                rate = new / (time.perf_counter() - begun)
                bar.n = min(total, self._there() + self._part)
                left = f"{tqdm.format_interval((total - bar.n) / rate)} left" if rate else ""
                bar.set_postfix_str(f"{rate:.3g} images/s, {left}" if rate else "", refresh=False)
                bar.refresh()
