"""A job's pieces, shared out among the processes that work in one folder.

No process leads, and none needs to reach another: what they have in common is the folder. The
system holds all locks, so whatever ends a process gives back what it had claimed, and the others
take it. Over NFS this holds among machines, too.

The file `.claims` has the key of the job, then for each piece four bytes, 0 as long as it is not
done. Locks are those of `fcntl.lockf`, which has them for single bytes: byte 0 while a process
joins or leaves, byte 1 of all that are there, the first byte of a piece by whoever works on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from .files import reason, remedy
from .locks import LOCK, is_still_there, joint_writers, sign, signed

CLAIMS = ".claims"
_KEY = 64  # bytes: a SHA-256 in hexadecimal
_PIECE = struct.Struct("<I")
_JOINING, _MEMBERS = 0, 1
_ATTEMPTS = 10


class Claims:
    """Which pieces are done, and which this process works on; `sharing` makes one.

    count: number of pieces.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self._descriptor, self.count = descriptor, count
        self._mine: set[int] = set()

    def take(self, end: int | None = None) -> Iterator[int]:
        """Pieces below `end` that are neither done nor another's, until there is none for now.

        A piece is this process's until `finish` is called for it, which may be later, after others
        have been taken. One that is not finished then goes to another process when this one ends.
        """
        end = self.count if end is None else end
        while (piece := self._free(end)) is not None:
            yield piece

    def _free(self, end: int) -> int | None:
        for piece in self._unfinished(end):
            if piece in self._mine or not self._lock(piece):
                continue
            if self.states()[piece]:  # finished by another in between
                self._lock(piece, fcntl.LOCK_UN)
                continue
            self._mine.add(piece)
            return piece
        return None

    def finish(self, piece: int, number: int = 0) -> None:
        """Says that a piece is done; `number`, below 2^32 - 1, is what `states` tells of it."""
        place = _KEY + piece * _PIECE.size
        os.pwrite(self._descriptor, _PIECE.pack(1 + number), place)
        self._lock(piece, fcntl.LOCK_UN)
        self._mine.discard(piece)

    def states(self) -> tuple[int, ...]:
        """For each piece, whoever did it, 0 or 1 + the number that `finish` was told."""
        data = os.pread(self._descriptor, self.count * _PIECE.size, _KEY)
        return struct.unpack(f"<{self.count}I", data)

    def done(self, end: int | None = None) -> bool:
        """Whether all pieces below `end` are done, by this process or by others."""
        return not self._unfinished(self.count if end is None else end)

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Meanwhile no other process is in here, joins or leaves."""
        _locked(self._descriptor, fcntl.LOCK_EX, _JOINING)
        try:
            yield
        finally:
            _locked(self._descriptor, fcntl.LOCK_UN, _JOINING)

    def _unfinished(self, end: int) -> list[int]:
        return [i for i, state in enumerate(self.states()[:end]) if not state]

    def _lock(self, piece: int, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> bool:
        return _locked(self._descriptor, how, _KEY + piece * _PIECE.size)


@contextlib.contextmanager
def sharing(
    folder: str | os.PathLike,
    command: str,
    job: str,
    count: int,
    begin: Callable[[bool], object],
    end: Callable[[], object] = lambda: None,
) -> Iterator[Claims]:
    """Joins the processes that do a job in a folder, or begins it; gives the job's `Claims`.

    Args:
        folder: made if missing; if it is still empty at the end, it is removed again.
        command: what works there, for messages.
        job: says all that the processes must agree about.
        count: number of pieces, the same for the same job.
        begin: called by each process as it joins, one at a time, with whether it is the first: then
            no other one works there, whatever an earlier job has left.
        end: called by the last process as it leaves, likewise alone.

    Raises:
        ValueError: another job is being done there, or another command holds the folder; says by
            which process. What `begin` raises.
        OSError: the folder cannot be written, in one sentence.
    """
    folder = Path(folder)
    key = hashlib.sha256(f"{count} {job}".encode()).hexdigest().encode()
    new = not folder.exists()
    try:
        with contextlib.ExitStack() as stack:
            lock, descriptor = _opened(stack, folder, command)
            try:
                claims = Claims(descriptor, count)
                _join(claims, descriptor, key, begin, folder, command, lock)
                yield claims
            finally:
                _leave(descriptor, folder, end)
    finally:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _opened(stack: contextlib.ExitStack, folder: Path, command: str) -> tuple[TextIO, int]:
    """The folder's lock and the file of claims, opened, with the lock of those who join.

    The last process that was there may remove these files, and the folder, while this one opens
    them, which is then done anew.
    """
    attempts = 0
    while True:
        attempts += 1
        with contextlib.ExitStack() as opening:
            try:
                lock = opening.enter_context(joint_writers(folder, command))
                path = folder / CLAIMS
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                gone = isinstance(error.__cause__ or error, FileNotFoundError)
                if gone and attempts < _ATTEMPTS:
                    continue
                if error.errno is None:  # a sentence already
                    raise
                raise _unwritable(folder, command, error) from error
            _locked(descriptor, fcntl.LOCK_EX, _JOINING)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)) and is_still_there(
                    lock, folder / LOCK
                ):
                    stack.enter_context(opening.pop_all())
                    return lock, descriptor
            os.close(descriptor)


def _unwritable(folder: Path, command: str, error: OSError) -> OSError:
    return OSError(
        f"{command}: out must be a folder that can be written, got {folder} "
        f"({reason(error)}); {remedy(error)}"
    )


def _join(
    claims: Claims,
    descriptor: int,
    key: bytes,
    begin: Callable[[bool], object],
    folder: Path,
    command: str,
    lock: TextIO,
) -> None:
    """Called with the lock of those who join, which it gives back."""
    try:
        if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _MEMBERS):
            sign(lock)
            begin(True)
            os.ftruncate(descriptor, 0)
            # All of its length now, so that a full disk cannot keep a piece from being done.
            os.pwrite(descriptor, key + bytes(claims.count * _PIECE.size), 0)
        elif os.pread(descriptor, _KEY, 0) != key:
            raise ValueError(
                f"{command}: out must be a folder without another job under way, got {folder}, in "
                f"which {signed(lock)} does one with other options; wait for that, or choose "
                "another --out"
            )
        else:
            begin(False)
        _locked(descriptor, fcntl.LOCK_SH, _MEMBERS)
    except OSError as error:
        if error.errno is None:
            raise
        raise _unwritable(folder, command, error) from error
    finally:
        _locked(descriptor, fcntl.LOCK_UN, _JOINING)


def _leave(descriptor: int, folder: Path, end: Callable[[], object]) -> None:
    try:
        _locked(descriptor, fcntl.LOCK_EX, _JOINING)
        if _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _MEMBERS):
            with contextlib.suppress(OSError):
                (folder / CLAIMS).unlink()
            end()
    finally:
        os.close(descriptor)  # and with it go all locks


def _locked(descriptor: int, how: int, place: int) -> bool:
    """Whether the lock was had; without locks on the file system, it always is."""
    try:
        fcntl.lockf(descriptor, how, 1, place)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if not _warned:
            _warned.append(True)
            print(
                f"no locks on this file system ({reason(error)}): see to it that no other process "
                "works in the same folder",
                file=sys.stderr,
            )
    return True


_warned: list[bool] = []
