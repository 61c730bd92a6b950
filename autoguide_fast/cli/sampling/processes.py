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


def own_device(device: str | None) -> str | None:
    """`device`; under torchrun, where it leaves the choice among GPUs, this process's own."""
    import torch

    if device in (None, "cuda") and "TORCHELASTIC_RUN_ID" in os.environ:
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus:
            return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % gpus}"
    return device


@contextlib.contextmanager
def speaking_once() -> Iterator[None]:
    """For what fails alike in every process: lets only the first say so.

    The others leave a little later, since torchrun ends all when one has gone.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError):
        if rank() == 0:
            raise
        time.sleep(_SAY_SECONDS)
        raise SystemExit(2) from None
