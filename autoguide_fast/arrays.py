"""Arrays of NumPy, CuPy and other libraries as tensors, and tensors as such arrays."""

from typing import Any, Protocol

import numpy
import torch

KINDS = ("torch", "numpy", "cupy")


class Array(Protocol):
    """A tensor, or an array of NumPy, CuPy or another library that knows DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...


def as_tensor(value: Any) -> torch.Tensor:
    """Return `value` as a plain dense tensor, where it lies, to be read only: it may share memory.

    Takes tensors, NumPy's arrays in any layout and byte order, others' arrays through DLPack,
    numbers and sequences of numbers. NumPy's `longdouble` becomes float64. Sequences get the type
    that NumPy gives them, whatever torch's default type and device are.

    Raises:
        TypeError: anything else, and arrays with a mask.
        OverflowError: whole numbers that do not fit into 64 bits.
    """
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"a {value.layout} tensor")
        return value.detach().as_subclass(torch.Tensor)
    if isinstance(value, (list, tuple)):
        value = [v.tolist() if isinstance(v, torch.Tensor) else v for v in value]
    if hasattr(value, "__dlpack__") and not isinstance(value, (numpy.ndarray, numpy.generic)):
        try:
            return torch.from_dlpack(value)
        except (ValueError, RuntimeError, BufferError, AttributeError) as error:
            raise TypeError(str(error)) from None
    return _of_numpy(value)


def _of_numpy(value: Any) -> torch.Tensor:
    if isinstance(value, numpy.ma.MaskedArray):
        raise TypeError("an array with a mask")
    try:
        array = numpy.asarray(value)
    except (ValueError, RuntimeError, AttributeError) as error:  # such as rows of unequal length
        raise TypeError(str(error)) from None
    if array.dtype == object:
        array = _numbers(array)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"an array of {array.dtype}")
    if array.dtype.kind == "f" and array.itemsize > 8:
        array = array.astype(numpy.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch has no such layouts, and warns of arrays that must not be written to.
    if not array.flags.writeable or any(s < 0 or s % array.itemsize for s in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _numbers(array: numpy.ndarray) -> numpy.ndarray:
    """An array of Python objects as one of numbers, if that is what they are."""
    found = numpy.array(array.tolist())
    if found.dtype != object:
        return found
    if all(isinstance(value, int) for value in array.flat):
        raise OverflowError("whole numbers that do not fit into 64 bits")
    raise TypeError("an array of objects")


def as_kind(x: torch.Tensor, kind: str) -> Any:
    """Return tensor `x` as one of `KINDS`; memory is shared where it can be."""
    if kind == "numpy":
        return x.cpu().numpy()
    if kind == "cupy":
        import cupy

        return cupy.from_dlpack(x)
    return x
