"""Where the files of detectors are: on this machine, or at their address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checkpoints.download import download as download_file
from ..checkpoints.weights import present
from ..files import reason, remedy


class Published(NamedTuple):
    """A published file: what it is, its name, where it is published and its size in MB."""

    what: str
    name: str
    url: str
    megabytes: int


# The network of Szegedy et al. as it was published on 2015-12-05, on which Heusel et al. defined
# FID, in the TorchScript form of StyleGAN2-ADA and later, whose published figures are taken on it.
INCEPTION = Published(
    "the Inception-v3 network that FID is defined on",
    "inception-2015-12-05.pt",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    95,
)
DINOV2_WEIGHTS = Published(
    "DINOv2 ViT-L/14",
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    1217,
)
DINOV2_CODE = "facebookresearch/dinov2"


def present_or_downloaded(file: Published, download: bool) -> Path:
    """Path of a published file.

    Raises:
        ValueError: it is not there, and not to be downloaded.
        ConnectionError: it cannot be downloaded.
    """
    path = present(file.name)
    if path is not None:
        return path
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    ways = (
        f"download {file.url} ({file.megabytes} MB) and put it into {folder} or the folder that "
        "AGF_MODELS names, or name it with --detector-file"
    )
    if not download:
        raise ValueError(
            f"evaluate: {file.what} must be in a file, got no {file.name}; {ways}, or add "
            "--download"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        download_file(file.url, folder / file.name, _check_archive, progress=True)
    except ConnectionError as error:
        raise ConnectionError(
            f"evaluate: {file.what} must be downloaded, got {error}; {ways}"
        ) from None
    except OSError as error:
        raise OSError(
            f"evaluate: {folder / file.name} must be a file that can be written, got "
            f"{reason(error)}; {remedy(error)}"
        ) from error
    return folder / file.name


def hub_source(repository: str, download: bool) -> dict[str, str]:
    """Where `torch.hub.load` finds a repository: its checkout, or with `download` its address.

    Raises:
        ValueError: there is no checkout in torch's hub cache, and none is to be downloaded.
    """
    name = repository.replace("/", "_")
    for branch in ("main", "master"):
        folder = Path(torch.hub.get_dir()) / f"{name}_{branch}"
        if (folder / "hubconf.py").is_file():
            return {"repo_or_dir": str(folder), "source": "local"}
    if download:
        return {"repo_or_dir": repository, "source": "github"}
    raise ValueError(
        f"evaluate: the code of {repository} must be in torch's hub cache, got none in "
        f"{torch.hub.get_dir()}; clone https://github.com/{repository} to "
        f"{Path(torch.hub.get_dir()) / f'{name}_main'}, name a TorchScript file with "
        "--detector-file dinov2=FILE, or add --download"
    )


def archive(path: Path, what: str, device: torch.device) -> Callable[..., Any]:
    """The TorchScript or exported network in a file, in evaluation mode on a device.

    Raises:
        ValueError: the file is no such thing.
    """
    net = exported(path, device)
    if net is None:
        raise ValueError(
            f"evaluate: {what} must be TorchScript (torch.jit.save) or exported (torch.export.save)"
            f", got {path}; name another file with --detector-file"
        )
    return net


def exported(path: Path, device: torch.device) -> Any:
    """The TorchScript or exported network in a file, on a device; None where it holds none."""
    try:
        return torch.jit.load(path, map_location=device).eval()
    except RuntimeError:  # as for any other file
        pass
    if path.suffix != ".pt2":
        return None
    try:
        program = torch.export.load(path)
    except Exception:  # whatever the file made it stumble over
        return None
    return program.module().to(device)


def _check_archive(path: Path) -> None:
    """Raise ValueError where a download is no ZIP archive, as files of torch are."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError(
                f"evaluate: {path.name.removesuffix('.part')} must be a file of torch, got another "
                "answer of the server; download it by hand"
            )
