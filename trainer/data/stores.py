"""Where files lie: a folder, or a ZIP file read side by side by threads and processes.

A store has `names`, the sorted relative names of its files, `read(name)`, their bytes, and
`where(name)`, what messages call them. It can be pickled and shared by threads.
"""

from __future__ import annotations

import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .errors import BrokenFileError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature ... length of the name, of the extra field
_ENCRYPTED = 1


def _visible(name: str) -> bool:
    """False for what file managers leave behind, such as `._img.png` and `__MACOSX/`."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


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
            with zipfile.ZipFile(self.path) as archive:
                entries = [e for e in archive.infolist() if not e.is_dir() and _visible(e.filename)]
        except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError) as error:
            raise ValueError(
                f"dataset: {self.path} must be a whole ZIP file, got one that cannot be opened "
                f"({error}); copy or convert it again"
            ) from None
        entries.sort(key=lambda entry: entry.filename)
        for entry in entries:
            method = entry.compress_type
            if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                self._refuse(entry.filename, f"compression method {method}")
            if entry.flag_bits & _ENCRYPTED:
                self._refuse(entry.filename, "an encrypted file")
        self.names = [entry.filename for entry in entries]
        self._row = {name: row for row, name in enumerate(self.names)}
        # Per file: place of its header, length in the archive, checksum, whether it is deflated.
        self._table = np.array(
            [(e.header_offset, e.compress_size, e.CRC, e.compress_type == zipfile.ZIP_DEFLATED)
             for e in entries], np.int64,
        ).reshape(-1, 4)  # fmt: skip
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
        offset, size, crc, deflated = self._table[self._row[name]].tolist()
        try:
            data = self._content(offset, size)
            data = zlib.decompress(data, -zlib.MAX_WBITS) if deflated else data
            if zlib.crc32(data) != crc:
                raise ValueError("content that does not match its checksum")
        except (OSError, ValueError, zlib.error) as error:
            raise BrokenFileError(self.where(name), "a whole file", error) from None
        return data

    def _content(self, offset: int, size: int) -> bytes:
        with self._opening:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDONLY)
        header = os.pread(self._file, _LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise ValueError("no file where the table of contents has one")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = offset + _LOCAL_HEADER.size + name_length + extra_length
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

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opening", "_file")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _opening=threading.Lock(), _file=None)

    def __del__(self) -> None:
        if self.__dict__.get("_file") is not None:
            os.close(self._file)
