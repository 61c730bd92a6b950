"""Tensors and arrays in a pickle: where their numbers lie in the file, read when asked for."""

import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .pickle_reader import Budget, PickleReader, Refused, Span, Symbol, shown

_TYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
STORAGES = [("torch", name) for name in _TYPES]
DTYPES = [("torch", str(dtype).removeprefix("torch.")) for dtype in _TYPES.values()]

_MAGIC = 0x1950A86A20F9469CFC6C  # with which torch's older streams begin
_PROTOCOL = 1001
_MOST_DIMENSIONS = 16


@dataclass(eq=False)
class Storage:
    """One-dimensional numbers of one type."""

    dtype: torch.dtype
    count: int
    data: Span


@dataclass(eq=False)
class RecordedTensor:
    """A tensor whose numbers lie side by side in the file, in some order of dimensions."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Its torch.dtype."""
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        """What its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, contiguous, in memory of its own."""
        size = self.dtype.itemsize
        data = bytearray(self.storage.data.read(self.offset * size, self.nbytes))
        if not data:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(data, dtype=self.dtype)
        return flat.as_strided(self.shape, self.strides).contiguous()


def rebuild_tensor(arguments: tuple) -> RecordedTensor:
    """What `torch._utils._rebuild_tensor_v2` is given, as a `RecordedTensor`."""
    if not 4 <= len(arguments) <= 7:
        raise Refused("a tensor of another version of torch")
    storage, offset, shape, strides, *rest = arguments
    if type(storage) is not Storage:
        raise Refused("a tensor without its numbers")
    if any(rest[1:]):
        raise Refused("a tensor with hooks")
    if not _sizes(shape) or not _sizes(strides) or len(shape) != len(strides):
        raise Refused("a tensor whose shape is none")
    count = math.prod(shape)
    if type(offset) is not int or not 0 <= offset <= storage.count - count:
        raise Refused("a tensor that reaches beyond its numbers")
    if not count:
        strides = (0,) * len(shape)
    dense = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if count and size != 1:
            if stride != dense:
                raise Refused("a tensor whose numbers do not lie side by side")
            dense *= size
    return RecordedTensor(storage, offset, tuple(shape), tuple(strides))


def rebuild_parameter(arguments: tuple) -> RecordedTensor:
    """What `torch._utils._rebuild_parameter` is given: the tensor in it."""
    if len(arguments) != 3 or type(arguments[0]) is not RecordedTensor or arguments[2]:
        raise Refused("a parameter that is more than a tensor")
    return arguments[0]


def _sizes(values: Any) -> TypeGuard[tuple[int, ...] | list[int]]:
    return (
        type(values) in (tuple, list)
        and len(values) <= _MOST_DIMENSIONS
        and all(type(v) is int and 0 <= v < 1 << 40 for v in values)
    )


def storage_reader(budget: Budget) -> Callable[[tuple], Storage]:
    """What `torch.storage._load_from_bytes` stands for: the storage in a stream of torch's."""

    def rebuild(arguments: tuple) -> Storage:
        if len(arguments) != 1 or type(arguments[0]) is not Span:
            raise Refused("a storage without its bytes")
        span = arguments[0]
        at = span.file.tell()
        new = span.length >= 4 and span.read(0, 4) == b"PK\x03\x04"
        storage = (_zipped if new else _streamed)(span, budget)
        span.file.seek(at)
        return storage

    return rebuild


def _pickle(span: Span, start: int, budget: Budget, storages: list[str]) -> tuple[Any, int]:
    """The value of a pickle within a stream, and where it ends."""

    def persistent(identity: Any) -> Storage:
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("a persistent id that is no storage")
        _, kind, key, _, count, *view = identity
        if type(kind) is not Symbol or type(key) is not str or any(v is not None for v in view):
            raise Refused("a persistent id that is no whole storage")
        if type(count) is not int or not 0 <= count < 1 << 48:
            raise Refused("a storage of no known size")
        storages.append(key)
        return Storage(_TYPES[kind.name], count, span)

    def set_state(value: object, state: object) -> None:
        raise Refused("a storage with a state")

    symbols = dict.fromkeys(STORAGES)
    end = span.start + span.length
    reader = PickleReader(
        span.file, span.start + start, end, symbols, set_state, budget, persistent
    )
    return reader.read(), reader.at - span.start


def _streamed(span: Span, budget: Budget) -> Storage:
    """The storage in a stream of torch's older format."""
    magic, at = _pickle(span, 0, budget, [])
    protocol, at = _pickle(span, at, budget, [])
    system, at = _pickle(span, at, budget, [])
    keys: list[str] = []
    storage, at = _pickle(span, at, budget, keys)
    listed, at = _pickle(span, at, budget, [])
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise Refused("a stream of another version of torch")
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("numbers whose bytes have another order")
    if type(storage) is not Storage or type(listed) is not list or listed != keys:
        raise Refused("a stream that is no storage")
    count = struct.unpack("<q", span.read(at, 8))[0]
    return _placed(storage, count, Span(span.file, span.start + at + 8, span.length - at - 8))


