"""Checkpoints that survive whatever happens while they are written, and prove it.

A checkpoint carries the first half of its SHA-256 in its name,
`000051200-9f86d081884c7d659a2feaa0c55ad015.pt`, so that one rename publishes data and checksum
together, and no second file can disagree with the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from autoguide_fast.files import publish, reason, remedy

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEPT = 2  # checkpoints that are whole: the newest and the one before it
_NAME = re.compile(r"(\d{9,})-([0-9a-f]{32})\.pt")
# As `files.write_atomically` and `save_checkpoint` call them, with the number of their process. No
# others: the folder may be one in which a user keeps hidden files.
_LEFTOVER = re.compile(
    r"\.((options|job|log)\.\d+\.jsonl?|\d{9,}\.\d+\.pt|\d{9,}-[\w.+-]+\.\d+\.safetensors)"
)
_CHUNK = 1 << 22


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of a run, or of its nets, whose process was killed."""
    for path in folder.glob(".*"):
        if path.is_file() and _LEFTOVER.fullmatch(path.name):
            path.unlink()


def not_written(rule: str, error: Exception) -> OSError:
    """What to raise in the midst of a run where a file could not be written."""
    return OSError(
        f"train: {rule}, got {reason(error)}; what was saved before is intact: {remedy(error)}, "
        "then repeat the command with --resume auto"
    )


def save_checkpoint(folder: Path, nimg: int, state: dict) -> Path:
    """Writes a checkpoint, proves it, and only then removes all but it and the one before it.

    A damaged one does not count: the newest that is whole is kept with the new one.

    Args:
        folder: where checkpoints lie; made if missing.
        nimg: images seen; orders the checkpoints.
        state: tensors and plain values.

    Returns:
        The file.

    Raises:
        OSError: it could not be written; the checkpoints that were there are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{nimg:09d}.{os.getpid()}.pt"
    try:
        digest = _save(state, temporary)
        if _digest(temporary) != digest:
            raise OSError("it reads back otherwise than it was written")
        path = folder / f"{nimg:09d}-{digest}.pt"
        publish(temporary, path)
    except OSError as error:
        raise not_written(f"a checkpoint must be written to {folder}", error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _proven[path] = _signature(path)
    files = checkpoint_files(folder)
    whole = [other for other in files if not _damage(other)][:KEPT]
    if len(whole) == KEPT:
        for other in set(files) - set(whole):
            other.unlink()
            _proven.pop(other, None)
    return path


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*.pt")]
    rows = [(int(match[1]), path.stat().st_mtime_ns, path) for match, path in found if match]
    return [path for _, _, path in sorted(rows, reverse=True)]


def load_checkpoint(folder: Path, report: Callable[[str], object]) -> dict:
    """The newest checkpoint whose checksum holds.

    Args:
        folder: where checkpoints lie.
        report: told, in a sentence, of each newer one that is damaged.

    Raises:
        ValueError: none is there, or all are damaged.
    """
    files = checkpoint_files(folder)
    for path in files:
        damage = _damage(path)
        if not damage:
            # Mapped, not read: of a sharded net each process takes a part.
            return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        report(f"the checkpoint {path} is damaged ({damage}); trying the one before it")
    if not files:
        raise ValueError(
            f"train: out must hold a checkpoint to resume from, got {folder} without one; leave "
            "out --resume to start there"
        )
    raise ValueError(
        f"train: a checkpoint in {folder} must be readable, got {len(files)} damaged; restore one "
        "from a backup, or choose another --out and start again"
    )


# What this process has written or read and found whole, by size and time, to read it once only.
_proven: dict[Path, tuple[int, int]] = {}


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None for one that is whole."""
    try:
        if _proven.get(path) != _signature(path):
            if _digest(path) != path.stem.partition("-")[2]:
                return "its contents do not have the checksum in its name"
            _proven[path] = _signature(path)
    except OSError as error:
        return reason(error)
    return None


def _signature(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


class _HashingFile(io.BufferedWriter):
    """A file that computes the digest of what is written to it, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), _CHUNK)
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Buffer) -> int:
        self.hash.update(data)
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _save(state: dict, path: Path) -> str:
    with _HashingFile(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError:  # torch wraps what `write` raised, and forgets why
            if file.error is not None:
                raise file.error from None
            raise
        return file.hash.hexdigest()[:32]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:32]
