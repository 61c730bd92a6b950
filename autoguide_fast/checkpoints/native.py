"""Networks to and from files: one safetensors file that holds weights, options and encoder.

Reading takes snapshots of the reference implementation as well. It runs no code from a file; see
`format.py` and `reference.py` for what is in them, and `loading.py` for names of other kinds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..arguments import present_device
from ..as_built import blank, differences
from ..encoders import ENCODERS, encoder
from ..files import reason, remedy, write_atomically
from ..net_arguments import not_finite
from ..net_config import NetConfig, least_weights
from ..networks import Precond
from ..toy import ToyModel
from .format import DIGEST, OWN, reading, write
from .reference import TOY

# Types that weights are stored in. Narrower ones need a scale beside them to mean anything.
STORED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def save(
    net: Precond | ToyModel, path: str | os.PathLike, dtype: torch.dtype | None = None, **info: Any
) -> None:
    """Write a network to a safetensors file.

    Args:
        net: A `Precond`, or a `toy.ToyModel`. Its weights, options and encoder are stored. Weights
            may be shared between layers and lie anywhere; each is stored by itself.
        path: The file, which appears complete or not at all.
        dtype: Type to store the weights in: torch.float32, float16 or bfloat16 (half the size),
            float64. None: as they are.
        **info: Anything JSON can hold, kept beside the weights and found in `net.info` after
            loading.

    Raises, before anything is written: TypeError for a network of another kind, another dtype,
    or info that JSON cannot hold; ValueError for weights that are not finite or leave the
    range of `dtype`, for attributes, weights or layers that the network's options do not build or
    classes that evaluate otherwise, which would be lost, or an encoder that could not be found
    again by its name. Raises OSError where the file cannot be written.
    """
    from safetensors import SafetensorError

    if not isinstance(net, (Precond, ToyModel)):
        raise TypeError(
            f"save: net must be a Precond, got {type(net).__name__}; pass the network itself, "
            "not a wrapper"
        )
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in STORED):
        raise TypeError(
            f"save: dtype must be one of {_names(STORED)} or None, got {dtype!r}; "
            "leave it out to store the weights as they are"
        )
    if net.encoder is not None and type(net.encoder) not in ENCODERS.values():
        raise ValueError(
            f"save: net.encoder must be None or one of autoguide_fast.encoders, got "
            f"{type(net.encoder).__name__}; set it to None, and again after loading"
        )
    try:
        path = Path(path)
    except TypeError:
        raise TypeError(
            f"save: path must be a string or a path, got {type(path).__name__}; name the file"
        ) from None
    if path.is_dir():
        raise ValueError(f"save: path must be a file, got the folder {path}; name a file in it")
    found = differences(net) if isinstance(net, Precond) else ()
    edited = next((d for d in found if d.kind != "code"), None)
    if edited:
        raise ValueError(f"save: net must be what its options build, got {edited.text}")
    clash = set(OWN) & info.keys()
    if clash:
        raise ValueError(
            f"save: info must not be called {' or '.join(sorted(clash))}, which is stored already; "
            "choose another name"
        )
    header = {"config": net.config, "encoder": getattr(net.encoder, "name", None)}
    if isinstance(net, ToyModel):
        header["network"] = TOY
    header |= {"digest": DIGEST, **info}
    try:
        text = json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"save: info must be what JSON can hold, got {error}; convert it to plain Python values"
        ) from None
    tensors = _stored(net, dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda partial: write(partial, text, tensors))
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"save: path must be a file that can be written, got {path} ({reason(error)}); "
            f"{remedy(error)}"
        ) from error


def _stored(net: torch.nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights of `net` as they are written: checked, on the CPU, each in memory of its own."""
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, weight in net.state_dict().items():
        if weight.is_meta or weight.dtype not in STORED:
            place = "on the device meta" if weight.is_meta else f"in {weight.dtype}"
            raise ValueError(
                f"save: net must have weights in one of {_names(STORED)}, got {name} {place}; load "
                "them, or convert the network with .float()"
            )
        weight = weight.detach().cpu()
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"save: net must have finite weights, got NaN or infinity in {name}; look at where "
                "its training diverged"
            )
        value = weight.to(dtype or weight.dtype).contiguous()
        if not torch.isfinite(value).all() or _underflows(weight, value):
            raise ValueError(
                f"save: dtype must have the range of the weights, got {dtype}, which {name} "
                "leaves; store them in torch.bfloat16 or torch.float32"
            )
        start = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if start in memory else value
        memory.add(start)
    return tensors


