"""CUDA graphs: what a function launches, recorded once and then launched again as one.

Everything of this engine that needs a GPU at hand is in this file; **it has not run on one yet**.
The tests put a recorder of the same methods in its place, a tape of operators (`tests/tape.py`),
so the rest is tested on a CPU; and put this file before a stand-in for streams that knows what
waits for what (`tests/streams.py`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class CudaGraphs:
    """Records functions as CUDA graphs of one device and runs them, one at a time.

    The graphs of a recorder share one pool of memory: they never run at the same time, and what has
    to outlast a replay is allocated outside of it. Threads exclude each other, and so do all
    recorders of a device, because libraries keep one workspace for a stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._shared = _shared(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __reduce__(self) -> tuple[type[CudaGraphs], tuple[torch.device]]:
        return CudaGraphs, (self.device,)  # a copy has graphs of its own

    @property
    def multiprocessors(self) -> int:
        """How many the device has."""
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    @property
    def name(self) -> str:
        """What the device is called."""
        return torch.cuda.get_device_name(self.device)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """While inside, the caller alone may use buffers and graphs, on its current stream.

        What it launches runs after whatever was launched inside before, on any stream.
        """
        with self._shared.lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self._shared.done)
            try:
                yield
            finally:
                self._shared.done.record(stream)

    @contextlib.contextmanager
    def private_stream(self) -> Iterator[None]:
        """While inside, the current stream is the recorders' own; use it inside `exclusive`.

        For what is allocated once and may be freed at any time. torch hands freed memory to the
        next allocation on the same stream. On this stream that happens inside `exclusive` only,
        thus after all work that may still use the memory.
        """
        current = torch.cuda.current_stream()
        self._shared.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._shared.stream):
                yield
        finally:
            current.wait_stream(self._shared.stream)

    def record(
        self, function: Callable[[], object], warm_up: Callable[[], object]
    ) -> Callable[[], None]:
        """Return a callable that launches again what `function()` launches.

        To be called on `private_stream`. `warm_up()` runs before, outside the graph: libraries
        choose algorithms by measurement and load kernels in it, so it must meet each shape that
        `function` does. An exception of either leaves the device usable.
        """
        graph = torch.cuda.CUDAGraph()
        failure: BaseException | None = None

        def ending() -> None:
            # A capture has to end in order whatever happens.
            nonlocal failure
            try:
                function()
            except BaseException as error:
                failure = error

        with _measured_choice():
            warm_up()
            try:
                capture(graph, ending, self._pool, self._shared.stream)  # which was warmed up
            except Exception as error:  # of the end of a capture, which fails if what it holds did
                failure = failure or error
        if failure is not None:
            graph.reset()
            try:
                raise failure
            finally:
                failure = None  # or this frame would keep itself, and what memory it holds
        return graph.replay

    def run_concurrently(self, first: Callable[[], object], second: Callable[[], object]) -> None:
        """Run two functions on two streams, both after what is under way and before what follows.

        What they allocate must be freed before they return.
        """
        stream = torch.cuda.current_stream()
        self._shared.side.wait_stream(stream)
        try:
            with torch.cuda.stream(self._shared.side):
                second()
            first()
        finally:
            stream.wait_stream(self._shared.side)

    def synchronize(self) -> None:
        """Wait until nothing that was recorded runs any more, so that it may be forgotten."""
        self._shared.done.synchronize()

    def release_memory(self) -> None:
        """Return memory that torch keeps, that of forgotten graphs included, to the device."""
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()

    def peak(self, function: Callable[[], object]) -> int:
        """Return the most bytes that tensors took while `function()` ran, those before included."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        function()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device)

    def mark(self) -> torch.cuda.Event:
        """Return a mark in the current stream's time."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two marks, once both are reached."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class _Shared:
    """What the recorders of a device have in common."""

    def __init__(self, device: torch.device) -> None:
        self.lock = threading.RLock()
        with torch.cuda.device(device):
            self.stream, self.side = torch.cuda.Stream(), torch.cuda.Stream()
            self.done = torch.cuda.Event()  # of what was launched inside the last `exclusive`


_shared_by_device: dict[torch.device, _Shared] = {}
_guard = threading.Lock()


def _shared(device: torch.device) -> _Shared:
    with _guard:
        if device not in _shared_by_device:
            _shared_by_device[device] = _Shared(device)
        return _shared_by_device[device]


def capture(
    graph: torch.cuda.CUDAGraph,
    function: Callable[[], object],
    pool: Any,
    stream: torch.cuda.Stream,
) -> None:
    """Record what `function` launches in `graph`, on `stream`, with memory of `pool`.

    Other threads may allocate meanwhile, page-locked memory too.
    """
    with (
        own_workspaces(),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        function()


@contextlib.contextmanager
def own_workspaces() -> Iterator[None]:
    """Let cuBLAS take its workspaces from the memory of the graph that is captured.

    torch keeps one for each thread and stream, and drops all when `torch.compile` captures a graph:
    one taken while warming up would become another's memory, in which ours still wrote. Those taken
    during a capture go back to the graph's pool at its end.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


_choosing = threading.Lock()  # recorders of several devices set one switch


@contextlib.contextmanager
def _measured_choice() -> Iterator[None]:
    """Let cuDNN choose its algorithms by measurement, unless its user wants them deterministic."""
    with _choosing:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.deterministic
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before


# What libraries say where they find no memory, in errors that are no torch.OutOfMemoryError; the
# third is cuDNN's where no algorithm's workspace fits.
_LACKING = "out of memory", "ALLOC_FAILED", "unable to find an engine", "can't allocate memory"


def lacks_memory(error: RuntimeError) -> bool:
    """Whether a RuntimeError says that memory did not last."""
    return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in _LACKING)
