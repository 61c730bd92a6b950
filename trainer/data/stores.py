"""Where files lie: a folder, or a ZIP file read side by side by threads and processes.

A store has `names`, the sorted relative names of its files, `read(name)`, their bytes,
`where(name)`, what messages call them, `marks(names)`, their checksums and sizes, `stamp(name)`,
which changes whenever a file is written to and costs no reading, and `notes`, what a user should
be told. It can be pickled and shared by threads. `reads_for_marks` says whether `marks` reads all.
"""

from __future__ import annotations

import bisect
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import zip_format
from .errors import BrokenFileError, printable
from .threads import available_cores, map_ahead

# What a file manager leaves behind: `._img.png`, `.DS_Store`, `__MACOSX/`.
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX(?:/|$))")
# Names in an archive that are not plain: back slashes, a drive, and empty, `.` or `..` as folders.
_ODD_NAME = re.compile(r"\\|^[A-Za-z]:/|(?:^|/)\.{0,2}(?:/|$)")
_MARK_AHEAD = 8  # files in work for each thread that reads them


def _visible(name: str) -> bool:
    return not _HIDDEN.search(name)


class FolderStore:
    """The files in a folder and its subfolders, hidden ones left out.

    Links are followed, but a folder to which several ways lead is read once: by the way without
    links, or else by the first in the order of names.
    """

    reads_for_marks = True

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.notes: list[str] = []
        self.names = sorted(self._walk())

    def _walk(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        folders: list[str] = [""]
        links: list[str] = []
        while folders or links:
            links.sort(reverse=True)
            linked = not folders
            folder = links.pop() if linked else folders.pop()
            status = os.stat(self.root / folder)
            if (status.st_dev, status.st_ino) in seen:
                self.notes.append(
                    f"the link {self.where(folder.rstrip('/'))} leads to a folder that is read "
                    "anyway, and has been left out"
                )
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(self.root / folder) as entries:
                for entry in filter(lambda entry: _visible(entry.name), entries):
                    if _is_folder(entry):
                        (links if entry.is_symlink() else folders).append(f"{folder}{entry.name}/")
                    elif entry.is_symlink() or entry.is_file():  # not a pipe, which would block
                        yield folder + entry.name

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            BrokenFileError: it cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise BrokenFileError(self.where(name), "a readable file", error.strerror) from None

    def where(self, name: str) -> str:
        """What messages call the file."""
        return printable(self.root / name)

    def marks(self, names: list[str]) -> np.ndarray:
        """Checksums and sizes of files, int64 [n, 2]; reads them all, with every core.

        Raises:
            BrokenFileError: a file cannot be read.
        """

        def mark(name: str) -> tuple[int, int]:
            data = self.read(name)
            return zlib.crc32(data), len(data)

        workers = available_cores()
        rows = map_ahead(mark, names, workers, ahead=_MARK_AHEAD * workers)
        return np.fromiter(rows, np.dtype((np.int64, 2)), len(names))

    def stamp(self, name: str) -> tuple[int, ...]:
        """Size, times of writing and of any other change, and the file's number on the disk.

        The time of change cannot be set, so that none of what keeps the size, nor a copy with the
        old times, goes unnoticed.

        Raises:
            BrokenFileError: the file is no longer there.
        """
        try:
            status = os.stat(f"{self.root}/{name}")
        except OSError as error:
            raise BrokenFileError(self.where(name), "a readable file", error.strerror) from None
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class ZipStore:
    """The files in a ZIP file, stored or deflated.

    The table of contents is read once into arrays; reading a file is one call that takes its own
    position, so that threads do not wait for each other and forked processes share the handle.

    Raises:
        ValueError: the file is no ZIP file, or one with files that are encrypted or compressed
            by other methods, that lie outside the archive, or that have one name.
    """

    reads_for_marks = False

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        try:
            names, table = zip_format.read_table(self.path)
        except (ValueError, OverflowError, struct.error) as error:
            raise ValueError(
                f"dataset: {self.path} must be a whole ZIP file, got one that cannot be opened "
                f"({error}); copy or convert it again"
            ) from None
        names = [self._plain(name) if _ODD_NAME.search(name) else name for name in names]
        shown = (i for i, name in enumerate(names) if name and _visible(name))
        rows = sorted(shown, key=names.__getitem__)
        self.names, self._table = [names[i] for i in rows], table[rows]
        for name, following in zip(self.names, self.names[1:], strict=False):
            if name == following:
                raise ValueError(
                    f"dataset: {self.path} must hold every file once, got {name} twice; pack the "
                    "archive again"
                )
        *_, methods, flags = self._table.T
        for row in np.flatnonzero(
            (methods != zip_format.STORED) & (methods != zip_format.DEFLATED)
        ):
            self._refuse(self.names[row], f"compression method {methods[row]}")
        for row in np.flatnonzero(flags & zip_format.ENCRYPTED):
            self._refuse(self.names[row], "an encrypted file")
        self._opening = threading.Lock()
        self._file: int | None = None

    def _plain(self, name: str) -> str:
        """A name with slashes, from the archive's top; '' for a folder."""
        parts = re.sub(r"^[A-Za-z]:/", "", name.replace("\\", "/")).split("/")
        if ".." in parts:
            raise ValueError(
                f"dataset: {self.path} must hold files below its top, got {name}; pack the "
                "archive again from the folder that has the data"
            )
        return "/".join(part for part in parts if part not in ("", ".")) if parts[-1] else ""

    def _refuse(self, name: str, got: str) -> None:
        raise ValueError(
            f"dataset: {self.where(name)} must be stored or deflated, got {got}; pack the archive "
            "again, for example with `zip -0`"
        )

    def read(self, name: str) -> bytes:
        """The content of a file, checked against its checksum.

        Raises:
            BrokenFileError: it cannot be read, or is damaged.
        """
        offset, size, crc, _, method, _ = self._table[self._row(name)].tolist()
        try:
            data = self._content(offset, size)
            data = zlib.decompress(data, -zlib.MAX_WBITS) if method == zip_format.DEFLATED else data
            if zlib.crc32(data) != crc:
                raise ValueError("content that does not match its checksum")
        except (OSError, ValueError, zlib.error) as error:
            raise BrokenFileError(self.where(name), "a whole file", error) from None
        return data

    def _row(self, name: str) -> int:
        # The names are sorted; a dictionary of a million of them would weigh as much again.
        return bisect.bisect_left(self.names, name)

    def _content(self, offset: int, size: int) -> bytes:
        with self._opening:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
        local = zip_format.LOCAL
        header = os.pread(self._file, local.size, offset)
        if len(header) < local.size or not header.startswith(zip_format.LOCAL_MARK):
            raise ValueError("no file where the table of contents has one")
        *_, name_length, extra_length = local.unpack(header)
        start = offset + local.size + name_length + extra_length
        parts, have = [], 0
        while have < size:  # one call returns at most 2 GiB
            parts.append(os.pread(self._file, size - have, start + have))
            if not parts[-1]:
                raise ValueError(f"{have} of {size} bytes")
            have += len(parts[-1])
        return b"".join(parts)

    def where(self, name: str) -> str:
        """What messages call the file."""
        return printable(f"{self.path}:{name}")

    def marks(self, names: list[str]) -> np.ndarray:
        """Checksums and sizes of files, int64 [n, 2], the same however they are compressed."""
        return self._table[[self._row(name) for name in names], 2:4]

    def stamp(self, name: str) -> tuple[int, ...]:
        """Checksum and size, which the archive's table of contents has."""
        return tuple(self._table[self._row(name), 2:4].tolist())

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opening", "_file")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _opening=threading.Lock(), _file=None)

    def __del__(self) -> None:
        file = self.__dict__.get("_file")
        if file is not None:
            os.close(file)
