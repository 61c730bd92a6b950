"""From a snapshot of the reference implementation to a file of our own, in little memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..files import reason, remedy, sha256, write_atomically
from . import recorded_objects, reference
from .format import DIGEST, write
from .loading import find
from .native import STORED

if TYPE_CHECKING:
    from tqdm import tqdm


def convert(source: str | os.PathLike, path: str | os.PathLike, progress: bool = False) -> None:
    """Write a snapshot of the reference implementation (`.pkl`) as a safetensors file.

    Weights keep their type and are read one by one. Kept are options, `sigma_data` among them,
    encoder, what the snapshot tells of the training (`info["trained"]`), and where the file comes
    from (`info["converted_from"]`: name, bytes and SHA-256).

    Args:
        source: The snapshot. It is read as data; no code in it runs.
        path: The file to write, which appears complete or not at all.
        progress: Show a progress bar.

    Raises, before `path` is touched, ValueError for a snapshot that cannot be read or whose weights
    are not finite floating-point numbers. Raises OSError where the file cannot be written.
    """
    source, path = find(source, "convert: source"), Path(path)
    if not recorded_objects.is_pickle(source):
        raise ValueError(
            f"convert: source must be a snapshot of the reference implementation, got {source}, "
            "which is none; networks of autoguide_fast need no conversion"
        )
    if path.is_dir():
        raise ValueError(f"convert: path must be a file, got the folder {path}; name a file in it")
    if path.exists() and path.samefile(source):
        raise ValueError(
            f"convert: path must not be the source, got {path} for both; name another file"
        )
    with reference.reading(source, "convert") as (header, tensors):
        if header.get("network") == reference.TOY:
            raise ValueError(
                f"convert: source must hold a network for images, got {source}, which is a toy of "
                "two dimensions; load it as it is"
            )
        size = source.stat().st_size
        with _bar(progress, size + 2 * tensors.nbytes) as bar:
            origin = {"name": source.name, "bytes": size, "sha256": sha256(source, bar.update)}
            kept = {k: header[k] for k in ("config", "encoder")} | {
                "digest": DIGEST,
                "trained": header["trained"],
                "converted_from": origin,
            }
            text, checked = json.dumps(kept), _Checked(source, tensors)

            def write_to(partial: Path) -> None:
                write(partial, text, checked, bar.update)

            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, write_to)
            except OSError as error:
                raise OSError(
                    f"convert: path must be a file that can be written, got {path} "
                    f"({reason(error)}); {remedy(error)}"
                ) from error


class _Checked(Mapping[str, Tensor]):
    """Tensors that are looked at as they are read: floating-point numbers, all of them finite."""

    def __init__(self, source: Path, tensors: Mapping[str, Tensor]) -> None:
        self.source, self.tensors = source, tensors

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        if tensor.dtype not in STORED or not torch.isfinite(tensor).all():
            raise ValueError(
                f"convert: {self.source} must hold finite floating-point weights, got others in "
                f"{name} ({tensor.dtype}); use another snapshot"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _bar(progress: bool, total: int) -> tqdm:
    from tqdm import tqdm

    return tqdm(total=total, unit="B", unit_scale=True, disable=not progress)
