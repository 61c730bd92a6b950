"""Snapshots of the reference implementation (`.pkl`), read as data.

Such a file records objects by the source of their classes, which stays a string here: their
attributes are looked at, the options that they were built with become those of a `Precond`, and
names, shapes and attributes of all layers must be what these options build.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Collection, ItemsView, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..as_built import blank
from ..encoders import STABILITY_VAE, LatentEncoder, PixelEncoder
from ..net_config import BEYOND_REFERENCE
from ..networks import Precond
from ..nn import MPConv, MPFourier
from ..unet import Block, UNet
from .pickle_reader import Recorded, Refused, shown
from .recorded_objects import opened
from .recorded_tensors import RecordedArray, RecordedTensor

TOY = "toy"  # `network` in the header of a net of the two-dimensional toy
_DEEPEST = 32
_MOST_LAYERS = 20_000
_MOST_LEVELS = 16

_CLASSES: dict[type, str] = {
    Precond: "Precond",
    UNet: "UNet",
    Block: "Block",
    MPConv: "MPConv",
    MPFourier: "MPFourier",
    torch.nn.ModuleDict: "ModuleDict",
}
# Attributes that tell nothing about what is computed in evaluation mode.
_OF_ANY_MODULE = frozenset(vars(torch.nn.Module())) | {
    "_init_args",
    "_init_kwargs",
    "_is_full_backward_hook",
    "_non_persistent_buffers_set",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
}
# Attributes that all snapshots have, and that ours have under the same names where they matter.
_KNOWN: dict[str, set[str]] = {
    "Precond": {"img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data"},
    "UNet": {"label_balance", "concat_balance"},
    "Block": {
        "out_channels",
        "flavor",
        "resample_filter",
        "resample_mode",
        "num_heads",
        "dropout",
        "res_balance",
        "attn_balance",
        "clip_act",
    },
    "MPConv": {"out_channels"},
    "MPFourier": set(),
    "ModuleDict": set(),
}


def read_header(path: str | os.PathLike, function: str) -> dict[str, Any]:
    """What the header of a checkpoint of ours says, of a snapshot of the reference."""
    with opened(path, function) as contents:
        return _interpreted(contents)[0]


@contextlib.contextmanager
def reading(path: str | os.PathLike, function: str) -> Iterator[tuple[dict[str, Any], _Tensors]]:
    """Header and tensors of a snapshot of the reference, while the file is open.

    Its tensors are a mapping that reads each when it is asked for. The header is a dict as in
    `format`; its `network` is "toy" for a net of the two-dimensional toy.

    Raises ValueError, in the name of `function`, for a file that is no such snapshot, or whose net
    is not one that a `Precond` stands for.
    """
    with opened(path, function) as contents:
        header, recorded = _interpreted(contents)
        yield header, _Tensors(recorded)


def read(path: str | os.PathLike, function: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, the latter in memory, of a snapshot of the reference."""
    with reading(path, function) as (header, tensors):
        return header, dict(tensors)


class _Tensors(Mapping[str, Tensor]):
    def __init__(self, recorded: Mapping[str, RecordedTensor]) -> None:
        self.recorded = recorded

    def __getitem__(self, name: str) -> Tensor:
        return self.recorded[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.recorded)

    def __len__(self) -> int:
        return len(self.recorded)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.recorded.items()}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.recorded.values())


def _interpreted(contents: Any) -> tuple[dict[str, Any], dict[str, RecordedTensor]]:
    snapshot = {"ema": contents} if type(contents) is Recorded else contents
    if type(snapshot) is not dict or type(snapshot.get("ema")) is not Recorded:
        held = ", ".join(shown(k) for k in list(contents)[:8]) if type(contents) is dict else ""
        raise Refused(f"no network in `ema` but {f'the keys {held}' if held else shown(contents)}")
    net = snapshot["ema"]
    if net.class_name == "ToyModel":
        return _toy(net)
    if net.class_name != "Precond":
        raise Refused(f"a network of class {shown(net.class_name)} instead of Precond")
    found = _layers(net)
    tensors = {name: t for _, module in found for name, t in module.tensors.items()}
    config = _options(net, len(tensors))
    try:
        built = blank(config)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        raise Refused(
            f"options that build no network: {shown(' '.join(str(error).split()))}"
        ) from (None)
    _prove(found, tensors, built, config)
    header = {
        "config": built.config,
        "encoder": _encoder(snapshot.get("encoder"), config),
        "trained": _trained(snapshot),
    }
    return header, tensors


class _Layer:
    """A module of the recorded net: its attributes, and its tensors by their whole names."""

    def __init__(self, recorded: Recorded, prefix: str) -> None:
        self.class_name, self.state = recorded.class_name, recorded.state
        self.tensors: dict[str, RecordedTensor] = {}
        temporary = recorded.state.get("_non_persistent_buffers_set")
        temporary = temporary if type(temporary) is set else set()
        for kind in ("_parameters", "_buffers"):
            for key, value in _entries(recorded, kind):
                if value is None or key in temporary:
                    continue
                if type(value) is not RecordedTensor:
                    raise Refused(f"{shown(value)} as the weight {shown(prefix + key)}")
                self.tensors[prefix + key] = value


