"""Where published weights are: in a local folder, in torch's hub cache, or at their address."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from ..files import reason, remedy, sha256, write_atomically
from . import recorded_objects
from .download import download
from .presets import Preset, licence, preset, published_files, weights_root

AGREED = ("1", "yes", "true", "on")

_checked: dict[Path, tuple] = {}  # files whose checksum was compared, by size and time


def fetch(name: str, accept_licence: bool = False, progress: bool = False) -> list[Path]:
    """The files of a published preset, downloaded where they are not there yet.

    A file is looked for in the folder that the environment variable `AGF_MODELS` names, then in
    torch's hub cache (`torch.hub.get_dir()`, `checkpoints`), as it was published or converted to
    `.safetensors`. A download goes to the first of these, goes on where one was cut, and appears
    complete or not at all. The SHA-256 of a file is kept beside it when it is first used, and
    compared in each later process.

    Args:
        name: A preset (`autoguide-fast presets`), or a published file's name.
        accept_licence: Agree to the licence of the weights, CC BY-NC-SA 4.0, without which nothing
            is downloaded. So does the environment variable `AGF_ACCEPT_LICENCE=1`.
        progress: Show a progress bar.

    Returns:
        Paths of the model and, where the preset has one, of its guide.

    Raises ValueError for an unknown name, a licence that was not agreed to, or a file that is
    damaged; ConnectionError where the address cannot be reached; OSError where the file cannot be
    written.
    """
    found = preset(name)
    if found is None and name not in published_files():
        raise ValueError(
            f"fetch: name must be a published preset, got {str(name)[:100]!r}; "
            "`autoguide-fast presets` lists them"
        )
    files = _files(found) if found is not None else [name]
    return [weights_path(file, "fetch", accept_licence, progress) for file in files]


def _files(found: Preset) -> list[str]:
    return [weights.file for weights in (found.net, found.guide) if weights is not None]


def published_file(name: object) -> str | None:
    """The published file that `name` means, a preset or a file's name, or None."""
    found = preset(name)
    if found is not None:
        return found.net.file
    return name if isinstance(name, str) and name in published_files() else None


def present(file: str) -> Path | None:
    """Where the published `file` lies on this machine, or None."""
    for folder in _folders():
        for name in (file, f"{Path(file).stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    return None


def weights_path(
    file: str, function: str, accept_licence: bool = False, progress: bool = True
) -> Path:
    """Path of the published `file`, which is downloaded if need be; see `fetch`.

    Messages begin with `function`.
    """
    path = present(file)
    if path is None:
        path = _downloaded(file, function, accept_licence, progress)
    _check(path, function)
    return path


def _folders() -> list[Path]:
    own = os.environ.get("AGF_MODELS")
    folders = [Path(own).expanduser()] if own else []
    return [*folders, Path(torch.hub.get_dir()) / "checkpoints"]


def _downloaded(file: str, function: str, accept_licence: bool, progress: bool) -> Path:
    url = f"{os.environ.get('AGF_WEIGHTS_URL', weights_root()).rstrip('/')}/{file}"
    folder = _folders()[0]
    agreed = accept_licence or os.environ.get("AGF_ACCEPT_LICENCE", "").lower() in AGREED
    if not agreed:
        raise ValueError(
            f"{function}: the licence of {file}, {licence()}, must be agreed to before it is "
            f"downloaded from {url}, got no agreement; pass --accept-licence, call "
            "autoguide_fast.checkpoints.fetch(name, accept_licence=True), set "
            f"AGF_ACCEPT_LICENCE=1, or put the file into {folder}"
        )
    path = folder / file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What is no whole snapshot never gets its name.
        download(url, path, lambda partial: recorded_objects.check(partial, function), progress)
    except ConnectionError as error:
        raise ConnectionError(
            f"{function}: {file} must be there or be downloaded, got {error}; download {url} and "
            f"put it into {folder}, or name its folder in AGF_MODELS"
        ) from None
    except OSError as error:
        raise OSError(
            f"{function}: {path} must be a file that can be written, got {reason(error)}; "
            f"{remedy(error)}, or name another folder in AGF_MODELS"
        ) from error
    return path


def _check(path: Path, function: str) -> None:
    """Compare a file with the checksum that was kept of it, or keep one."""
    stat = path.stat()
    state = stat.st_size, stat.st_mtime_ns
    kept = path.with_name(f"{path.name}.sha256")
    try:
        known = kept.read_text(encoding="ascii", errors="replace").split()[:1]
    except OSError:
        known = []
    seen = _checked.get(path)
    if seen is not None and seen[:2] == state and known in ([], [seen[2]]):
        return
    digest = sha256(path)
    if known and known[0] != digest:
        raise ValueError(
            f"{function}: {path} must have the contents that it had at first use (SHA-256 "
            f"{known[0][:16]}...), got others ({digest[:16]}...); delete it to download it again, "
            f"or delete {kept.name} if it is meant to be another"
        )
    if not known:
        with contextlib.suppress(OSError):  # in a folder that is only read, nothing can be kept
            line = f"{digest}  {path.name}\n"
            write_atomically(kept, lambda partial: partial.write_text(line, "ascii"))
    _checked[path] = (*state, digest)
