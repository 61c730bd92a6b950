"""Ctrl-C and SIGTERM end a run after the step in progress, not in the midst of one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: saved and stopped, run the same again with --resume


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; a second one acts as usual."""
    received = []
    previous = {}

    def handle(number, frame):
        received.append(number)
        signal.signal(number, previous[number])

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
