"""Work done ahead by threads, with results in the order of the jobs."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, ahead: int
) -> Generator[Result, None, None]:
    """Yields `function(job)` for each job in turn, while threads work on those that follow.

    Decoding images and reading files leave Python's lock, so that threads run side by side.

    Args:
        function: called in `workers` threads at once.
        jobs: may be endless; no more than `ahead` are taken before their turn.
        workers: threads, >= 1.
        ahead: jobs in work or waiting to be fetched, >= 1; bounds the memory.

    Raises:
        Whatever `function` or `jobs` raises, when its turn comes. However the generator ends, no
        thread is left behind.
    """
    source = iter(jobs)
    waiting: collections.deque = collections.deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    try:
        while True:
            with contextlib.suppress(StopIteration):
                while len(waiting) < ahead:
                    waiting.append(pool.submit(function, next(source)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
