"""A ZIP file that grows file by file and can be taken up where it was cut off.

`zipfile` writes its table of contents when an archive is closed, so that one cut off before is
lost. Here every file is found again by its own header, and checked by its checksum.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

# Fields as in PKWARE's APPNOTE.TXT, 4.3 and 4.5. Files are stored as they are: PNG does not shrink.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_ZIP64_OFFSET = struct.Struct("<2HQ")
_ZIP64_END = struct.Struct("<4sQ2H2I4Q")
_ZIP64_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # say that the number is in a ZIP64 field
_VERSION = 45  # the first with ZIP64
_UTF8 = 0x800
_DATE = (1980 - 1980) << 9 | 1 << 5 | 1  # 1 January 1980: equal data make equal archives


class ZipOutput:
    """Appends files to the archive at `path`, after those that an earlier run left whole.

    Args:
        path: the file; made if missing.
        stop: name of a file that is not kept, with all that follow it.

    names: of the files that are in the archive.
    """

    def __init__(self, path: Path, stop: str) -> None:
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._entries: list[tuple[bytes, int, int, int]] = []  # name, checksum, size, place
        self._recover(stop.encode())
        self.names = {name.decode() for name, *_ in self._entries}

    def _recover(self, stop: bytes) -> None:
        place = 0
        while len(header := self._file.read(_LOCAL.size)) == _LOCAL.size:
            signature, *_, crc, size, _, name_length, _ = _LOCAL.unpack(header)
            name = self._file.read(name_length)
            if signature != b"PK\x03\x04" or name == stop:
                break
            data = self._file.read(size)
            if len(data) < size or zlib.crc32(data) != crc:
                break
            self._entries.append((name, crc, size, place))
            place = self._file.tell()
        self._file.seek(place)
        self._file.truncate()

    def write(self, name: str, data: bytes) -> None:
        """Appends a file."""
        raw, crc = name.encode(), zlib.crc32(data)
        header = _LOCAL.pack(b"PK\x03\x04", _VERSION, _UTF8, 0, 0, _DATE, crc, len(data), len(data),
                             len(raw), 0)  # fmt: skip
        self._entries.append((raw, crc, len(data), self._file.tell()))
        self._file.write(header + raw + data)
        self.names.add(name)

    def finish(self) -> None:
        """Writes the table of contents, and brings all to the disk."""
        start = self._file.tell()
        for name, crc, size, place in self._entries:
            extra = _ZIP64_OFFSET.pack(1, 8, place) if place >= _FULL32 else b""
            self._file.write(
                _CENTRAL.pack(b"PK\x01\x02", _VERSION, _VERSION, _UTF8, 0, 0, _DATE, crc, size,
                              size, len(name), len(extra), 0, 0, 0, 0, min(place, _FULL32))
                + name + extra
            )  # fmt: skip
        count, length = len(self._entries), self._file.tell() - start
        if count >= _FULL16 or start >= _FULL32 or length >= _FULL32:
            end = self._file.tell()
            self._file.write(
                _ZIP64_END.pack(b"PK\x06\x06", _ZIP64_END.size - 12, _VERSION, _VERSION, 0, 0,
                                count, count, length, start)
                + _ZIP64_LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
            )  # fmt: skip
        self._file.write(
            _END.pack(b"PK\x05\x06", 0, 0, min(count, _FULL16), min(count, _FULL16),
                      min(length, _FULL32), min(start, _FULL32), 0)
        )  # fmt: skip
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()
