"""A short checksum by which one dataset is told from another."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(*parts: str | np.ndarray | None) -> str:
    """16 hexadecimal digits of a checksum of texts and arrays, in their order."""
    checksum = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            data = part.encode(errors="surrogateescape")  # file names need not be UTF-8
        else:
            data = b"" if part is None else np.ascontiguousarray(part).data
        checksum.update(hashlib.sha256(data).digest())  # of its own, so that its end matters
    return checksum.hexdigest()[:16]
