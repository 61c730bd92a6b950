"""Files that survive whatever happens while they are written, and checkpoints that prove it.

A file is written under another name, brought to the disk, and renamed; then its folder is brought
to the disk, so that the rename itself is not lost when the power goes. A checkpoint carries the
first half of its SHA-256 in its name, `000051200-9f86d081884c7d659a2feaa0c55ad015.pt`, so that one
rename publishes data and checksum together, and no second file can disagree with the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

KEPT = 2  # the newest checkpoint and the one before it
_NAME = re.compile(r"(\d{9,})-([0-9a-f]{32})\.pt")
# As `write_atomically`, `save_checkpoint` and `autoguide_fast.checkpoints.save` call them.
_LEFTOVER = re.compile(r"\.(pt|json|jsonl|safetensors|partial)$")
_CHUNK = 1 << 22


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make a file beside `path`, brings it to the disk, and renames it to `path`.

    Whatever fails, `path` holds what it held before, and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file, with file and folder brought to the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes the unfinished files of a process that was killed while it wrote."""
    for path in folder.glob(".*"):
        if path.is_file() and _LEFTOVER.search(path.name):
            path.unlink()


def save_checkpoint(folder: Path, nimg: int, state: dict) -> Path:
    """Writes a checkpoint, proves it, and only then removes all but the one before it.

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
        raise OSError(
            f"train: a checkpoint must be written to {folder}, got {error.strerror or error}; what "
            "was saved before is intact: make room, then repeat the command with --resume auto"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    older = [other for other in checkpoint_files(folder) if other != path]
    for other in older[KEPT - 1 :]:
        other.unlink()
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
        problem = None
        try:
            if _digest(path) == _NAME.fullmatch(path.name)[2]:
                # Mapped, not read: of a sharded net each process takes a part.
                return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            problem = "its contents do not have the checksum in its name"
        except OSError as error:
            problem = error.strerror or str(error)
        report(f"the checkpoint {path} is damaged ({problem}); trying the one before it")
    if not files:
        raise ValueError(
            f"train: out must hold a checkpoint to resume from, got {folder} without one; leave "
            "out --resume to start there"
        )
    raise ValueError(
        f"train: a checkpoint in {folder} must be readable, got {len(files)} damaged; restore one "
        "from a backup, or choose another --out and start again"
    )


class _HashingFile(io.BufferedWriter):
    """A file that computes the digest of what is written to it, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"), _CHUNK)
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data) -> int:
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
