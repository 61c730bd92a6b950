"""Small pictures and datasets on disk that tests of training data share."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(index: int, size=(8, 8), channels: int = 3) -> np.ndarray:
    """Random pixels of picture number `index`, uint8 [height, width, channels]."""
    return np.random.RandomState(index).randint(0, 256, (size[1], size[0], channels), np.uint8)


def picture(index: int, size=(8, 8), mode: str = "RGB") -> Image.Image:
    """A random picture."""
    return Image.fromarray(pixels(index, size)).convert(mode)


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """The content of an NPY file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Writes files into a folder, or a ZIP file if `path` ends in .zip."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def numbered(count: int, labels: list | None = None, **picture_options) -> dict[str, bytes]:
    """The files of a dataset in the reference's layout; `labels` None: no dataset.json."""
    names = [f"00000/img{i:08d}.png" for i in range(count)]
    files = {name: png(picture(i, **picture_options)) for i, name in enumerate(names)}
    if labels is not None:
        listed = [list(pair) for pair in zip(names, labels, strict=True)]
        files["dataset.json"] = json.dumps({"labels": listed}).encode()
    return files