def _entries(recorded: Recorded, kind: str) -> ItemsView[str, Any]:
    values = recorded.state.get(kind, {})
    if type(values) is not dict or not all(type(key) is str for key in values):
        raise Refused(f"{shown(recorded)} without its {kind.strip('_')}")
    return values.items()


def _layers(net: Recorded) -> list[tuple[str, _Layer]]:
    """All modules of a recorded net, by name, with their tensors."""
    found: list[tuple[str, _Layer]] = []
    todo = [("", net, 0)]
    while todo:
        name, module, depth = todo.pop()
        if depth > _DEEPEST or len(found) >= _MOST_LAYERS:
            raise Refused("a network of too many layers")
        found.append((name, _Layer(module, f"{name}." if name else "")))
        for key, child in _entries(module, "_modules"):
            if child is None:
                continue
            if type(child) is not Recorded:
                raise Refused(f"{shown(child)} as the layer {shown(key)}")
            todo.append((f"{name}.{key}" if name else key, child, depth + 1))
    return found


def _arguments(recorded: Recorded, known: Collection[str]) -> dict[str, Any]:
    """The arguments by name that an object was made with, of which all must be `known`."""
    positional = recorded.state.get("_init_args", ())
    options = recorded.state.get("_init_kwargs", {})
    what = recorded.class_name
    if type(options) is not dict or type(positional) not in (tuple, list):
        raise Refused(f"a {what} without the options that it was built with")
    if len(positional) > 0:
        raise Refused(f"a {what} built with options that have no name")
    for name in options:
        if name not in known:
            raise Refused(f"the unknown option {shown(name)} of {what}")
    return options


def _options(net: Recorded, num_tensors: int) -> dict[str, Any]:
    """The options of a `Precond`, from the recorded arguments and attributes."""
    parameters = inspect.signature(Precond).parameters
    known = {k: p.default for k, p in parameters.items() if k not in BEYOND_REFERENCE}
    options = dict(_arguments(net, known))
    for name in ("sigma_data", "use_fp16"):  # which the reference reads from its attributes
        if name in net.state:
            options[name] = net.state[name]
    missing = [k for k, v in known.items() if v is inspect.Parameter.empty and k not in options]
    if missing:
        raise Refused(f"a Precond without its option {missing[0]}")
    for name, value in options.items():
        if not _is_option(value):
            raise Refused(f"the option {name} as {shown(value)}")
    # Nothing is built from options that name more than what is there.
    config = known | options
    levels, blocks = config["channel_mult"], config["num_blocks"]
    if not isinstance(levels, (tuple, list)) or len(levels) > _MOST_LEVELS:
        raise Refused(f"the option channel_mult as {shown(levels)}")
    if type(blocks) is not int or blocks * len(levels) > num_tensors:
        raise Refused(f"the option num_blocks as {shown(blocks)} with {num_tensors} weights")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}


def _is_option(value: Any) -> bool:
    if type(value) in (list, tuple):
        return len(value) <= 64 and all(type(v) in (int, float) and _is_option(v) for v in value)
    if value is None or type(value) is bool:
        return True
    return type(value) in (int, float) and abs(value) < 1 << 30


def _prove(
    found: list[tuple[str, _Layer]],
    tensors: Mapping[str, RecordedTensor],
    built: Precond,
    config: Mapping[str, Any],
) -> None:
    """Refuse a recorded net that is not what its options build."""
    modules = dict(built.named_modules())
    for name, layer in found:
        ours = modules.get(name)
        kind = _CLASSES.get(type(ours))
        if kind != layer.class_name:
            raise Refused(
                f"a layer {shown(name)} of class {shown(layer.class_name)}, which the options "
                "do not build"
            )
        for key, value in layer.state.items():
            where = f"{kind}.{shown(key)}"
            if key in _OF_ANY_MODULE:
                if "hooks" in key and value:
                    raise Refused(f"hooks in {where}")
            elif value is None and getattr(ours, key, None) is None:
                continue  # a layer that is not there
            elif key not in _KNOWN[kind]:
                raise Refused(f"the unknown attribute {where}")
            elif not _same(value, _built(ours, key, config)):
                raise Refused(f"{where} as {shown(value)}, which its options do not build")
    expected = built.state_dict()
    for name in expected:
        if name not in tensors:
            raise Refused(f"no weight {name}, which its options build")
    for name, tensor in tensors.items():
        if name not in expected:
            raise Refused(f"the unknown weight {shown(name)}")
        shape = list(expected[name].shape)
        if list(tensor.shape) != shape:
            raise Refused(
                f"the weight {name} {shown(tensor.shape)} where its options build {shape}"
            )
    held = sum(t.nbytes for t in tensors.values())
    if held > next(iter(tensors.values())).storage.data.file.seek(0, 2):
        raise Refused("weights that share their numbers")


