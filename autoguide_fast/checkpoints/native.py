"""The package's own checkpoints: one safetensors file that holds weights, options and encoder.

The file's metadata has one entry, `autoguide_fast`, with JSON: `config` (the arguments of
`Precond`), `encoder` (a name or null) and whatever else was recorded when saving. Loading runs
no code from the file.
"""

import json
import os
from pathlib import Path

import torch

from ..arguments import present_device
from ..as_built import differences
from ..encoders import encoder
from ..networks import Precond
from .bundled import BUNDLED, bundled_path

METADATA_KEY = "autoguide_fast"


def save(net, path, dtype=None, **info):
    """Write a network to a safetensors file.

    Args:
        net (Precond): Its weights, options and encoder are stored.
        path (str or Path): The file, which appears complete or not at all.
        dtype (torch.dtype, optional): Type to store the weights in, such as `torch.float16` for
            half the size.
        **info: Anything JSON can hold, kept beside the weights and found in `net.info` after
            loading.

    Raises TypeError for a network that is not a `Precond` or info that JSON cannot hold, ValueError
    for one with attributes, weights or layers that its options do not build, which would be lost.
    """
    from safetensors.torch import save_file

    if not isinstance(net, Precond):
        raise TypeError(
            f"save: net must be a Precond, got {type(net).__name__}; pass the network itself, "
            "not a wrapper"
        )
    edited = next((d for d in differences(net) if d.kind != "code"), None)
    if edited:
        raise ValueError(f"save: net must be what its options build, got {edited.text}")
    clash = {"config", "encoder"} & info.keys()
    if clash:
        raise ValueError(
            f"save: info must not be called {' or '.join(sorted(clash))}, which is stored already; "
            "choose another name"
        )
    header = {"config": net.config, "encoder": getattr(net.encoder, "name", None), **info}
    try:
        header = json.dumps(header)
    except TypeError as error:
        raise TypeError(
            f"save: info must be what JSON can hold, got {error}; convert it to plain Python values"
        ) from None
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in net.state_dict().items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # the user's own; safetensors would let nobody else read
        save_file(tensors, partial, metadata={METADATA_KEY: header})
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path_or_name, device="cpu"):
    """Read a network.

    Args:
        path_or_name (str or Path): Name of a bundled network (`"digits"`, `"digits-guide"`,
            `"digits-uncond"`, `"photos"`, `"photos-guide"`) or a file written by `save`.
        device (torch.device or str): Where to put it.

    Returns:
        Precond in evaluation mode, float32, without gradients, with `.encoder` set, and `.info`, a
        dict of what else the file records.

    Raises ValueError for an unknown name, a file that is not such a checkpoint or whose weights do
    not fit its options, or an absent device; TypeError for something that is no path.
    """
    path = find(path_or_name)
    device = present_device(device, "load")
    header, tensors = _read(path)
    info = {k: v for k, v in header.items() if k not in ("config", "encoder")}
    try:
        net = Precond(**header["config"])
        net.load_state_dict(tensors, strict=True)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"load: {path} must hold weights that fit its options, got "
            f"{' '.join(line.strip() for line in reason[:2])}; it may be damaged or need a later "
            "version of autoguide_fast"
        ) from None
    net.encoder = encoder(header.get("encoder"))
    net.info = info
    return net.eval().requires_grad_(False).to(device)


def find(path_or_name, argument="load: path_or_name"):
    """Path of the file that `path_or_name` means; ValueError if there is none."""
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise TypeError(
            f"{argument} must be a name or a path, got {type(path_or_name).__name__}; pass a string"
        )
    path = bundled_path(path_or_name) or Path(path_or_name)
    names = ", ".join(BUNDLED)
    if path.is_dir():
        raise ValueError(
            f"{argument} must be a file, got the folder {path}; name a .safetensors file in it"
        )
    if not path.exists():
        raise ValueError(
            f"{argument} must be a bundled name ({names}) or an existing file, got "
            f"{str(path_or_name)!r}; check the spelling, or give the path of a .safetensors file"
        )
    return path


def _read(path):
    """Header and tensors of the file `path`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ValueError(
            f"load: {path} must be a safetensors file written by autoguide_fast, got one that "
            f"cannot be read ({error}); save the network with autoguide_fast.checkpoints.save"
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("config"), dict):
        raise ValueError(
            f"load: {path} must say how its network is built, got a safetensors file without the "
            f"metadata {METADATA_KEY!r}; save the network with autoguide_fast.checkpoints.save"
        )
    return header, {k: v.to(torch.float32) for k, v in tensors.items()}
