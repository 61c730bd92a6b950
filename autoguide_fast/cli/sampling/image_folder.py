"""Where `sample` collects images: a folder of PNGs that grows, by whichever process, and lasts.

Names say seed and class, `manifest.json` what else the images depend on. So a command that was
stopped goes on where it was, another one may add seeds, and one with other settings is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ... import plots
from ...files import reason, remedy
from . import manifest
from .job import Job, changes

_IMAGE = re.compile(r"(\d{6,})(-class\d+)?\.png")  # as `sample` names them
_FOLDER = re.compile(r"\d{5,}")
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"  # of a PNG
# What a process leaves that is killed while it writes.
_LEFTOVER = re.compile(r"\.\d{6,}(-class\d+)?\.\d+\.png|\.(manifest|grid)\.\d+\.(json|png)")
# Of versions that wrote all images into one folder.
_EARLIER_LEFTOVER = re.compile(r"\.partial\.png|\.settings\.\d+\.json")


class ImageFolder:
    """The images of a job in a folder, which other processes write to as well.

    Args:
        path: the folder.
        job: what is to be in it, among others.
    """

    def __init__(self, path: Path, job: Job) -> None:
        self.path, self.job = path, job

    def begin(self, only: bool = False) -> None:
        """Look at what an earlier job left; to be called while no other process is here.

        Images of earlier versions, which lie in the folder itself, are put into those of their
        thousands; what a killed process has left is removed.

        Args:
            only: whether no other job's images may be there.

        Raises:
            ValueError: the folder holds images that were sampled with other settings, or nothing
                says with which.
        """
        before = manifest.of_folder(self.path)
        flat = [entry.name for entry in os.scandir(self.path) if _IMAGE.fullmatch(entry.name)]
        folders = self._folders()
        if before is None:
            # Left there, they would pass for images of these settings from now on.
            count = len(flat) + sum(len(self._images_in(folder)) for folder in folders)
            if count:
                raise ValueError(
                    f"sample: {self.path / manifest.MANIFEST} must say how the images beside it "
                    f"were sampled, got {count} of them and no such file; remove them, or choose "
                    "another --out"
                )
        else:
            changed = changes(before["settings"], self.job.settings)
            if only:
                for each in before.get("jobs", []):
                    changed += manifest.asked_otherwise(each, self.job.request)
            if changed:
                raise ValueError(
                    f"sample: settings must stay those of the images in {self.path}, got changes: "
                    f"{', '.join(changed)}; repeat the first command, or choose another --out"
                )
        for folder in [self.path, *folders]:
            for entry in os.scandir(folder):
                earlier = folder == self.path and _EARLIER_LEFTOVER.fullmatch(entry.name)
                if earlier or _LEFTOVER.fullmatch(entry.name):
                    os.unlink(entry.path)
        for name in flat:
            match = _IMAGE.fullmatch(name)
            assert match is not None
            folder = self.path / f"{int(match[1]) // 1000:05d}"
            folder.mkdir(exist_ok=True)
            os.replace(self.path / name, folder / name)

    def _folders(self) -> list[Path]:
        return [
            Path(entry.path)
            for entry in os.scandir(self.path)
            if _FOLDER.fullmatch(entry.name) and entry.is_dir()
        ]

    def _images_in(self, folder: Path) -> list[str]:
        return [entry.name for entry in os.scandir(folder) if _IMAGE.fullmatch(entry.name)]

    def there(self) -> set[int]:
        """Positions of the job's images for which there is a file, whatever is in it."""
        names = {
            f"{folder.name}/{name}"
            for folder in self._folders()
            for name in self._images_in(folder)
        }
        return {i for i in self.job.first if f"{self.job.names[i]}.png" in names}

    def missing(self, batch: Iterable[int]) -> list[int]:
        """The images of a batch that are not there whole: as PNGs of the right size, unharmed."""
        return [i for i in self.job.written(batch) if not self._is_whole(self.job.names[i])]

    def _is_whole(self, name: str) -> bool:
        from PIL import Image

        channels, height, width = self.job.shape
        try:
            data = (self.path / f"{name}.png").read_bytes()
        except FileNotFoundError:
            return False
        try:
            with Image.open(io.BytesIO(data)) as image:
                kind = image.format, image.mode, image.size
                image.verify()  # checksums, but for that of the end
        except Exception:  # Pillow raises errors of many kinds for a damaged file
            return False
        mode = "L" if channels == 1 else "RGB"
        return data.endswith(_END) and kind == ("PNG", mode, (width, height))

    def file(self, i: int) -> Path:
        """Path of the image at position `i` of the job."""
        return self.path / f"{self.job.names[i]}.png"

    def pixels(self, i: int) -> np.ndarray:
        """The image at position `i` as it is in its file, uint8 `[C, H, W]`."""
        from PIL import Image

        with Image.open(self.file(i)) as image:
            found = np.asarray(image)
        return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)

    def warn_of_little_room(self, missing: int, copies: int) -> None:
        """Says so on standard error where the disk may not hold what is to be written."""
        needed = (missing * copies) * (int(np.prod(self.job.shape)) + 100)
        free = shutil.disk_usage(self.path).free
        if free < needed:
            print(
                f"sample: {self.path} has room for {free / 1e9:.1f} GB, and {missing} images may "
                f"take {needed / 1e9:.1f} GB; if it runs full, make room and repeat the command: "
                "it goes on where it stopped",
                file=sys.stderr,
            )

    def record(self, made_with: dict[str, Any] | None) -> None:
        """Write the manifest, with this job in it; one process at a time may.

        `made_with` is the environment in which images are made, None where none is.
        """
        with self.sentence(manifest.MANIFEST):
            before = manifest.of_folder(self.path)
            after = manifest.extended(before, self.job, made_with)
            if after != before:
                manifest.write(self.path, after)

    def write(self, i: int, image: np.ndarray) -> None:
        """Write the image at position `i`, uint8 `[C, H, W]`: whole, or not at all.

        Raises:
            OSError: in one sentence.
        """
        path = self.file(i)
        partial = path.with_name(f".{path.stem}.{os.getpid()}.png")
        with self.sentence(f"{self.job.names[i]}.png"):
            try:
                path.parent.mkdir(exist_ok=True)
                plots.to_image(image).save(partial)
                os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def sentence(self, name: str) -> Iterator[None]:
        """Turns the system's refusal to write the file `name` into a sentence."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"sample: {self.path / name} must be written, got {reason(error)}; "
                f"{remedy(error)}, then repeat the command: it goes on where it stopped"
            ) from error
