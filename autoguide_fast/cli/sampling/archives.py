"""Files of images: the reference implementation's ZIP, and the .npz of ADM's evaluator.

Both are written image by image, so that memory does not grow with their number, without dates, so
that equal images make equal files, and uncompressed, as their readers want them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .image_folder import ImageFolder
from .manifest import MANIFEST

Writer = Callable[[Path, ImageFolder, str], None]

LABELS = "dataset.json"
_DATE = (1980, 1, 1, 0, 0, 0)


def write_zip(path: Path, folder: ImageFolder, manifest: str) -> None:
    """A ZIP of PNGs, `00000/img00000000.png`, and `dataset.json` with the label of each.

    Numbered in the job's order.
    """
    job = folder.job
    names = [f"{n // 1000:05d}/img{n:08d}.png" for n in range(len(job.first))]
    labels = job.all_labels()
    listed = None if labels is None else [[n, k] for n, k in zip(names, labels, strict=True)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, i in zip(names, job.first, strict=True):
            _add(archive, name, folder.file(i).read_bytes())
        _add(archive, LABELS, json.dumps({"labels": listed}).encode())
        _add(archive, MANIFEST, manifest.encode())


def write_npz(path: Path, folder: ImageFolder, manifest: str) -> None:
    """An .npz with `arr_0`, uint8 `[N, H, W, 3]`, and, of a model with classes, `arr_1`, `[N]`.

    Grey images are stored as colours, since ADM's evaluator takes three channels.
    """
    job = folder.job
    _, height, width = job.shape
    labels = job.all_labels()
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(_entry("arr_0.npy"), "w", force_zip64=True) as file:
            shape = len(job.first), height, width, 3
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for i in job.first:
                pixels = np.broadcast_to(folder.pixels(i), (3, height, width))
                file.write(np.ascontiguousarray(pixels.transpose(1, 2, 0)).tobytes())
        if labels is not None:
            with archive.open(_entry("arr_1.npy"), "w") as file:
                np.lib.format.write_array(file, np.array(labels, np.int64))
        _add(archive, MANIFEST, manifest.encode())


WRITERS: dict[str, Writer] = {".zip": write_zip, ".npz": write_npz}


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _DATE)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_entry(name), data)


def damaged(path: Path) -> str | None:
    """Name of the first part of an archive that does not have its checksum; None where all have."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return "table of contents"
