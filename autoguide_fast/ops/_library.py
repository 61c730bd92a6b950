"""What every operator registers beyond its C++ schema: a fake kernel, derivatives, autocast."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import _C, Tensor
from torch.autograd import forward_ad

from .. import _extension  # noqa: F401  registers the operators
from ..modes import without_autocast

_NAMESPACE = "autoguide_fast"
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")


def op(name: str) -> Any:
    """Return the operator `name` as a callable that goes straight to the dispatcher."""
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def fake(name: str) -> Callable:
    """Decorate the function that gives the shapes, dtypes and strides of the results of `name`."""
    return torch.library.register_fake(f"{_NAMESPACE}::{name}")


def differentiable(
    name: str,
    plain: Callable,
    backward: Callable | None = None,
    save: Callable | None = None,
    *,
    dtypes: Callable | None = None,
    constants: Sequence[int] = (),
) -> None:
    """Register the derivatives of `name`: of every order, in every mode.

    The compiled kernels serve values and the first backward pass. The rest (forward mode, a
    backward pass that is differentiated in turn, the transforms of `torch.func`) is done by plain
    PyTorch, which is right under all of them and their combinations.

    Args:
        plain: the operator in plain PyTorch, with the operator's own arguments. Where they have 16
            bits it gets float32, and what it returns is cast.
        backward: `backward(ctx, *grads)`, as of a `torch.autograd.Function`; None for an operator
            that is itself the backward pass of another.
        save: `save(ctx, inputs, output)` stores what `backward` needs.
        dtypes: `dtypes(*inputs)`, those of the results; default: that of the first input.
        constants: positions of the inputs of which `backward` gives no gradient. Where one is
            wanted, `plain` gives them all.
    """
    operator = op(name)
    writes = operator._schema.is_mutable
    plain = _in_types(plain, dtypes)

    def compiled(keyset: _C.DispatchKeySet, args: Sequence[Any]) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & _C._after_autograd_keyset, *args)

    def kernel(keyset: _C.DispatchKeySet, *args: Any) -> Any:
        forward_mode = forward_ad._current_level >= 0 and any(_has_tangent(a) for a in args)
        if not forward_mode:
            if not (torch.is_grad_enabled() and _C._any_requires_grad(*args)):
                return compiled(keyset, args)
            known = backward and not any(_requires_grad(args[i]) for i in constants)
            if known and not _C._are_functorch_transforms_active():
                return Compiled.apply(*args, keyset)
        if writes:
            compiled(keyset, args)
        return plain(*args)

    class Compiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *args, keyset = args
            result = compiled(keyset, args)
            assert save is not None  # where there is `backward`
            save(ctx, args, result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            assert backward is not None
            gradients = backward(ctx, *grads)
            return (*gradients, None) if isinstance(gradients, tuple) else (gradients, None)

    def batched(keyset: _C.DispatchKeySet, *args: Any) -> Any:
        if writes:
            _write_each(operator, *args)
        return plain(*args)

    Compiled.__name__ = Compiled.__qualname__ = f"Backward_of_{name}"
    _library.impl(name, kernel, "Autograd", with_keyset=True)
    _library.impl(name, batched, "FuncTorchBatched", with_keyset=True)


def promote_in_autocast(name: str, *places: int) -> None:
    """Let `name` take tensors of several types under autocast: there it computes in the widest.

    Elsewhere mixed types are refused, for they are a mistake. Under autocast they are usual: one
    operand comes from a product, in 16 bits, the other does not. PyTorch's own sums take them too.
    """
    operator = op(name)

    def kernel(key: _C.DispatchKey, *args: Any) -> Any:
        types = [args[i].dtype for i in places if args[i] is not None]
        widest = functools.reduce(torch.promote_types, types)
        args = list(args)
        for i in places:
            args[i] = None if args[i] is None else args[i].to(widest)
        with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(key)):
            return operator(*args)

    for key in (_C.DispatchKey.AutocastCPU, _C.DispatchKey.AutocastCUDA):
        _library.impl(name, functools.partial(kernel, key), key.name)


def _write_each(operator: Any, weight: Tensor, gain: object, *options: Any) -> None:
    """Let an operator write into each weight of a batch, on the level below that of `vmap`."""
    dim = _C._functorch.maybe_get_bdim(weight)
    parts = [weight] if dim < 0 else _C._functorch.get_unwrapped(weight).unbind(dim)
    with _C._ExcludeDispatchKeyGuard(_C.DispatchKeySet(_C.DispatchKey.FuncTorchBatched)):
        for part in parts:
            operator(part, None, *options)  # the gain only matters for what is returned


def _requires_grad(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def _has_tangent(x: object) -> bool:
    if isinstance(x, (list, tuple)):
        return any(map(_has_tangent, x))
    return isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None


def _in_types(plain: Callable, dtypes: Callable | None) -> Callable:
    """Return `plain` computed in 32 or 64 bits, with results of the operator's types."""
    plain = without_autocast(plain)

    def run(*args: Any) -> Any:
        results = plain(*(_wide(a) for a in args))
        wanted = dtypes(*args) if dtypes else [args[0].dtype] * 3
        if isinstance(results, tuple):
            return tuple(r.to(dtype) for r, dtype in zip(results, wanted, strict=False))
        return results.to(wanted[0])

    return run


def _wide(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_wide(item) for item in x]
    sixteen_bits = isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if sixteen_bits else x


def dense_format(x: torch.Tensor) -> torch.memory_format:
    """Return the memory format that an operator returns for `x`; twin of csrc/tensor.h."""
    channels_last = x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def dense_empty(
    x: Tensor, shape: Sequence[int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return an uninitialised tensor on the device and in the memory format of `x`."""
    return torch.empty(
        x.shape if shape is None else shape,
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=dense_format(x),
    )
