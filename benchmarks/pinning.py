"""Gives every OpenMP thread a core of its own: two threads that share one wait for each other."""

import contextlib
import os
import sys

CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def pin():
    """Pin the threads of a torch that is not loaded yet; its OpenMP reads these on loading."""
    if CORES is None or "torch" in sys.modules:
        return
    cores = sorted(CORES)[: threads()]
    os.environ.setdefault("GOMP_CPU_AFFINITY", " ".join(map(str, cores)))


def threads():
    """Return how many threads are to compute: OMP_NUM_THREADS, or one a core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(wanted or len(CORES or [0]))


@contextlib.contextmanager
def unpinned():
    """Let the main thread and what it starts, compilers for instance, run on all cores."""
    if CORES is None:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CORES)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def describe():
    """Return where the threads run, for the report."""
    affinity = os.environ.get("GOMP_CPU_AFFINITY")
    return f"pinned to cores {affinity}" if affinity else "not pinned"
