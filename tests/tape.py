"""A recorder on the CPU: what a CUDA graph does, operation by operation."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# What tells the host a number, which no recording survives.
_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default,
          torch.ops.aten.equal.default, torch.ops.aten.is_nonzero.default}  # fmt: skip


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in _READS:
            raise RuntimeError(f"a recorded function must not read the device, got {function}")
        result = function(*arguments, **options)
        # The same memory, without what autograd knows of it.
        call = tree_map_only(torch.Tensor, torch.Tensor.detach, (arguments, options, result))
        self.calls.append((function, *call))
        return result


class TapeRecorder:
    """Records the operators that a function calls, and repeats them on the same tensors.

    Python is not run again, as with a CUDA graph: what the host decided or counted while recording
    stays as it was. Raises RuntimeError where the function reads a number, warming up included.

    recorded: how many functions; replays: how often they were repeated.
    """

    def __init__(self):
        self.recorded = self.replays = 0

    def warm_up(self, function):
        with _Tape():
            function()

    def record(self, function):
        with _Tape() as tape:
            function()
        self.recorded += 1
        done = True  # what a graph records has no effect; what is taped has had its own

        @torch.no_grad()
        def replay():
            nonlocal done
            self.replays += 1
            if done:
                done = False
                return
            for call, arguments, options, result in tape.calls:
                again = call(*arguments, **options)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay
