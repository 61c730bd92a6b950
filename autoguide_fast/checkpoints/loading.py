"""`load`: networks by whatever names them, a file, a run's folder, a preset, a repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..arguments import present_device
from ..ema import check_sigma_rel
from ..networks import Precond
from . import hub
from .bundled import BUNDLED, bundled_path
from .native import load_file
from .run_folder import Snapshots, is_run_folder
from .weights import published_file, weights_path


def load(
    path_or_name: str | os.PathLike,
    device: torch.device | str = "cpu",
    ema: float | None = None,
) -> Precond | Any:
    """Read a network.

    Args:
        path_or_name: Name of a bundled network (`"digits"`, `"digits-guide"`, `"digits-uncond"`,
            `"photos"`, `"photos-guide"`) or of a published preset, whose model it is
            (`checkpoints.fetch` says where that comes from); a file written by `save`; a snapshot
            of the reference implementation (`.pkl`), which is read as data: no code in it runs; the
            folder of a training run, or of its guide; a folder that `Precond.save_pretrained`
            wrote; or a repository of the Hugging Face Hub, `"user/name"`, where huggingface_hub is
            installed.
        device: Where to put it.
        ema: For the folder of a run, which average of the weights: its length `sigma_rel`, tracked
            or not, at the end of what has been trained (EDM2 section 3.2).

    Returns:
        Network in evaluation mode, float32, without gradients, with `.encoder` set, and `.info`, a
        dict of what else the file records; `toy.ToyModel` for a snapshot of the reference's toy.
        Torch's default type and device and its random numbers have no part in it.

    Raises ValueError for an unknown name, a file that is not such a checkpoint, is damaged, or
    whose weights do not fit its options, are not finite or not stored as floating-point numbers,
    an absent device, or `ema` that is missing or has no use; TypeError for something that is no
    path; ConnectionError where something has to be downloaded and cannot be.
    """
    named = bundled_path(path_or_name) or published_file(path_or_name)
    if is_run_folder(path_or_name) and (ema is not None or not named):
        if ema is None:
            raise ValueError(
                f"load: ema must be given for the folder of a run, got None for {path_or_name}; "
                "pass a length such as 0.05"
            )
        check_sigma_rel("load", ema, "ema")
        device = present_device(device, "load")
        with torch.inference_mode(False):
            run = Snapshots(path_or_name)
            return run.net(run.times[-1], float(ema)).to(device)
    if ema is not None:
        raise ValueError(
            f"load: ema must be left out for what is no folder of a run, got {ema!r} for "
            f"{path_or_name}; a file holds one average"
        )
    return load_file(find(path_or_name), device)


def find(
    path_or_name: str | os.PathLike,
    argument: str = "load: path_or_name",
    accept_licence: bool = False,
) -> Path:
    """Path of the file that `path_or_name` means; ValueError if there is none.

    Published weights and files of repositories are downloaded where they are not there yet; see
    `weights.fetch` and `hub.download`. Messages begin with `argument`.
    """
    if not isinstance(path_or_name, (str, os.PathLike)):
        raise TypeError(
            f"{argument} must be a name or a path, got {type(path_or_name).__name__}; pass a string"
        )
    function = argument.partition(":")[0]
    published = published_file(path_or_name)
    if published is not None and not os.path.isfile(path_or_name):
        return weights_path(published, function, accept_licence)
    path = bundled_path(path_or_name) or Path(path_or_name)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError:  # such as a name that is too long
        is_folder = is_there = False
    if is_folder:
        if (path / hub.FILE).is_file():
            return path / hub.FILE
        remedy = "name a .safetensors file in it"
        if is_run_folder(path):
            remedy = "pass autoguide_fast.load(folder, ema=0.05), one of its averages"
        raise ValueError(f"{argument} must be a file, got the folder {path}; {remedy}")
    if not is_there:
        if hub.is_repository(path_or_name):
            return hub.download(str(path_or_name), function)
        names = ", ".join(BUNDLED)
        raise ValueError(
            f"{argument} must be a bundled name ({names}) or an existing file, got "
            f"{str(path_or_name)[-100:]!r}; check the spelling, or see `autoguide-fast presets`"
        )
    return path
