"""The processes that train together: one, or those that torchrun started."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

Value = TypeVar("Value")

# How long a process waits for the others before it takes them for lost.
_TIMEOUT = datetime.timedelta(minutes=30)
_SAY_SECONDS = 3.0
# How long they may take to connect; gloo itself would wait without end for one that is gone.
_CONNECT_SECONDS = 30.0


class Processes:
    """This process's place among those that train together.

    Args:
        count: how many there are.
        rank: which of them this is, from 0.
        restarts: how often torchrun has started them again.
        local_rank: which of those on its machine this is.
        command: what they do, for messages.

    Used as a context, it leaves the others at the end.
    """

    def __init__(
        self,
        count: int = 1,
        rank: int = 0,
        restarts: int = 0,
        local_rank: int = 0,
        command: str = "train",
    ) -> None:
        self.count, self.rank, self.restarts, self.local_rank = count, rank, restarts, local_rank
        self.command = command

    @classmethod
    def join(cls, device: str = "cpu", command: str = "train") -> Processes:
        """Joins the processes that torchrun started; alone without torchrun.

        They speak over gloo; about what lies on GPUs, unless `device` is "cpu", over NCCL.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls(command=command)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        gpus = device != "cpu" and torch.cuda.is_available()
        with _leaving_after(_CONNECT_SECONDS):
            store, rank, count = next(rendezvous("env://"))
            # The store outlives a restart (torch 2.13), and with it the addresses of the dead.
            store = dist.PrefixStore(f"restart_{restarts}", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=store,
                rank=rank,
                world_size=count,
                timeout=_TIMEOUT,
            )
        return cls(count, rank, restarts, int(os.environ.get("LOCAL_RANK", 0)), command)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        if dist.is_initialized():
            # After an error, leaving in order would wait for those who will not come.
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def wrap(self, net: torch.nn.Module) -> torch.nn.Module:
        """The module to call so that gradients become the mean over all processes."""
        if self.count == 1:
            return net
        # The buffers are constants, drawn from the same seed everywhere. What torch 2.13 wants
        # this called, 2.11 does not know.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return torch.nn.parallel.DistributedDataParallel(
                net, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def sum(self, *values: float) -> list[float]:
        """The sums of these numbers over all processes, the same on each."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.together():
            dist.all_reduce(total)
        return total.tolist()

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives in the first process, given, or raised as a ValueError, in all."""
        if self.count == 1:
            return make()
        box: list = [None]
        if self.first:
            try:
                box[0] = make()
            except ValueError as error:
                box[0] = ValueError(str(error))
        with self.together():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if isinstance(box[0], ValueError):
            raise box[0]
        return box[0]

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Makes of contiguous tensors, in place, their means over all processes."""
        if self.count == 1:
            return
        with self.together():
            for work in [dist.all_reduce(t, async_op=True) for t in tensors]:
                work.wait()
        torch._foreach_div_(tensors, self.count)

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.sum(0.0)

    @contextlib.contextmanager
    def speaking_once(self) -> Iterator[None]:
        """For what fails alike in every process: lets only the first say so.

        The others leave a little later, since torchrun ends all when one has gone.
        """
        try:
            yield
        except ValueError:
            if self.first:
                raise
            time.sleep(_SAY_SECONDS)
            raise SystemExit(2) from None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Turns what a collective operation raises when a process is lost into one sentence."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_connection_error(error):
                raise
            resume = " with --resume auto" if self.command == "train" else ""
            raise ConnectionError(
                f"{self.command}: all {self.count} processes must stay alive, got a lost "
                f"connection in process {self.rank}; look above for what ended the other one, then "
                f"repeat the command{resume}"
            ) from error


@contextlib.contextmanager
def _leaving_after(seconds: float) -> Iterator[None]:
    """Ends this process if what is inside takes longer; nothing else interrupts gloo."""

    def leave() -> None:
        rank = os.environ.get("RANK")
        print(
            f"train: process {rank} must find the others within {seconds:g} s, got no connection",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_connection_error(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection", "gloo", "timed out", "peer")
    )
