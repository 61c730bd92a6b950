"""Ctrl-C, SIGTERM and SIGHUP end a run after the step in progress, not in the midst of one."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: saved and stopped, run the same again with --resume

# SIGHUP is what a terminal sends that is closed, as when the connection breaks.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether one of the signals came; a second one acts as usual.

    A signal that is ignored, as `nohup` makes it of SIGHUP, stays so.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Terminal:
    """Standard output or standard error that may be gone: what is written then is dropped.

    A closed terminal, or the end of `tee` behind a pipe, must not end a run that is to be saved.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, if anyone listens."""
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flushes, if anyone listens."""
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        # What waits in the buffer would fail once more when the interpreter ends.
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextlib.contextmanager
def patient_terminal() -> Iterator[None]:
    """Makes `Terminal`s of standard output and standard error meanwhile, and flushes them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Terminal(sys.stdout), Terminal(sys.stderr)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
