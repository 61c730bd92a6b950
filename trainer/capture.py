"""A function recorded once and from then on replayed, as CUDA graphs do it.

What is recorded reads and writes the same memory every time, sees no number on the host, and leaves
the host nothing to decide. Everything but the recording itself is the same with any recorder, so
the tests record on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from autoguide_fast.engine.graphs import capture

# Calls before the recording: the first allocates what later ones use, libraries choose their
# algorithms in the next.
WARM_UPS = 3


class StepRecorder(Protocol):
    """What records."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Calls a function that will be recorded, as the recording will."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Records what a function does, without its effects; returns what repeats it."""


class CudaStepRecorder:
    """Records CUDA graphs, which share one pool of memory and are replayed in order.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Calls the function on the stream on which it will be recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Records a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        capture(graph, function, self._pool, self._stream)
        return graph.replay


class Recorded:
    """A function without arguments that runs as it is a few times and is then replayed.

    All calls count: warming up does the real work of the first calls, and recording does none.

    Args:
        function: what to record.
        recorder: what records it.
    """

    def __init__(self, function: Callable[[], None], recorder: StepRecorder) -> None:
        self._function, self._recorder = function, recorder
        self._calls = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self._replay is None and self._calls < WARM_UPS:
            self._recorder.warm_up(self._function)
        else:
            if self._replay is None:
                self._replay = self._recorder.record(self._function)
            self._replay()
        self._calls += 1
