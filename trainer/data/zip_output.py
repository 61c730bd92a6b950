"""A ZIP file that grows file by file and can be taken up where it was cut off.

`zipfile` writes its table of contents when an archive is closed, so that one cut off before is
lost. Here every file is found again by its own header, and checked by its checksum.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from .zip_format import (
    CENTRAL,
    CENTRAL_MARK,
    END,
    END_MARK,
    FULL16,
    FULL32,
    LOCAL,
    LOCAL_MARK,
    STORED,
    UTF8,
    ZIP64_END,
    ZIP64_END_MARK,
    ZIP64_EXTRA,
    ZIP64_LOCATOR,
    ZIP64_LOCATOR_MARK,
)

_VERSION = 45  # the first with ZIP64
_DATE = (1980 - 1980) << 9 | 1 << 5 | 1  # 1 January 1980: equal data make equal archives


class ZipOutput:
    """Appends files to the archive at `path`, after those that an earlier run left whole.

    Args:
        path: the file; made if missing.
        keep: says of the name of a file whether it is kept; one that is not goes with all that
            follow it.

    names: of the files that are in the archive.
    """

    def __init__(self, path: Path, keep: Callable[[str], bool]) -> None:
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._entries: list[tuple[bytes, int, int, int]] = []  # name, checksum, size, place
        self._recover(keep)
        self.names = {name.decode() for name, *_ in self._entries}

    def _recover(self, keep: Callable[[str], bool]) -> None:
        place = 0
        while len(header := self._file.read(LOCAL.size)) == LOCAL.size:
            signature, *_, crc, size, _, name_length, _ = LOCAL.unpack(header)
            name = self._file.read(name_length)
            if signature != LOCAL_MARK:
                break
            data = self._file.read(size)
            if len(data) < size or zlib.crc32(data) != crc:
                break
            if not keep(name.decode(errors="replace")):
                break
            self._entries.append((name, crc, size, place))
            place = self._file.tell()
        self._file.seek(place)
        self._file.truncate()

    def write(self, name: str, data: bytes) -> None:
        """Appends a file."""
        raw, crc = name.encode(), zlib.crc32(data)
        header = LOCAL.pack(
            LOCAL_MARK, _VERSION, UTF8, STORED, 0, _DATE, crc, len(data), len(data), len(raw), 0
        )
        self._entries.append((raw, crc, len(data), self._file.tell()))
        self._file.write(header + raw + data)
        self.names.add(name)

    def finish(self) -> None:
        """Writes the table of contents, and brings all to the disk."""
        start = self._file.tell()
        for name, crc, size, place in self._entries:
            extra = struct.pack("<2HQ", ZIP64_EXTRA, 8, place) if place >= FULL32 else b""
            self._file.write(
                CENTRAL.pack(
                    CENTRAL_MARK,
                    _VERSION,
                    _VERSION,
                    UTF8,
                    STORED,
                    0,
                    _DATE,
                    crc,
                    size,
                    size,
                    len(name),
                    len(extra),
                    0,
                    0,
                    0,
                    0,
                    min(place, FULL32),
                )
                + name
                + extra
            )
        count, length = len(self._entries), self._file.tell() - start
        if count >= FULL16 or start >= FULL32 or length >= FULL32:
            end = self._file.tell()
            self._file.write(
                ZIP64_END.pack(
                    ZIP64_END_MARK,
                    ZIP64_END.size - 12,
                    _VERSION,
                    _VERSION,
                    0,
                    0,
                    count,
                    count,
                    length,
                    start,
                )
                + ZIP64_LOCATOR.pack(ZIP64_LOCATOR_MARK, 0, end, 1)
            )
        self._file.write(
            END.pack(
                END_MARK,
                0,
                0,
                min(count, FULL16),
                min(count, FULL16),
                min(length, FULL32),
                min(start, FULL32),
                0,
            )
        )
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()
