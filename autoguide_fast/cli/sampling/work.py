"""The work of one process: it takes batches, samples them and writes what is missing of them."""

from __future__ import annotations

import collections
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...claims import Claims
from .image_folder import ImageFolder
from .job import Job

_WAITING = 2  # batches that wait to be written, so that memory does not grow
_MOST_ENCODERS = 8
_SECONDS = 0.2  # between looks at what the others have done


class Worker:
    """Samples, together with other processes, until all images of a job are there.

    Images are encoded and written by threads of their own, while the next batch is sampled; they
    hold sampling up only where they fall two batches behind.

    Args:
        job: what to sample.
        folder: where to.
        claims: a piece for each batch, and perhaps others after them.
        before_first: called before the first image is written.
    """

    def __init__(
        self, job: Job, folder: ImageFolder, claims: Claims, before_first: Callable[[], object]
    ) -> None:
        self.job, self.folder, self.claims = job, folder, claims
        self._before_first: Callable[[], object] | None = before_first
        self._wanted: dict[int, list[int]] = {}
        self._pending: collections.deque[Future] = collections.deque()

    def run(self, device: str, on_step: Callable | None = None) -> None:
        """Returns when all batches are done, here or elsewhere.

        Raises:
            OSError: an image could not be written.
        """
        count = len(self.job.batches)
        with ThreadPoolExecutor(_cores()) as self._encoders, ThreadPoolExecutor(1) as self._writer:
            while True:
                batches = self._batches(count)
                first = next(batches, None)
                if first is not None:
                    self.job.sample(itertools.chain([first], batches), self._take, device, on_step)
                self._settle(0)
                if self.claims.done(count):
                    return
                time.sleep(_SECONDS)  # others still sample; if one of them dies, its batch is free

    def _batches(self, count: int) -> Iterator[range]:
        """The batches to be sampled here, one after the other, as long as one is free."""
        for piece in self.claims.take(count):
            missing = self.folder.missing(self.job.batches[piece])
            if missing:
                self._wanted[piece] = missing
                yield self.job.batches[piece]
            else:
                self.claims.finish(piece)

    def _take(self, batch: range, images: np.ndarray) -> None:
        """Takes the images of a batch, uint8 `[N, C, H, W]`."""
        if self._before_first is not None:
            self._before_first()
            self._before_first = None
        self._pending.append(self._writer.submit(self._write, batch, images))
        self._settle(_WAITING)

    def _settle(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending.popleft().result()

    def _write(self, batch: range, images: np.ndarray) -> None:
        piece = batch.start // self.job.batch_size
        wanted = self._wanted.pop(piece)
        # All of them, also where one fails; the first error counts.
        writing = [
            self._encoders.submit(self.folder.write, i, images[i - batch.start]) for i in wanted
        ]
        errors = [error for each in writing if (error := each.exception()) is not None]
        if errors:
            raise errors[0]
        self.claims.finish(piece, len(wanted))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(_MOST_ENCODERS, count)
