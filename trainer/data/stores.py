"""Where files lie: a folder, or a ZIP file read side by side by threads and processes.

A store has `names`, the sorted relative names of its files, `read(name)`, their bytes,
`where(name)`, what messages call them, and `marks(names)`, what tells their contents from others
without reading them all. It can be pickled and shared by threads.
"""

from __future__ import annotations

import bisect
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np

from . import zip_format
from .errors import BrokenFileError

CHECKED = 32  # files of a folder whose contents count when it is compared with another


def _visible(name: str) -> bool:
    """False for what file managers leave behind, such as `._img.png` and `__MACOSX/`."""
    return not name.startswith((".", "__MACOSX")) and "/." not in name


class FolderStore:
    """The files in a folder and its subfolders, hidden ones left out."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        self.names = sorted(filter(_visible, self._walk()))

    def _walk(self):
        def fail(error: OSError):
            raise error

        for folder, folders, files in os.walk(self.root, onerror=fail, followlinks=True):
            folders[:] = [name for name in folders if _visible(name)]
            relative = Path(folder).relative_to(self.root)
            yield from ((relative / name).as_posix() for name in files)

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
        return str(self.root / name)

    def marks(self, names: list[str]) -> np.ndarray:
        """Sizes of files, which a copy keeps as it need not keep their times; int64 [n, 2].

        Beside them the checksums of a few, so that all of them, made anew, are told from the old:
        latents of one shape are as long from any encoder.

        Raises:
            BrokenFileError: a file is no longer there.
        """
        root, marks = str(self.root), np.zeros((len(names), 2), np.int64)
        for row, name in enumerate(names):
            try:
                marks[row, 0] = os.stat(f"{root}/{name}").st_size
            except OSError as error:
                raise BrokenFileError(self.where(name), "a readable file", error.strerror) from None
        for row in range(0, len(names), len(names) // CHECKED + 1):
            marks[row, 1] = zlib.crc32(self.read(names[row]))
        return marks


class ZipStore:
    """The files in a ZIP file, stored or deflated.

    The table of contents is read once into arrays; reading a file is one call that takes its own
    position, so that threads do not wait for each other and forked processes share the handle.

    Raises:
        ValueError: the file is no ZIP file, or one with files that are encrypted or compressed
            by other methods.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            names, table = zip_format.read_table(self.path)
        except (ValueError, OverflowError, struct.error) as error:
            raise ValueError(
                f"dataset: {self.path} must be a whole ZIP file, got one that cannot be opened "
                f"({error}); copy or convert it again"
            ) from None
        rows = sorted((i for i, name in enumerate(names) if _visible(name)), key=names.__getitem__)
        self.names, self._table = [names[i] for i in rows], table[rows]
        *_, methods, flags = self._table.T
        for row in np.flatnonzero(
            (methods != zip_format.STORED) & (methods != zip_format.DEFLATED)
        ):
            self._refuse(self.names[row], f"compression method {methods[row]}")
        for row in np.flatnonzero(flags & zip_format.ENCRYPTED):
            self._refuse(self.names[row], "an encrypted file")
        self._opening = threading.Lock()
        self._file: int | None = None

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
        return f"{self.path}:{name}"

    def marks(self, names: list[str]) -> np.ndarray:
        """Checksums and sizes of files, int64 [n, 2], the same however they are compressed."""
        return self._table[[self._row(name) for name in names], 2:4]

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opening", "_file")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _opening=threading.Lock(), _file=None)

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None:
            os.close(self._file)
