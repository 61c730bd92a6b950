"""Where `sample` writes: a folder of PNGs that grows image by image and can be gone on with.

`settings.json` in it says what all of its images were sampled with: nets and sampler, not seeds
and classes, which are in the files' names. So a command that was stopped goes on where it was,
another one may add seeds, and one with other settings is refused.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import plots
from ..files import reason, remedy, write_atomically

SETTINGS = "settings.json"
GRID = "grid.png"
GRID_LIMIT = 1024  # more images in one picture serve nobody
_IMAGE = re.compile(r"\d{6,}(-class\d+)?\.png")  # as `sample` names them
_PARTIAL = ".partial.png"  # one image is written at a time
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"  # of a PNG
# What a process leaves that is killed while it writes.
_LEFTOVER = re.compile(r"\.partial\.png|\.settings\.\d+\.json|\.grid\.\d+\.png")
_WAITING = 2  # batches that wait to be written, so that memory does not grow


class ImageFolder:
    """The images of one command in a folder, which this process alone writes to.

    Args:
        path: the folder.
        names: of the files without `.png`, one for each image; the same name is the same image.
        settings: what the images are sampled with, as JSON holds it. A net is a dict with `name`
            and `digest`, of which the second counts.
        shape: (channels, height, width) of an image.

    Raises:
        ValueError: the folder holds images that were sampled with other settings, or nothing says
            with which.

    missing: a bool for each image: whether it is to be written. One that is there counts if it is
    a whole PNG of the right size. Of several with one name the first is to be written.
    """

    def __init__(
        self, path: Path, names: Sequence[str], settings: dict, shape: tuple[int, int, int]
    ) -> None:
        self.path, self.names, self.settings, self.shape = path, names, settings, shape
        known = self._check_settings()
        self.missing = [False] * len(names)
        there = {entry.name for entry in os.scandir(path)}
        for name in filter(_LEFTOVER.fullmatch, there):
            (path / name).unlink()
        first = {name: i for i, name in reversed(list(enumerate(names)))}
        self.count = len(first)
        for name, i in first.items():
            self.missing[i] = not (known and f"{name}.png" in there and self._is_whole(name))
        self._pending: collections.deque[Future] = collections.deque()

    def _check_settings(self) -> bool:
        """Whether what is in the folder was sampled with these settings; False for a new one."""
        path = self.path / SETTINGS
        try:
            before = json.loads(path.read_bytes())
            if not isinstance(before, dict):
                raise ValueError("it holds no settings")
        except FileNotFoundError:
            # Left there, they would pass for images of these settings from now on.
            count = sum(1 for entry in os.scandir(self.path) if _IMAGE.fullmatch(entry.name))
            if count:
                raise ValueError(
                    f"sample: {path} must say how the images beside it were sampled, got {count} "
                    "of them and no such file; remove them, or choose another --out"
                ) from None
            return False
        except ValueError as error:
            raise ValueError(
                f"sample: {path} must say how the images beside it were sampled, got a damaged "
                f"file ({error}); remove it and them, or choose another --out"
            ) from None
        changed = [
            f"{name} was {_shown(before.get(name))}, is {_shown(now)}"
            for name, now in self.settings.items()
            if _identity(before.get(name)) != _identity(now)
        ]
        if changed:
            raise ValueError(
                f"sample: settings must stay those of the images in {self.path}, got changes: "
                f"{', '.join(changed)}; repeat the first command, or choose another --out"
            )
        return True

    def _is_whole(self, name: str) -> bool:
        from PIL import Image

        channels, height, width = self.shape
        data = (self.path / f"{name}.png").read_bytes()
        try:
            with Image.open(io.BytesIO(data)) as image:
                kind = image.format, image.mode, image.size
                image.verify()  # checksums, but for that of the end
        except Exception:  # Pillow raises errors of many kinds for a damaged file
            return False
        mode = "L" if channels == 1 else "RGB"
        return data.endswith(_END) and kind == ("PNG", mode, (width, height))

    def warn_of_little_room(self) -> None:
        """Says so on standard error where the disk may not hold what is to be written."""
        needed = sum(self.missing) * (int(np.prod(self.shape)) + 100)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            print(
                f"sample: {self.path} has room for {free / 1e9:.1f} GB, and {sum(self.missing)} "
                f"images may take {needed / 1e9:.1f} GB; if it runs full, make room and repeat the "
                "command: it goes on where it stopped",
                file=sys.stderr,
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lets `write` be called; at the end all is on its place.

        Images are encoded in a thread of their own, while the next batch is sampled.
        """
        try:
            with ThreadPoolExecutor(1) as self._thread:
                yield
                while self._pending:
                    self._pending.popleft().result()
        finally:
            (self.path / _PARTIAL).unlink(missing_ok=True)

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Takes images uint8 `[N, C, H, W]`; of those at `indices`, writes what is missing.

        Raises:
            OSError: one that was taken before could not be written.
        """
        if not self._pending:
            self._begin()
        wanted = [
            (self.names[i], image)
            for i, image in zip(indices, images, strict=True)
            if self.missing[i]
        ]
        self._pending.append(self._thread.submit(self._write, wanted))
        while len(self._pending) > _WAITING:
            self._pending.popleft().result()

    def _begin(self) -> None:
        text = json.dumps(self.settings, indent=1) + "\n"
        with self._sentence(SETTINGS):
            write_atomically(self.path / SETTINGS, lambda path: path.write_text(text))

    def _write(self, images: list[tuple[str, np.ndarray]]) -> None:
        partial = self.path / _PARTIAL
        for name, image in images:
            with self._sentence(f"{name}.png"):
                plots.to_image(image).save(partial)
                os.replace(partial, self.path / f"{name}.png")

    @contextlib.contextmanager
    def _sentence(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"sample: {self.path / name} must be written, got {reason(error)}; "
                f"{remedy(error)}, then repeat the command: it goes on where it stopped"
            ) from error

    def written(self) -> int:
        """How many of the images are there."""
        there = {entry.name for entry in os.scandir(self.path)}
        return sum(f"{name}.png" in there for name in dict.fromkeys(self.names))

    def write_grid(self) -> None:
        """Writes the first images, as they are in the folder, as one picture."""
        from PIL import Image

        images = []
        for name in self.names[:GRID_LIMIT]:
            with Image.open(self.path / f"{name}.png") as image:
                pixels = np.asarray(image)
            images.append(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
        grid = plots.image_grid(np.stack(images))
        with self._sentence(GRID):
            write_atomically(self.path / GRID, grid.save)


def _identity(value: Any) -> Any:
    return value["digest"] if isinstance(value, dict) else value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['name']} (contents {value['digest'][:8]})"
    return "none" if value is None else str(value)