def _built(ours: Any, key: str, config: Mapping[str, Any]) -> Any:
    if key == "resample_filter":
        return config[key]
    if key == "out_channels" and isinstance(ours, Block):
        return ours.conv_res1.weight.shape[0]
    if key == "out_channels":
        return ours.weight.shape[0]
    if key == "concat_balance" and isinstance(ours, UNet):
        return config[key]
    return getattr(ours, key)


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(theirs) == len(ours) and all(map(_same, theirs, ours))
    if isinstance(theirs, (bool, str)) or isinstance(ours, (bool, str)) or ours is None:
        return type(theirs) is type(ours) and theirs == ours
    return type(theirs) in (int, float) and math.isclose(theirs, ours, rel_tol=1e-6)


def _encoder(recorded: object, config: Mapping[str, Any]) -> str | None:
    """Name of the encoder of ours that a recorded one is, or None for none."""
    if recorded is None:
        return None
    if type(recorded) is not Recorded:
        raise Refused(f"{shown(recorded)} as the encoder")
    if recorded.class_name == "StandardRGBEncoder":
        _arguments(recorded, ())
        return PixelEncoder.name
    if recorded.class_name != "StabilityVAEEncoder":
        raise Refused(f"an encoder of class {shown(recorded.class_name)}")
    ours = {
        "vae_name": STABILITY_VAE,
        "raw_mean": LatentEncoder.raw_mean,
        "raw_std": LatentEncoder.raw_std,
        "final_mean": 0,
        "final_std": 0.5,
    }
    options = _arguments(recorded, {*ours, "batch_size"})
    for name, value in ours.items():
        if name in options and not _same(options[name], value):
            raise Refused(f"an encoder whose {name} is {shown(options[name])} instead of {value}")
    scale = 0.5 / np.array(ours["raw_std"])
    for name, value in (("scale", scale), ("bias", -scale * np.array(ours["raw_mean"]))):
        found = recorded.state.get(name)
        if type(found) is RecordedArray and (
            found.shape != value.shape or not np.allclose(found.read(), value, rtol=1e-4, atol=1e-6)
        ):
            raise Refused(f"an encoder whose {name} is not that of its options")
    return LatentEncoder.name


def _trained(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """What a snapshot tells about its training, as plain values."""
    facts: dict[str, Any] = {}
    loss = snapshot.get("loss_fn")
    if type(loss) is Recorded:
        plain = {k: v for k, v in loss.state.items() if type(v) in (bool, int, float, str)}
        facts["loss"] = {"class_name": loss.class_name, **plain}
    if type(snapshot.get("dataset_kwargs")) is dict:
        facts["dataset"] = snapshot["dataset_kwargs"]
    for name, value in snapshot.items():
        if name not in ("ema", "encoder", "loss_fn", "dataset_kwargs"):
            facts[name] = value
    return _plain(facts, [10_000], 0)


def _plain(value: Any, left: list[int], depth: int) -> Any:
    """What of a value JSON can hold; None for the rest."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        raise Refused("facts about its training that have no end")
    if type(value) is dict:
        items = ((k, _plain(v, left, depth + 1)) for k, v in value.items() if type(k) is str)
        return {k[:1000]: v for k, v in items}
    if type(value) in (list, tuple):
        return [_plain(v, left, depth + 1) for v in value]
    if type(value) is str:
        return value[:10_000].encode("utf-8", "replace").decode()
    if type(value) is int:
        return value if abs(value) < 1 << 63 else None
    if type(value) is float:
        return value if math.isfinite(value) else None
    return value if type(value) is bool else None


def _toy(net: Recorded) -> tuple[dict[str, Any], dict[str, RecordedTensor]]:
    """Header and tensors of a net of the two-dimensional toy."""
    from ..toy import ToyModel

    options = _arguments(net, ("hidden_dim", "sigma_data"))
    config = {
        "hidden_dim": options.get("hidden_dim", 64),
        "sigma_data": net.state.get("sigma_data", options.get("sigma_data", 0.5)),
    }
    width, spread = config.values()
    if type(width) is not int or not 0 < width <= 1 << 14:
        raise Refused(f"the option hidden_dim as {shown(width)}")
    if type(spread) not in (int, float) or not 0 < spread < math.inf:
        raise Refused(f"the option sigma_data as {shown(spread)}")
    tensors = {name: t for _, layer in _layers(net) for name, t in layer.tensors.items()}
    with torch.device("meta"):
        expected = ToyModel(**config).state_dict()
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    if shapes != {name: t.shape for name, t in tensors.items()}:
        raise Refused("a ToyModel whose weights are not those of its options")
    return {"network": TOY, "config": config, "encoder": None}, tensors
