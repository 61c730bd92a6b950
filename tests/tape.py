"""A stand-in for CUDA graphs on a CPU: what is recorded is a tape of operators, not a function.

Like a graph, a tape holds operators with the tensors and numbers that they had when it was
recorded. Playing it runs no Python of the library: each operator reads the same memory again and
its result goes to where it went. So whatever a recording depends on besides its buffers is frozen,
and shows. Reading a number back to the host, which no graph can do, is refused.
"""

import contextlib
import threading
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

HOST_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}


class Recording(TorchDispatchMode):
    """Keeps the operators called under it; `play` repeats them on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in HOST_READS:
            raise RuntimeError(f"a graph cannot hold {function}, which reads from the device")
        result = function(*args, **kwargs)
        # The same memory, without what autograd knows of it.
        kept = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs, result))
        self.calls.append((function, *kept))
        return result

    @torch.no_grad()
    def play(self):
        for call, args, kwargs, result in self.calls:
            again = call(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class StepTape:
    """Has the methods of the trainer's recorder of steps (`trainer/capture.py`).

    recorded: how many functions; replays: how often they were repeated.
    """

    def __init__(self):
        self.recorded = self.replays = 0

    def warm_up(self, function):
        with Recording():
            function()

    def record(self, function):
        with Recording() as tape:
            function()
        self.recorded += 1
        done = True  # what a graph records has no effect; what is taped has had its own

        def replay():
            nonlocal done
            self.replays += 1
            if done:
                done = False
                return
            tape.play()

        return replay


class Tape:
    """Has the methods of `autoguide_fast.engine.graphs.CudaGraphs`, but `peak`.

    Attributes:
        recorded (int): Recordings made so far.
        kernels (list of int): Operators in each of them.
        convolutions (list of int): Convolutions in each of them, without those of 1x1.
        parallel (int): How often two functions were run beside each other.
        memory (int or None): Images for which there is room; more raise `shortage`.
        launches (bool): Whether that shows when a recording is played, not when it is made.
    """

    name, multiprocessors = "a tape", 0

    def __init__(self, memory=None, shortage=None, launches=False):
        self.lock, self.inside, self.on_private_stream = threading.RLock(), 0, False
        self.recorded, self.kernels, self.parallel, self.released = 0, [], 0, 0
        self.convolutions = []
        self.memory, self.launches = memory, launches
        out = "CUDA out of memory. Tried to allocate 2 GiB."
        self.shortage = torch.OutOfMemoryError(out) if shortage is None else shortage

    def __reduce__(self):
        return Tape, (self.memory, self.shortage, self.launches)

    @contextlib.contextmanager
    def exclusive(self):
        with self.lock:
            self.inside += 1
            try:
                yield
            finally:
                self.inside -= 1

    @contextlib.contextmanager
    def private_stream(self):
        assert self.inside and not self.on_private_stream
        self.on_private_stream = True
        try:
            yield
        finally:
            self.on_private_stream = False

    def record(self, function, warm_up):
        assert self.on_private_stream
        warm_up()
        with Recording() as tape:
            function()
        self.recorded += 1
        self.kernels.append(len(tape.calls))
        convolve = torch.ops.aten.convolution.default
        sizes = [len(args[0]) for call, args, _, _ in tape.calls if call is convolve]
        self.convolutions.append(len(sizes))
        fits = self.memory is None or max(sizes) <= self.memory
        if not fits and not self.launches:
            raise self.shortage

        def play():
            assert self.inside
            if not fits:
                raise self.shortage
            tape.play()

        return play

    def run_concurrently(self, first, second):
        self.parallel += 1
        second()
        first()

    def synchronize(self):
        pass

    def release_memory(self):
        self.released += 1

    def mark(self):
        return time.perf_counter()

    def seconds(self, start, end):
        return end - start
