"""Independent jobs on several processes, one thread each: small nets gain little from threads."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def map_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    on_result: Callable[[Job, Result], None] | None = None,
) -> list[Result]:
    """Results of `function` on each job, in the order of the jobs.

    Args:
        function: a top-level function of a module, so that other processes can import it.
        jobs: what to call it with, picklable.
        workers: processes, >= 1; 1 stays in this process.
        on_result: told of each result as soon as it is there.

    Raises:
        ValueError: workers < 1.
    """
    if workers < 1:
        raise ValueError(f"map_jobs: workers must be >= 1, got {workers}; 2 suit two cores")
    results: dict[int, Result] = {}
    if workers == 1:
        for i, job in enumerate(jobs):
            results[i] = function(job)
            if on_result is not None:
                on_result(job, results[i])
        return [results[i] for i in range(len(jobs))]
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin
    ) as pool:
        with _without_ctrl_c():
            futures = {pool.submit(function, job): i for i, job in enumerate(jobs)}
        try:
            for future in concurrent.futures.as_completed(futures):
                i = futures[future]
                results[i] = future.result()
                if on_result is not None:
                    on_result(jobs[i], results[i])
        except BaseException:
            # Nobody waits for what is still being computed, which may take hours.
            pool.shutdown(wait=False, cancel_futures=True)
            mine = set(multiprocessing.active_children()) - set(others)
            for child in mine:
                child.kill()
            for child in mine:
                child.join()
            raise
    return [results[i] for i in range(len(jobs))]


def _begin() -> None:
    """Prepares a process: one thread, and no life of its own."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # `map_jobs` starts such processes alone
    parent.join()  # returns also where the parent was killed
    os._exit(1)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started meanwhile leave Ctrl-C to their parent, which ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
