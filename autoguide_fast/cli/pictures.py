"""Images as evaluations take them: a folder, a ZIP file or an .npz, read one at a time."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NOT_IMAGES = ("grid.png", "curves.png")  # which `sample` and `plot` write beside others


@dataclass(frozen=True)
class Pictures:
    """Images in their order.

    Attributes:
        names: of the files; numbers for those of an .npz.
        pixels: gives image number i, uint8 `[C, H, W]`, C = 1 (grey) or 3 (RGB).
    """

    names: Sequence[str]
    pixels: Callable[[int], np.ndarray]

    def some(self, count: int) -> list[int]:
        """Numbers of `count` images, or as many as there are: drawn at random, always the same.

        At equal distances, classes that go round would meet the same ones again and again.
        """
        total = len(self.names)
        drawn = np.random.default_rng(0).choice(total, min(count, total), replace=False)
        return sorted(drawn.tolist())

    def stacked(self, numbers: Sequence[int], command: str) -> np.ndarray:
        """These images, uint8 `[N, C, H, W]`, in colour where one of them is.

        Raises:
            ValueError: they differ in size.
        """
        found = [self.pixels(i) for i in numbers]
        channels = max(len(image) for image in found)
        for i, image in zip(numbers, found, strict=True):
            if image.shape[1:] != found[0].shape[1:]:
                raise ValueError(
                    f"{command}: images must be of one size, got {_size(found[0])} in "
                    f"{self.names[numbers[0]]} and {_size(image)} in {self.names[i]}; sort them"
                )
        return np.stack([np.broadcast_to(i, (channels, *i.shape[1:])) for i in found])


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


@contextlib.contextmanager
def open_pictures(path: Path, command: str) -> Iterator[Pictures]:
    """The images in a folder and those in it, a ZIP file of them, or an .npz with `arr_0`.

    Raises:
        ValueError: there are none, or what is there cannot be read.
    """
    try:
        if path.is_dir():
            yield _in_folder(path, command)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inside = archive.namelist()
                pack = _in_npz if any(name.endswith(".npy") for name in inside) else _in_zip
                with pack(archive, path, command) as pictures:
                    yield pictures
        else:
            raise _refused(path, command, "something else")
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise _refused(path, command, f"a damaged file ({error})") from None


def _refused(path: Path, command: str, got: str) -> ValueError:
    return ValueError(
        f"{command}: images must be a folder or a ZIP file of pictures, or an .npz with uint8 "
        f"[N, H, W, C] in arr_0, got {got} at {path}; check the path"
    )


def _in_folder(path: Path, command: str) -> Pictures:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _ENDINGS
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not (file.parent == path and file.name in _NOT_IMAGES)
    )
    if not files:
        raise _refused(path, command, "no pictures")
    names = [file.relative_to(path).as_posix() for file in files]
    return Pictures(names, lambda i: _decoded(files[i].read_bytes(), names[i], command))


@contextlib.contextmanager
def _in_zip(archive: zipfile.ZipFile, path: Path, command: str) -> Iterator[Pictures]:
    names = sorted(n for n in archive.namelist() if PurePosixPath(n).suffix.lower() in _ENDINGS)
    if not names:
        raise _refused(path, command, "no pictures")
    yield Pictures(names, lambda i: _decoded(archive.read(names[i]), names[i], command))


@contextlib.contextmanager
def _in_npz(archive: zipfile.ZipFile, path: Path, command: str) -> Iterator[Pictures]:
    if "arr_0.npy" not in archive.namelist():
        raise _refused(path, command, "no arr_0")
    with archive.open("arr_0.npy") as file:
        try:
            shape, dtype = _header(file)
        except ValueError as error:
            raise _refused(path, command, f"no array in arr_0 ({error})") from None
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
            raise _refused(path, command, f"{dtype} {list(shape)}")
        start, size = file.tell(), int(np.prod(shape[1:]))

        def pixels(i: int) -> np.ndarray:
            file.seek(start + i * size)
            found = np.frombuffer(file.read(size), np.uint8).reshape(shape[1:])
            return found.transpose(2, 0, 1)

        yield Pictures([f"image {i}" for i in range(shape[0])], pixels)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version}")
    shape, fortran, dtype = read[version](file)
    if fortran:
        raise ValueError("columns first")
    return shape, dtype


def _decoded(data: bytes, name: str, command: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            found = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except Exception as error:  # Pillow raises errors of many kinds for a damaged file
        raise ValueError(
            f"{command}: images must be whole, got a damaged one in {name} ({error}); make it anew"
        ) from None
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)
