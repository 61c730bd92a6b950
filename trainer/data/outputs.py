"""Where a conversion writes: a folder or ZIP file that appears whole, or is taken up again.

Beside `DEST` grow `DEST.partial`, `DEST.partial.json`, the options of the conversion, and
`DEST.partial.sources`, what each file was made from; `DEST.partial.lock` is there while a process
writes. When all is written, the first is renamed to `DEST` and the others removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from autoguide_fast.files import reason, remedy, write_atomically
from autoguide_fast.locks import locked

from .errors import UnsuitableError
from .layout import LABELS
from .origins import Origins
from .sources import PARTIAL, Origin
from .zip_output import ZipOutput

_NUMBERED = re.compile(r"\d{5}/img(\d{8,})\.\w+")


class FolderOutput:
    """Writes files into the folder at `path`, each whole or not at all.

    Args:
        path: the folder; made if missing.
        keep: says of the name of a file that an earlier run left whether it is kept.

    names: of the files that are there.
    """

    def __init__(self, path: Path, keep: Callable[[str], bool]) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.names = set()
        for file in sorted(path.rglob("*")):
            if not file.is_file():
                continue
            name = file.relative_to(path).as_posix()
            # A file of no bytes is one that the power took before it reached the disk.
            if file.stat().st_size and keep(name):
                self.names.add(name)
            else:
                file.unlink()

    def write(self, name: str, data: bytes) -> None:
        """Writes a file."""
        target = self.path / name
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_name("." + target.name)
        temporary.write_bytes(data)
        os.replace(temporary, target)
        self.names.add(name)

    def finish(self) -> None:
        """Brings all to the disk."""
        os.sync()

    def close(self) -> None:
        """Nothing to let go of."""


class Output:
    """What `open_output` gives: files numbered as their sources, and how to finish.

    changed: whether some of what an earlier run wrote was dropped, since its sources have changed.
    """

    def __init__(
        self,
        open_files: Callable[[Callable[[str], bool]], FolderOutput | ZipOutput],
        suffix: str,
        origins: Origins,
        unchanged: Callable[[int, Origin], bool],
    ) -> None:
        self.suffix, self.changed = suffix, False
        self._origins, self._unchanged = origins, unchanged
        self._files = open_files(self._keep)

    def _keep(self, name: str) -> bool:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            return False
        index = int(match[1])
        origin = self._origins.get(index)
        if origin is None:
            return False
        kept = self._unchanged(index, origin)
        self.changed |= not kept
        return kept

    def name(self, index: int) -> str:
        """Name of file number `index`, a thousand to a folder, as in the reference's layout."""
        return f"{index // 1000:05d}/img{index:08d}{self.suffix}"

    def has(self, index: int) -> bool:
        """Whether the file is written."""
        return self.name(index) in self._files.names

    def write(self, index: int, data: bytes, origin: Origin) -> None:
        """Writes file number `index`, and what it was made from."""
        self._origins.add(index, origin)
        self._files.write(self.name(index), data)

    def finish(self, labels: np.ndarray | None, classes: list[str] | None, count: int) -> int:
        """Writes `dataset.json` for the files written among the first `count`; returns how many."""
        there = [index for index in range(count) if self.has(index)]
        listed = None
        if labels is not None:
            listed = [[self.name(index), int(labels[index])] for index in there]
        content = {"labels": listed} | ({"classes": classes} if classes else {})
        self._files.write(LABELS, json.dumps(content).encode())
        self._files.finish()
        return len(there)

    def close(self) -> None:
        """Lets go of the files."""
        self._files.close()


@contextlib.contextmanager
def open_output(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    suffix: str,
    options: dict,
    unchanged: Callable[[int, Origin], bool],
) -> Iterator[Output]:
    """Opens `dest`, which becomes a ZIP file if it ends in .zip and a folder otherwise.

    On leaving without an exception, the output appears under its name. After an UnsuitableError,
    which says that other options are needed, what was written is removed; after any other it can be
    taken up.

    Args:
        source: where the data come from.
        dest: must not exist, nor lie in the source.
        suffix: of the files in it.
        options: JSON values that a run which takes up another must repeat.
        unchanged: whether source number i still is what it was when a file was made from it; what
            has changed is made anew.

    Raises:
        ValueError: `dest` exists or cannot be written, another process is writing it, or an
            earlier run began it with other options, each of which is named.
    """
    source, dest = Path(source), Path(dest)
    partial = dest.with_name(dest.name + PARTIAL)
    record, sources, lock = (
        partial.with_name(partial.name + end) for end in (".json", ".sources", ".lock")
    )
    with _writable(dest):
        if source.resolve() in dest.resolve().parents:
            raise ValueError(
                f"dataset: dest must lie outside the source {source}, got {dest}; choose another "
                "place"
            )
        dest.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, "dataset: dest", dest):
            if dest.exists():
                raise ValueError(
                    f"dataset: dest must not exist, got {dest}; remove it, or choose another name"
                )
            _same_options(options, partial, record)
            kind = ZipOutput if dest.suffix.lower() == ".zip" else FolderOutput
            with contextlib.closing(Origins(sources)) as origins:
                files = Output(lambda keep: kind(partial, keep), suffix, origins, unchanged)
                with contextlib.closing(files):
                    try:
                        yield files
                    except UnsuitableError:
                        _remove(partial)
                        record.unlink()
                        sources.unlink()
                        raise
            os.replace(partial, dest)
            sources.unlink()
            record.unlink()


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


@contextlib.contextmanager
def _writable(dest: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"dataset: dest must be a place that can be written, got {dest} ({reason(error)}); "
            f"{remedy(error)}, then repeat the command: it goes on where it stopped"
        ) from error


def _same_options(options: dict, partial: Path, record: Path) -> None:
    if not partial.exists():  # what else is there is left of a conversion that ended
        write_atomically(record, lambda path: path.write_text(json.dumps(options)))
        return
    try:
        before = json.loads(record.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"dataset: {partial} must have its options in {record.name}, got none; remove it"
        ) from None
    except ValueError:
        before = {}
    before = before if isinstance(before, dict) else {}
    changed = [k for k in options if before.get(k) != options[k]]
    if changed:
        listed = ", ".join(f"{k} was {before.get(k)}, is {options[k]}" for k in changed)
        raise ValueError(
            f"dataset: options must stay as when {partial} was begun, got changes: {listed}; "
            f"repeat the first command, or remove {partial.name} and {record.name}"
        )