def _zipped(span: Span, budget: Budget) -> Storage:
    """The storage in a stream of torch's newer format: a ZIP archive, nothing in it compressed."""
    budget.step(1000)
    try:
        with zipfile.ZipFile(_Window(span)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError) as error:
        raise Refused(f"a damaged archive ({shown(str(error))})") from None
    budget.spend(1000 * len(entries))
    places = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Refused("a compressed archive")
        names = struct.unpack("<HH", span.read(entry.header_offset + 26, 4))
        start = entry.header_offset + 30 + sum(names)
        if start + entry.file_size > span.length:
            raise Refused("a damaged archive")
        name = entry.filename.partition("/")[2]
        places[name] = Span(span.file, span.start + start, entry.file_size)
    if "data.pkl" not in places:
        raise Refused("an archive that is no storage")
    if "byteorder" in places and places["byteorder"].read(0, None)[:8] != b"little":
        raise Refused("numbers whose bytes have another order")
    keys: list[str] = []
    storage, _ = _pickle(places["data.pkl"], 0, budget, keys)
    if type(storage) is not Storage or len(keys) != 1 or f"data/{keys[0]}" not in places:
        raise Refused("an archive that is no storage")
    return _placed(storage, storage.count, places[f"data/{keys[0]}"])


def _placed(storage: Storage, count: int, data: Span) -> Storage:
    if count != storage.count or data.length != count * storage.dtype.itemsize:
        raise Refused(f"{data.length} bytes for {storage.count} numbers of {storage.dtype}")
    return Storage(storage.dtype, count, data)


class _Window:
    """A span as a file that may be searched: what `zipfile` asks for."""

    def __init__(self, span: Span) -> None:
        self.span, self.at, self.left = span, 0, 1 << 20

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.span.length)[whence]
        if self.at < 0:
            raise OSError("a place before the beginning")
        return self.at

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self.span.length - self.at)
        count = left if count is None or count < 0 else min(count, left)
        self.left -= count
        if self.left < 0:
            raise Refused("an archive of more than its few entries")
        data = self.span.read(self.at, count) if count else b""
        self.at += count
        return data


# NumPy's arrays.

_KINDS = {f"{kind}{size}" for kind in "fiu" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


@dataclass(eq=False)
class RecordedType:
    """A `numpy.dtype`."""

    name: str
    order: str = "<"


@dataclass(eq=False)
class RecordedArray:
    """A `numpy.ndarray`; as a key, itself."""

    dtype: RecordedType | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: Span | None = None

    def read(self) -> np.ndarray:
        """The array."""
        if self.dtype is None or self.data is None:
            raise Refused("an array without its numbers")
        dtype = np.dtype(f"{self.dtype.order}{self.dtype.name}")
        if math.prod(self.shape) * dtype.itemsize != self.data.length:
            raise Refused(f"{self.data.length} bytes for an array of {shown(self.shape)}")
        flat = np.frombuffer(self.data.read(), dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


def rebuild_dtype(arguments: tuple) -> RecordedType:
    """What `numpy.dtype` is given."""
    name = arguments[0] if arguments else None
    if type(name) is not str or name not in _KINDS:
        raise Refused(f"an array of the type {shown(name)}")
    return RecordedType(name)


def rebuild_array(arguments: tuple) -> RecordedArray:
    """What `numpy.core.multiarray._reconstruct` is given: an array that is still empty."""
    if len(arguments) != 3 or arguments[0] != Symbol("numpy", "ndarray"):
        raise Refused("an array of another class")
    return RecordedArray()


def rebuild_from_buffer(arguments: tuple) -> RecordedArray:
    """What `numpy.core.numeric._frombuffer` is given: bytes, type, shape and order."""
    if len(arguments) != 4 or arguments[3] not in ("C", "F"):
        raise Refused("an array in an unknown order")
    array = RecordedArray()
    fill_array(array, (1, arguments[2], arguments[1], arguments[3] == "F", arguments[0]))
    return array


def rebuild_scalar(arguments: tuple) -> Any:
    """What `numpy.core.multiarray.scalar` is given, as a plain number."""
    if len(arguments) != 2:
        raise Refused("a number that is none")
    array = RecordedArray()
    fill_array(array, (1, (), arguments[0], False, arguments[1]))
    return array.read().item()


def fill_dtype(dtype: RecordedType, state: object) -> None:
    """Give a `RecordedType` its state, of which all but the order of bytes must be absent."""
    if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
        raise Refused("an array of an unknown type")
    if any(v is not None for v in state[2:5]):
        raise Refused("an array of a structured type")
    dtype.order = state[1]


def fill_array(array: RecordedArray, state: object) -> None:
    """Give a `RecordedArray` its state."""
    if type(state) is not tuple or len(state) != 5:
        raise Refused("an array of another version of NumPy")
    _, shape, dtype, fortran, data = state
    if type(dtype) is not RecordedType or type(data) is not Span or not _sizes(shape):
        raise Refused("an array that is not its bytes")
    array.shape, array.dtype, array.fortran, array.data = tuple(shape), dtype, bool(fortran), data
