"""What every operator registers beyond its C++ schema: a fake kernel and a backward."""
import torch

from .. import _extension  # noqa: F401  registers the operators

_NAMESPACE = "autoguide_fast"


def op(name):
    """Return the operator `name` as a callable that goes straight to the dispatcher."""
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def fake(name):
    """Decorate the function that gives the shapes, dtypes and strides of the results of `name`."""
    return torch.library.register_fake(f"{_NAMESPACE}::{name}")


def backward(name, backward_function, save):
    """Register the backward of `name`; `save(ctx, inputs, output)` stores what it needs."""
    torch.library.register_autograd(
        f"{_NAMESPACE}::{name}", backward_function, setup_context=save
    )


def dense_format(x):
    """Return the memory format that an operator returns for `x`; twin of csrc/tensor.h."""
    channels_last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def dense_empty(x, shape=None, dtype=None):
    """Return an uninitialised tensor on the device and in the memory format of `x`."""
    return torch.empty(
        x.shape if shape is None else shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=dense_format(x),
    )
