"""The records of a ZIP file, as PKWARE's APPNOTE.TXT has them in 4.3 and 4.5."""

from __future__ import annotations

import array
import os
import struct
from pathlib import Path

import numpy as np

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
ZIP64_END = struct.Struct("<4sQ2H2I4Q")
ZIP64_LOCATOR = struct.Struct("<4sIQI")
END = struct.Struct("<4s4H2IH")
LOCAL_MARK, CENTRAL_MARK, END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
ZIP64_END_MARK, ZIP64_LOCATOR_MARK = b"PK\x06\x06", b"PK\x06\x07"
ZIP64_EXTRA = 1
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF  # say that the number is in a ZIP64 field
ENCRYPTED, UTF8 = 0x1, 0x800  # flags
STORED, DEFLATED = 0, 8  # methods
_LONGEST_COMMENT = 0xFFFF


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the files in an archive, and where they are.

    `zipfile` makes an object of each entry, which for the 1.3 million of ImageNet takes a gigabyte
    and many seconds in every process of a job; this makes a string and a row of numbers.

    Returns:
        names: folders left out, in the archive's order.
        table: int64 [N, 6]: place of the local header, length in the archive, checksum, size,
        method, flags.

    Raises:
        ValueError: it is no archive, or not whole.
    """
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        start = max(0, length - END.size - ZIP64_LOCATOR.size - _LONGEST_COMMENT)
        file.seek(start)
        tail = file.read()
        at = _end(tail)
        *_, count, size, first, _ = END.unpack_from(tail, at)
        end = start + at
        if at >= ZIP64_LOCATOR.size and (FULL32 in (size, first) or count == FULL16):
            mark, _, place, _ = ZIP64_LOCATOR.unpack_from(tail, at - ZIP64_LOCATOR.size)
            if mark == ZIP64_LOCATOR_MARK:
                file.seek(place)
                fields = ZIP64_END.unpack(file.read(ZIP64_END.size))
                if fields[0] != ZIP64_END_MARK:
                    raise ValueError("its ZIP64 record is not where it should be")
                count, size, first = fields[-3:]
                end = place
        if end < size:
            raise ValueError("its table of contents is cut off")
        file.seek(end - size)
        directory = file.read(size)
    # Where something stands before the archive, its places are off by that much.
    return _entries(directory, count, end - size - first)


def _end(tail: bytes) -> int:
    """Where the last record begins: the one whose comment reaches to the end of the file."""
    at = len(tail)
    while (at := tail.rfind(END_MARK, 0, at)) >= 0:
        comment = len(tail) - at - END.size
        if comment >= 0 and END.unpack_from(tail, at)[-1] == comment:
            return at
    raise ValueError("it does not end as a ZIP file")


def _entries(directory: bytes, count: int, shift: int) -> tuple[list[str], np.ndarray]:
    names, numbers, at = [], array.array("q"), 0
    for _ in range(count):
        try:
            fields = CENTRAL.unpack_from(directory, at)
        except struct.error:
            raise ValueError("its table of contents is cut off") from None
        mark, _, _, flags, method, _, _, crc, packed, size, n, m, k, _, _, _, place = fields
        if mark != CENTRAL_MARK:
            raise ValueError("its table of contents is damaged")
        at += CENTRAL.size
        raw = directory[at : at + n]
        name = raw.decode("utf-8", "surrogateescape") if flags & UTF8 else raw.decode("cp437")
        if FULL32 in (size, packed, place):
            size, packed, place = _zip64(directory[at + n : at + n + m], size, packed, place)
        at += n + m + k
        if not name.endswith("/"):
            names.append(name)
            numbers.extend((place + shift, packed, crc, size, method, flags))
    return names, np.array(numbers).reshape(-1, 6)


def _zip64(extra: bytes, size: int, packed: int, place: int) -> tuple[int, int, int]:
    """Size, length in the archive and place, from the field that holds what four bytes do not."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == ZIP64_EXTRA:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size, packed, place = (next(wide) if v == FULL32 else v for v in (size, packed, place))
            return size, packed, place
        at += 4 + length
    raise ValueError("an entry lacks its ZIP64 field")
