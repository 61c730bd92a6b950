"""Where in a source the data begin: below folders that wrap all of it, or at its top."""

from __future__ import annotations

import os
import re
from pathlib import Path

LABELS = "dataset.json"
_NUMBERED = re.compile(r"((?:.*/)?)\d{5}/img\d{8}\.\w+")  # a file as conversions number them
_SPLITS = {
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "dev",
    "eval",
    "heldout",
    "held-out",
}


def find_root(path: Path, names: list[str], files: list[str]) -> str:
    """The folder in a source below which its data lie: '', or a name that ends in a slash.

    Args:
        path: the source, a folder or a ZIP file.
        names: of all that is in it, sorted.
        files: those that are images or latents, at least one.

    Raises:
        ValueError: there is none, since the data are several datasets, or one whose labels lie
            beside only a part of it, or a single folder that might be a class or not.
    """
    lists = [name for name in names if name.rpartition("/")[2] == LABELS]
    if LABELS in lists:
        return ""
    # The longest folder that all share, which is that of the first and the last in their order.
    shared = os.path.commonprefix([files[0], files[-1]])  # noqa: RUF071, cut at a slash below
    shared = shared[: shared.rfind("/") + 1]
    if lists:
        root = lists[0][: -len(LABELS)]
        if len(lists) > 1 or not shared.startswith(root):
            raise ValueError(
                f"dataset: source must have one {LABELS} for all of it, got {path} with "
                f"{len(lists)}, such as {lists[0]}; {_name(path, root)}"
            )
        return root
    root = wrapper_of_numbered(files)
    if root is not None:
        return root
    folders = {_head(name, shared) for name in files}
    if folders <= _SPLITS:
        train = next((name for name in sorted(folders) if name.startswith("train")), min(folders))
        raise ValueError(
            f"dataset: source must be one split, got {path} with {', '.join(sorted(folders))}; "
            f"{_name(path, f'{shared}{train}/')}"
        )
    if shared and folders == {""}:
        raise ValueError(
            f"dataset: source must have several folders for classes, or none, got {path} with "
            f"{shared.rstrip('/')} alone; {_name(path, shared)} to have no labels, or add a "
            f"{LABELS} to have one class"
        )
    return shared


def wrapper_of_numbered(files: list[str]) -> str | None:
    """What stands before `NNNNN/imgNNNNNNNN.png` in all names; None where some differ from it."""
    match = _NUMBERED.fullmatch(files[0])
    root = match[1] if match else ""
    numbered = all(
        n.startswith(root) and (m := _NUMBERED.fullmatch(n, len(root))) and not m[1] for n in files
    )
    return root if match and numbered else None


def _head(name: str, root: str) -> str:
    """The first folder of a name below a root, or ''."""
    folder, slash, _ = name[len(root) :].partition("/")
    return folder if slash else ""


def _name(path: Path, root: str) -> str:
    inside = root.rstrip("/")
    if path.is_dir():
        return f"name {path / inside}"
    return f"unpack it and name its {inside or 'top'}, or pack what is in there alone"
