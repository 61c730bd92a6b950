"""The file of a network: safetensors with a header and a checksum.

The entry `autoguide_fast` of the file's metadata is the header, JSON: `config` (the arguments of
`Precond`), `encoder` (a name or null), `digest` (the kind of the checksum), whatever else was
recorded when saving, and at its end `checksum`: of the header up to there and of the tensors'
names, types, shapes and bytes. Files of earlier versions have neither of the two.

What is read here may also be a snapshot of the reference implementation; see `reference.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import recorded_objects, reference

Check = Callable[[dict[str, Any], dict[str, tuple[int, ...]]], None]  # of a header and shapes

METADATA_KEY = "autoguide_fast"
DIGEST = "xxh3_128"
OWN = (
    "network",
    "config",
    "encoder",
    "digest",
    "checksum",
)  # what else a header holds is `net.info`

# By the types that are written, what safetensors calls them.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_CHECKSUM = re.compile(r', "checksum": "([0-9a-f]{32})"\}$')


def read(path: str | os.PathLike, function: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header (a dict) and the tensors of a file, as they are stored.

    Raises ValueError, in the name of `function`, for a file that is not such a checkpoint or whose
    contents do not have the checksum that it carries.
    """
    with reading(path, function) as (header, tensors):
        return header, dict(tensors)


@contextlib.contextmanager
def reading(
    path: str | os.PathLike, function: str, check: Check | None = None
) -> Iterator[tuple[dict[str, Any], Mapping[str, Tensor]]]:
    """What `read` returns, for as long as the file is open.

    The tensors are a mapping, which may read each of them when it is asked for it.
    `check(header, shapes)` may raise an error before any tensor is read; `shapes` is a dict.
    """
    if recorded_objects.is_pickle(path):
        with reference.reading(path, function) as (header, tensors):
            if check is not None:
                check(header, tensors.shapes)
            yield header, tensors
    else:
        yield _read(path, function, check)


def _read(
    path: str | os.PathLike, function: str, check: Check | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text, header = _header(path, file, function)
            names = file.keys()
            if check is not None:
                check(header, {k: tuple(file.get_slice(k).get_shape()) for k in names})
            tensors = {k: file.get_tensor(k) for k in names}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, function, error) from None
    found = _CHECKSUM.search(text)
    if found:
        whole = found[1] == _checksum(text[: found.start()] + "}", sorted(tensors.items()))
    else:
        whole = header.get("digest") != DIGEST  # which tells of a checksum that is not there
    if not whole:
        raise ValueError(
            f"{function}: {path} must have the contents that were saved, got others by its "
            "checksum: it is damaged, or another program has changed it; restore it, or save the "
            "network again with autoguide_fast.checkpoints.save"
        )
    return header, tensors


def read_header(path: str | os.PathLike, function: str) -> dict[str, Any]:
    """The header of a file, without a look at the tensors.

    Raises ValueError, in the name of `function`, for a file that is not such a checkpoint, or whose
    length is not what its tensors need.
    """
    if recorded_objects.is_pickle(path):
        return reference.read_header(path, function)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return _header(path, file, function)[1]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, function, error) from None


def _header(path: str | os.PathLike, file: Any, function: str) -> tuple[str, dict[str, Any]]:
    """The header of an open file as text and as a dict."""
    text = (file.metadata() or {}).get(METADATA_KEY, "null")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number or a nesting without end
        raise _unreadable(path, function, error) from None
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise ValueError(
            f"{function}: {path} must say how its network is built, got a safetensors file without "
            f"the metadata {METADATA_KEY!r}; save the network with autoguide_fast.checkpoints.save"
        )
    return text, header


def _unreadable(path: str | os.PathLike, function: str, error: Exception) -> ValueError:
    if _is_exported(path):
        return ValueError(
            f"{function}: {path} must be a safetensors file written by autoguide_fast, got a "
            "program that torch.export saved; import autoguide_fast, whose operators it calls, and "
            "sample torch.export.load(path).module()"
        )
    return ValueError(
        f"{function}: {path} must be a safetensors file written by autoguide_fast, got one that "
        f"cannot be read ({error}); save the network with autoguide_fast.checkpoints.save"
    )


def _is_exported(path: str | os.PathLike) -> bool:
    """Whether a file is a program of `torch.export` (`.pt2`)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "archive_format" for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def write(
    path: str | os.PathLike,
    header: str,
    tensors: Mapping[str, Tensor],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write a file: its header, a dict as text, and its tensors, with their checksum.

    `tensors` is a mapping. Each is asked for twice, for the checksum and for its bytes, and only
    one is held at a time, so that a mapping that reads them from a file needs little memory.
    `progress` is told the numbers of bytes as they are done, in all twice those of the tensors.
    """
    kinds: dict[str, tuple[torch.dtype, list[int]]] = {}

    def looked_at() -> Iterator[tuple[str, Tensor]]:
        for name in sorted(tensors):
            value = tensors[name]
            kinds[name] = value.dtype, list(value.shape)
            yield name, value
            if progress is not None:
                progress(value.nbytes)

    header = f'{header[:-1]}, "checksum": "{_checksum(header, looked_at())}"}}'
    entries: dict[str, dict[str, Any]] = {"__metadata__": {METADATA_KEY: header}}
    end = 0
    # Wide types first: so each number lies at a multiple of its size.
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    for name in order:
        dtype, shape = kinds[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            value = tensors[name]
            file.write(_bytes(value))
            if progress is not None:
                progress(value.nbytes)


def _checksum(header: str, named: Iterable[tuple[str, Tensor]]) -> str:
    """Checksum of a header and of the names, types, shapes and bytes of tensors, in hexadecimal.

    `named` yields pairs of name and tensor in the order of the names.
    """
    import xxhash  # at 10 GB/s and more it is not felt

    digest = xxhash.xxh3_128(header.encode())
    for name, value in named:
        digest.update(f"\0{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