def _underflows(weight: Tensor, value: Tensor) -> bool:
    """Whether a row of a weight, of which only the direction counts, is lost in a narrower type."""
    least = torch.finfo(value.dtype).tiny
    if weight.ndim < 2 or least <= torch.finfo(weight.dtype).tiny:
        return False
    largest = weight.flatten(1).abs().amax(dim=1)
    return bool(((largest > 0) & (largest < least)).any())


def _fitting(
    path: Path, header: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> torch.nn.Module:
    """The net that a header describes, without weights; ValueError where it has no such `shapes`.

    It is built only if there are weights enough for its layers, which may be without end.
    """
    try:
        if header.get("network") != TOY:
            least = least_weights(NetConfig(**header["config"]))
            if least > len(shapes):
                raise ValueError(f"{len(shapes)} tensors for a network of {least} or more")
        net = _blank(header)
        if problem := _misfit(shapes, net):
            raise ValueError(problem)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"load: {path} must hold weights that fit its options, got "
            f"{' '.join(str(error).split())[:200]}; it may be damaged or need a later version of "
            "autoguide_fast"
        ) from None
    return net


def _misfit(shapes: Mapping[str, tuple[int, ...]], net: torch.nn.Module) -> str | None:
    """What in `shapes`, by name, is not as `net` has it, or None."""
    expected = {name: tuple(weight.shape) for name, weight in net.state_dict().items()}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    for names, what in ((missing, "no"), (unknown, "the unknown")):
        if names:
            return f"{what} {names[0]}" + f" and {len(names) - 1} more" * (len(names) > 1)
    for name, shape in shapes.items():
        if shape != expected[name]:
            return f"{name} {list(shape)} instead of {list(expected[name])}"
    return None


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(map(str, dtypes))


def load_file(path: Path, device: torch.device | str = "cpu") -> Any:
    """The network in the file `path`, on `device`; what `load` does for files."""
    device = present_device(device, "load")
    with torch.inference_mode(False):
        net: Any = None

        def build(header: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
            nonlocal net
            net = _fitting(path, header, shapes)

        with reading(path, "load", build) as (header, stored):
            _give(net, _weights(path, stored))
        net.encoder = encoder(header.get("encoder"))
        net.info = {k: v for k, v in header.items() if k not in OWN}
        return net if device.type == "cpu" else net.to(device)


def _blank(header: dict[str, Any]) -> torch.nn.Module:
    if header.get("network") != TOY:
        return blank(header["config"])
    with torch.device("meta"):
        return ToyModel(**header["config"]).eval()


def _give(net: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors`, by the names of the state dict, the weights of `net`, without gradients."""
    for name, module in net.named_modules():
        prefix = f"{name}." if name else ""
        for key in module._parameters:
            weight = torch.nn.Parameter(tensors[prefix + key], requires_grad=False)
            module._parameters[key] = weight
        for key in module._buffers:
            module._buffers[key] = tensors[prefix + key]


def _weights(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the file, by name, as finite float32, in memory that is not the file's."""
    weights = {}
    for name, tensor in stored.items():
        if tensor.dtype not in STORED:
            raise ValueError(
                f"load: {path} must hold weights in one of {_names(STORED)}, got {name} in "
                f"{tensor.dtype}; save the network with autoguide_fast.checkpoints.save"
            )
        weights[name] = tensor.to(torch.float32, copy=True)
    odd = not_finite(weights.items())
    if odd is not None:
        raise ValueError(
            f"load: {path} must hold finite weights, got NaN or infinity in {odd}; use another "
            "checkpoint, or look at where its training diverged"
        )
    return weights
