"""A stand-in for torch's CUDA streams and graphs that runs nothing and knows what comes after what.

Each stream has a clock, and knows of every other's what it has waited for; so of any two pieces of
work it can be asked whether the one has ended when the other begins.
"""

import contextlib
import types


class Stream:
    def __init__(self, device=None):
        self.reached = {self: 0}

    def work(self):
        """Launch a piece of work; return what `after` takes."""
        self.reached[self] += 1
        return self, self.reached[self]

    def after(self, work):
        """Whether what is launched here now begins after that piece of work has ended."""
        stream, count = work
        return self.reached.get(stream, 0) >= count

    def wait(self, reached):
        for stream, count in reached.items():
            self.reached[stream] = max(count, self.reached.get(stream, 0))

    def wait_stream(self, other):
        self.wait(other.reached)

    def wait_event(self, event):
        self.wait(event.reached)


class Event:
    def __init__(self):
        self.reached = {}

    def record(self, stream):
        self.reached = dict(stream.reached)


class Cuda:
    """Has what `graphs.py` calls of `torch.cuda`; `log` is what was called.

    Attributes:
        current (Stream)
        fails (str or None): The call that raises: "capture_begin" or "capture_end".
    """

    Stream, Event = Stream, Event

    def __init__(self):
        self.current, self.log, self.fails = Stream(), [], None

    def install(self, monkeypatch, module):
        monkeypatch.setattr(module.torch, "cuda", self)
        monkeypatch.setattr(
            module.torch._C, "_cuda_clearCublasWorkspaces", self.call("clear"), raising=False
        )
        monkeypatch.setattr(module, "_shared_by_device", {})

    def call(self, name):
        def function():
            self.log.append(name)
            if self.fails == name:
                raise RuntimeError(name)

        return function

    def current_stream(self):
        return self.current

    def graph_pool_handle(self):
        return "pool"

    @contextlib.contextmanager
    def device(self, device):
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def CUDAGraph(self):
        return types.SimpleNamespace(replay=self.call("replay"), reset=self.call("reset"))

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        """As torch's: leaves the stream behind where beginning or ending a capture fails."""
        self.current, before = stream, self.current
        self.call("capture_begin")()
        try:
            yield
        finally:
            self.call("capture_end")()
        self.current = before
