"""What a pickle of the reference implementation may hold: the one list of all that is rebuilt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .pickle_reader import Budget, PickleReader, Rebuild, Recorded, Refused, shown
from .recorded_tensors import (
    DTYPES,
    RecordedArray,
    RecordedType,
    fill_array,
    fill_dtype,
    rebuild_array,
    rebuild_dtype,
    rebuild_from_buffer,
    rebuild_parameter,
    rebuild_scalar,
    rebuild_tensor,
    storage_reader,
)

_VERSION = 6  # of the format in which objects are recorded
CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "ParameterDict", "ParameterList")


def is_pickle(path: str | os.PathLike) -> bool:
    """Whether a file is to be read as a pickle, by its first bytes, or else by its name."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    if start[8:9] == b"{":  # as safetensors files have it after eight bytes of length
        return False
    return start[:1] == b"\x80" or Path(path).suffix.lower() in (".pkl", ".pickle", ".pt")


@contextlib.contextmanager
def opened(path: str | os.PathLike, function: str) -> Iterator[Any]:
    """The contents of a pickle, while the file is open.

    Raises ValueError, in the name of `function`, for what is not dictionaries and tensors.
    """
    try:
        with open(path, "rb", buffering=1 << 16) as file:
            yield _contents(file)
    except Refused as refused:
        raise ValueError(
            f"{function}: {path} must be a snapshot that holds tensors and plain values, got "
            f"{refused}; use one that the reference implementation or autoguide_fast saved"
        ) from None
    except OSError as error:
        if error.errno is None:  # a sentence on what was done with the contents
            raise
        raise ValueError(
            f"{function}: {path} must be a snapshot that can be read, got {error.strerror}; check "
            "the file"
        ) from None


def check(path: str | os.PathLike, function: str) -> None:
    """Raise ValueError, in the name of `function`, where a file is no whole pickle of data."""
    with opened(path, function):
        pass


def _contents(file: BinaryIO) -> Any:
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(64)
    if start[:1] != b"\x80":
        raise Refused(_other_kind(start, size))
    budget = Budget(size)
    reader = PickleReader(file, 0, size, _symbols(budget), _set_state, budget)
    value = reader.read()
    if reader.at != size:
        raise Refused("bytes after its end")
    return value


def _other_kind(start: bytes, size: int) -> str:
    if not size:
        return "an empty file"
    text = start.lstrip()
    if text[:1] == b"<":
        return "a page of HTML or XML, as a server sends that does not find a file"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, which stands for the file"
    if start.startswith(b"PK\x03\x04"):
        return "an archive, as torch.save writes it"
    return f"a file that begins with {shown(repr(start[:8]))}"


def _symbols(budget: Budget) -> dict[tuple[str, str], Rebuild | None]:
    arrays: dict[tuple[str, str], Rebuild] = {
        ("_reconstruct", "multiarray"): rebuild_array,
        ("scalar", "multiarray"): rebuild_scalar,
        ("_frombuffer", "numeric"): rebuild_from_buffer,
    }
    return {
        ("dnnlib.util", "EasyDict"): _dictionary,
        ("dnnlib", "EasyDict"): _dictionary,
        ("collections", "OrderedDict"): _dictionary,
        ("builtins", "set"): _set,
        ("__builtin__", "set"): _set,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        **{("torch.nn.modules.container", name): _container(name) for name in CONTAINERS},
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch.storage", "_load_from_bytes"): storage_reader(budget),
        ("torch", "Size"): _size,
        ("torch", "device"): _device,
        **dict.fromkeys(DTYPES),
        ("numpy", "ndarray"): None,
        ("numpy", "dtype"): rebuild_dtype,
        **{
            (f"numpy.{core}.{module}", name): rebuild
            for core in ("core", "_core")
            for (name, module), rebuild in arrays.items()
        },
    }


def _dictionary(arguments: tuple) -> dict[str, Any]:
    if not arguments:
        return {}
    pairs = arguments[0]
    if len(arguments) != 1 or type(pairs) is not list:
        raise Refused("a dictionary of another kind")
    if not all(type(p) in (list, tuple) and len(p) == 2 and type(p[0]) is str for p in pairs):
        raise Refused("a dictionary of another kind")
    return dict(pairs)


def _set(arguments: tuple) -> set[str]:
    if not arguments:
        return set()
    if len(arguments) != 1 or type(arguments[0]) is not list:
        raise Refused("a set of another kind")
    if not all(type(value) is str for value in arguments[0]):
        raise Refused("a set of what is no text")
    return set(arguments[0])


def _size(arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) not in (tuple, list):
        raise Refused("a torch.Size of another kind")
    return tuple(arguments[0])


def _device(arguments: tuple) -> str:
    return "device"


def _container(name: str) -> Rebuild:
    def rebuild(arguments: tuple) -> Recorded:
        if arguments:
            raise Refused(f"a {name} with arguments")
        return Recorded(name)

    return rebuild


def _persistent(arguments: tuple) -> Recorded:
    meta = arguments[0] if len(arguments) == 1 else None
    if type(meta) is not dict or meta.get("type") != "class":
        raise Refused("a recorded object that is none of a class")
    if meta.get("version") != _VERSION:
        raise Refused(f"an object recorded in version {shown(meta.get('version'))} of the format")
    name, state = meta.get("class_name"), meta.get("state")
    if type(name) is not str or type(state) is not dict:
        raise Refused("a recorded object without its attributes")
    return Recorded(name, state)


def _set_state(value: object, state: Any) -> None:
    if type(value) is RecordedArray:
        fill_array(value, state)
    elif type(value) is RecordedType:
        fill_dtype(value, state)
    elif type(value) is Recorded and value.class_name in CONTAINERS and type(state) is dict:
        value.state = state
    else:
        raise Refused(f"a state for {shown(value)}")
