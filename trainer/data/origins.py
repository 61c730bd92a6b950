"""What the files of an unfinished output were made from, so that changed ones are made anew."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np

from .sources import Origin

_ROW = np.dtype([("index", "<u8"), *((name, "<u8") for name in Origin._fields)])


class Origins:
    """The `Origin` of every file that was written, by its number, in a file that only grows.

    A row is written before the output that it tells of, so that whenever a process ends, there is
    no output without one.

    Args:
        path: the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        whole = os.fstat(self._file).st_size // _ROW.itemsize
        os.ftruncate(self._file, whole * _ROW.itemsize)
        rows = np.fromfile(path, _ROW)
        self._rows = rows[np.argsort(rows["index"], kind="stable")]

    def get(self, index: int) -> Origin | None:
        """What file number `index` was made from last, if it was."""
        row = np.searchsorted(self._rows["index"], np.uint64(index), side="right") - 1
        if row < 0 or self._rows["index"][row] != index:
            return None
        return Origin(*self._rows[row].tolist()[1:])

    def add(self, index: int, origin: Origin) -> None:
        """Says what file number `index` is about to be made from."""
        row = np.array([(index, *origin)], _ROW).tobytes()
        if os.write(self._file, row) < len(row):  # as when a disk runs full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)
