"""Whether a net is what its options say: what `Precond(**net.config)` builds, with other weights.

Such a net is its options and its tensors, and nothing else. Only for such a net can something else
stand: an engine, which does not run its code, or a checkpoint, which does not hold it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as torch_module

from . import ops, torch_functional
from .guidance import Unlabelled
from .modes import watching
from .networks import Precond
from .nn import MPConv, MPFourier
from .unet import Block, UNet

Copied = TypeVar("Copied", bound=torch.nn.Module)

# Attributes of a `Precond` that are no options, or the options themselves.
_FREE = {"config", "encoder", "info", "run_dtype"}
_BASE = frozenset(vars(torch.nn.Module()))
_HOOKS = tuple(k for k in _BASE if "_hooks" in k and "state_dict" not in k)
_GLOBAL_HOOKS = tuple(k for k in vars(torch_module) if k.startswith("_global") and "_hooks" in k)


def _code(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """What of a class can be called, by name."""
    return {k: v for k, v in namespace.items() if callable(v) or isinstance(v, property)}


# The methods that evaluate a net, before anyone can have replaced them.
_METHODS: dict[type, dict[str, Any]] = {
    kind: _code(vars(kind)) for kind in (Precond, UNet, Block, MPConv, MPFourier, Unlabelled)
} | {torch.nn.Module: {k: vars(torch.nn.Module)[k] for k in ("__call__", "_call_impl")}}

# The functions that they call, by where they are looked up. Torch's own are taken from below what
# may have been replaced before this was imported.
_FUNCTIONS: list[tuple[Any, str, Any]] = [
    (F, "linear", torch._C._nn.linear),
    (F, "scaled_dot_product_attention", torch._C._nn.scaled_dot_product_attention),
    (F, "conv2d", torch._C._VariableFunctions.conv2d),
    *((torch, k, getattr(torch._C._VariableFunctions, k)) for k in ("baddbmm", "cat")),
    *(
        (torch_functional, k, getattr(torch_functional, k))
        for k in ("linear", "conv2d", "attention")
    ),
    *((ops, k, getattr(ops, k)) for k in ops.__all__ if not k.endswith("_reference")),
]
_BUILDING = {"__init__", "__setattr__", "_apply", "extra_repr"}  # methods that evaluate nothing


class Difference(NamedTuple):
    """One way in which a net is not what its options build.

    kind: an attribute of another value; weights or layers too many, too few, or of another kind; a
        class whose methods evaluate otherwise; what else no checkpoint holds: replaced methods,
        hooks, classes that evaluate as theirs do.
    text: what was found where, and a remedy: the end of a message.
    """

    kind: Literal["option", "weight", "class", "code"]
    text: str


@dataclass(frozen=True)
class _Layer:
    """A module as it was built."""

    kind: type
    attributes: tuple[tuple[str, Any], ...]
    shapes: dict[str, torch.Size]  # of parameters, then buffers, by name
    children: dict[str, _Layer]  # by name, in order
    known: frozenset[str]  # names of instance attributes


@functools.lru_cache(64)
def _layers(config: str) -> _Layer:
    """The `_Layer` of the net with these options, which are given as JSON."""
    return _layer(_template(config))


@functools.lru_cache(64)
def _template(config: str) -> Precond:
    with torch.device("meta"):
        return Precond(**json.loads(config)).eval()


def blank(config: dict[str, Any]) -> Precond:
    """The net with these options, a dict, in evaluation mode, without memory for weights.

    A copy of one that is built once: building takes longer than reading the weights of a small net.
    """
    text = json.dumps(config)
    net = _copied(_template(text))
    net.config = json.loads(text)
    return net


def _copied(module: Copied) -> Copied:
    copied = object.__new__(type(module))
    for key, value in vars(module).items():
        vars(copied)[key] = type(value)(value) if isinstance(value, (dict, list, set)) else value
    children = module._modules.items()
    copied._modules.update({k: _copied(child) for k, child in children if child is not None})
    return copied


def _layer(module: torch.nn.Module) -> _Layer:
    values = {k: v for k, v in vars(module).items() if k not in _BASE and k not in _FREE}
    tensors = module._parameters | module._buffers
    return _Layer(
        kind=type(module),
        attributes=tuple(values.items()),
        shapes={k: t.shape for k, t in tensors.items() if t is not None},
        children={k: _layer(child) for k, child in module.named_children()},
        known=_BASE | values.keys() | (_FREE if isinstance(module, Precond) else set()),
    )


def contents(net: Precond) -> tuple[str, list[Tensor]]:
    """All that a net is: its options as JSON and a list of its tensors.

    The net must be one that `differences` finds nothing about.
    """
    config = json.dumps(net.config)
    tensors: list[Tensor] = []
    _gather(_layers(config), net, tensors)
    return config, tensors


# Functions of their own: one that calls itself from inside another is a reference cycle, which
# would keep the weights that it knows until the garbage collector comes.
def _gather(layer: _Layer, module: torch.nn.Module, tensors: list[Tensor]) -> None:
    parameters, buffers = module._parameters, module._buffers
    children: dict[str, Any] = module._modules
    for key in layer.shapes:
        tensor = parameters[key] if key in parameters else buffers[key]
        assert tensor is not None
        tensors.append(tensor)
    for key, child in layer.children.items():
        _gather(child, children[key], tensors)


def rebuilt(config: str, tensors: Iterable[Tensor]) -> Precond:
    """The net with these `contents`, in evaluation mode; shares the tensors, takes no gradients."""
    net = blank(json.loads(config))
    _give(_layers(config), net, iter(tensors))
    return net


def _give(layer: _Layer, module: torch.nn.Module, tensors: Iterator[Tensor]) -> None:
    children: dict[str, Any] = module._modules
    for key in layer.shapes:
        own: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
        own[key] = next(tensors).detach()
    for key, child in layer.children.items():
        _give(child, children[key], tensors)


def differences(net: Precond) -> Iterator[Difference]:
    """Yield each `Difference` between a `Precond` and what its options build."""
    try:
        layer = _layers(json.dumps(net.config))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        yield Difference("option", f"options (net.config) that build no net: {error}")
        return
    yield from _replaced_code()
    yield from _differences(layer, net, "")


def _replaced_code() -> Iterator[Difference]:
    """What was replaced in classes and modules, or is by a mode, thus for all nets."""
    for kind, methods in _METHODS.items():
        now = vars(kind)
        for key, method in methods.items():
            if now.get(key) is not method:
                yield Difference("code", f"a replaced {kind.__name__}.{key}; put the first back")
        if kind is not torch.nn.Module:
            for key in now.keys() - methods.keys():
                if hasattr(torch.nn.Module, key) and key in _code(now):
                    yield Difference("code", f"a replaced {kind.__name__}.{key}; delete it")
    for place, key, function in _FUNCTIONS:
        if getattr(place, key) is not function:
            yield Difference("code", f"a replaced {place.__name__}.{key}; put the first back")
    if mode := watching():
        yield Difference("code", f"an active {mode}, which does not see into it; leave that")
    for key in _GLOBAL_HOOKS:
        if getattr(torch_module, key):
            yield Difference("code", "hooks on all modules (torch.nn.modules.module); remove them")


def _differences(layer: _Layer, module: torch.nn.Module, name: str) -> Iterator[Difference]:
    where = name or "the net"
    if type(module) is not layer.kind:
        wanted, found = layer.kind.__name__, type(module).__name__
        inherits = isinstance(module, layer.kind)
        text = f"a {found} for {where}; it has to be a {wanted}"
        if not inherits:
            yield Difference("weight", text)
        elif _overrides(type(module), layer.kind):
            yield Difference("class", text)
        else:
            yield Difference("code", text)
        if not inherits:
            return
    own = vars(module)
    for key in _HOOKS:
        if own.get(key):
            yield Difference("code", f"hooks on {where}; remove them")
            break
    for key, value in layer.attributes:
        if key not in own or not _same(own[key], value):
            yield _edited(own, key, value, _joined(name, key))
    if not own.keys() <= layer.known:
        for key in own.keys() - layer.known:
            if hasattr(layer.kind, key) or key in layer.shapes or key in layer.children:
                what = "forward that was compiled" if key == "_compiled_call_impl" else key
                yield Difference("code", f"a {what} of its own in {where}; delete {key} there")
    tensors = module._parameters | module._buffers
    if tensors.keys() != layer.shapes.keys():
        names = ", ".join(sorted(tensors.keys() ^ layer.shapes.keys()))
        yield Difference("weight", f"weights too many or too few ({names}) in {where}; merge them")
    for key, shape in layer.shapes.items():
        tensor = tensors.get(key)
        if tensor is not None:
            if tensor.shape != shape:
                found = f"{list(tensor.shape)} for {_joined(name, key)}"
                yield Difference("weight", f"{found}; its options make it {list(shape)}")
            if type(tensor) not in (torch.nn.Parameter, torch.Tensor):
                found = f"a {type(tensor).__name__} for {_joined(name, key)}"
                yield Difference("code", f"{found}; convert it to a plain tensor")
    children = module._modules
    if children.keys() != layer.children.keys() or tuple(children) != tuple(layer.children):
        names = ", ".join(sorted(children.keys() ^ layer.children.keys())) or "in another order"
        yield Difference(
            "weight", f"layers too many or too few ({names}) in {where}; build the net anew"
        )
    for key, child in layer.children.items():
        found = children.get(key)
        if found is not None:
            yield from _differences(child, found, _joined(name, key))


def _overrides(found: type, kind: type) -> bool:
    """Whether `found`, which inherits from `kind`, has methods of its own for what that does."""
    methods = (_METHODS[kind] | _METHODS[torch.nn.Module]).keys() - _BUILDING
    between = found.__mro__[: found.__mro__.index(kind)]
    return any(methods & vars(each).keys() for each in between)


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _same(found: object, value: object) -> bool:
    try:
        return bool(found == value)
    except (TypeError, ValueError, RuntimeError):  # of tensors and arrays of several elements
        return False


def _edited(own: Mapping[str, Any], key: str, value: object, where: str) -> Difference:
    if key not in own:
        return Difference("option", f"no {where}; its options (net.config) say {value!r}")
    return Difference(
        "option",
        f"{where} = {own[key]!r} where its options say {value!r}; build a net of other options "
        "with Precond(**{**net.config, ...}) and give it these weights",
    )
