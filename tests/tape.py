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

HOST_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
}


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in HOST_READS:
            raise RuntimeError(f"a graph cannot hold {function}, which reads from the device")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


class Tape:
    """Has the methods of `autoguide_fast.engine.graphs.CudaGraphs`, but `peak`.

    Attributes:
        recorded (int): Recordings made so far.
        kernels (list of int): Operators in each of them.
        parallel (int): How often two functions were run beside each other.
        memory (int or None): Images for which there is room; more raise torch.OutOfMemoryError.
    """

    name, multiprocessors = "a tape", 0

    def __init__(self, memory=None):
        self.lock, self.inside = threading.RLock(), 0
        self.recorded, self.kernels, self.parallel, self.given_back = 0, [], 0, 0
        self.memory = memory

    @contextlib.contextmanager
    def turn(self):
        with self.lock:
            self.inside += 1
            try:
                yield
            finally:
                self.inside -= 1

    def record(self, function, warm_up):
        assert self.inside
        warm_up()
        tape = _Recording()
        with tape:
            function()
        self.recorded += 1
        self.kernels.append(len(tape.calls))
        calls = tape.calls
        if self.memory is not None:
            convolve = torch.ops.aten.convolution.default
            largest = max(len(args[0]) for call, args, _, _ in calls if call is convolve)
            if largest > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

        def play():
            assert self.inside
            for call, args, kwargs, kept in calls:
                result = call(*args, **kwargs)
                if any(r.alias_info for r in call._schema.returns):
                    continue  # a view, or written in place
                result, kept = ((r,) if isinstance(r, torch.Tensor) else r for r in (result, kept))
                for new, old in zip(result, kept, strict=True):
                    old.copy_(new)

        return play

    def together(self, first, second):
        self.parallel += 1
        second()
        first()

    def settle(self):
        pass

    def give_back(self):
        self.given_back += 1

    def mark(self):
        return time.perf_counter()

    def seconds(self, start, end):
        return end - start
