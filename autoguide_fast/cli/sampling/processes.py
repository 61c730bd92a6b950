"""This process's place among those that torchrun started, of which each works by itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

_SAY_SECONDS = 3.0


def rank() -> int:
    """Which of torchrun's processes this is, from 0; 0 without torchrun."""
    return int(os.environ.get("RANK", 0)) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def own_device(device: str | None) -> str:
    """Where to run: `device`, or a GPU if there is one; under torchrun, this process's own.

    Raises:
        ValueError, TypeError: there is no such device.
    """
    import torch

    from ...arguments import present_device

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    present_device(device)
    if device == "cuda" and "TORCHELASTIC_RUN_ID" in os.environ:
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return device


@contextlib.contextmanager
def speaking_once() -> Iterator[None]:
    """For what fails alike in every process: lets only the first say so.

    The others wait with it: torchrun ends all when one has gone. Where the first has not failed,
    they speak.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError):
        if rank() != 0:
            time.sleep(_SAY_SECONDS)
        raise
