"""One process at a time writes to a folder, or makes a file; or those of one job together."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from .files import reason, remedy

LOCK = ".lock"
_ATTEMPTS, _PAUSE = 3, 0.05  # seconds


@contextlib.contextmanager
def sole_writer(folder: str | os.PathLike, command: str) -> Iterator[None]:
    """Makes a folder and keeps other processes from writing to it meanwhile, by `locked`.

    Args:
        folder: made if missing; if it is still empty at the end, it is removed again.
        command: what writes there, for messages.

    Raises:
        ValueError: another process writes there; says which.
        OSError: the folder cannot be written, in one sentence.
    """
    folder = Path(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(folder / LOCK, f"{command}: out", folder)
    except OSError as error:
        raise _unwritable(folder, command, error) from error
    try:
        with _held(file, folder / LOCK):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def joint_writers(folder: str | os.PathLike, command: str) -> Iterator[TextIO]:
    """Like `sole_writer`, but lets other processes in that come by this same way.

    What they may do there is theirs to agree about, see `claims.sharing`. Gives the lock's file,
    for `sign` and `signed`. The folder stays.
    """
    folder = Path(folder)
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path, f"{command}: out", folder, fcntl.LOCK_SH)
    except OSError as error:
        raise _unwritable(folder, command, error) from error
    with file:
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which only the last one gets
                if is_still_there(file, path):
                    path.unlink()


def sign(file: TextIO) -> None:
    """Writes into a lock's file that this process holds it."""
    file.truncate(0)
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()} (since {began})\n")
    file.flush()


def signed(file: TextIO) -> str:
    """Which process holds a lock, from its file."""
    file.seek(0)
    return file.read().strip() or "another process"


@contextlib.contextmanager
def locked(path: Path, argument: str, target: Path) -> Iterator[None]:
    """Keeps other processes from writing `target` meanwhile; `path` is the lock's file.

    The system itself holds the lock (`flock`), so that it is gone with the process, whatever ends
    that. Over NFS it holds among machines, too, unless the folder is mounted with `local_lock`.
    Where a file system has no locks, a line on standard error says so, and nothing else keeps a
    second process away.

    Args:
        path: made, and removed again at the end.
        argument: `<command>: <argument>`, which named the target, for messages.
        target: the file or folder that one process writes at a time.

    Raises:
        ValueError: another process writes `target`; says which.
        OSError: `path` cannot be written.
    """
    with _held(_open_locked(path, argument, target), path):
        yield


@contextlib.contextmanager
def waiting(path: Path, seconds: float) -> Iterator[None]:
    """Keeps others that come by this way out meanwhile, and waits for those inside.

    Args:
        path: the lock's file, made if missing; it stays.
        seconds: how long to wait at most.

    Raises:
        TimeoutError: others were inside all the time.
        OSError: the file cannot be written, or its file system has no locks.
    """
    end = time.monotonic() + seconds
    with open(path, "a", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(f"{path} was held for {seconds:g} seconds") from None
            time.sleep(_PAUSE)
        yield


@contextlib.contextmanager
def _held(file: TextIO, path: Path) -> Iterator[None]:
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is locked: nobody else's can be hit


def _unwritable(folder: Path, command: str, error: OSError) -> OSError:
    return OSError(
        f"{command}: out must be a folder that can be written, got {folder} "
        f"({reason(error)}); {remedy(error)}"
    )


def _open_locked(path: Path, argument: str, target: Path, how: int = fcntl.LOCK_EX) -> TextIO:
    joint, attempts = how == fcntl.LOCK_SH, 0
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  held until it is closed
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = signed(file)
            attempts += 1
            if joint and attempts < _ATTEMPTS:  # the last of others may be leaving just now
                time.sleep(_PAUSE)
                continue
            raise ValueError(
                f"{argument} must be written by one process at a time, got {target}, "
                f"which {holder} is writing; wait for that, or end it"
            ) from None
        except OSError as error:
            print(
                f"{argument.split(':')[0]}: {target} is on a file system without locks "
                f"({reason(error)}); see to it that no other process writes there",
                file=sys.stderr,
            )
            return file
        if is_still_there(file, path):
            break
        file.close()  # whoever held the lock has just removed the file: another one counts now
    if not joint:
        sign(file)
    return file


def is_still_there(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that the path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
