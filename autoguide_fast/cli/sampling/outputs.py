"""What becomes of a folder of images that is complete: a grid beside them, or a file of them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ... import plots
from ...files import publish, reason, remedy, write_atomically
from . import archives, manifest
from .image_folder import ImageFolder
from .job import Job, changes

GRID = "grid.png"
GRID_LIMIT = 1024  # more images in one picture serve nobody
_GRID_SIDE = 4096  # pixels, if there are images enough
_WORK = ".partial"


def open_output(out: Path, job: Job) -> FolderOutput | FileOutput:
    """The output that `--out` names: a .zip or .npz file, or else a folder."""
    write = archives.WRITERS.get(out.suffix.lower())
    if write is None:
        return FolderOutput(out, job)
    if out.is_dir():
        raise ValueError(
            f"sample: --out must be a file where it ends in {out.suffix}, got the folder {out}; "
            "choose another name"
        )
    return FileOutput(out, job, write)


def grid_count(shape: tuple[int, int, int]) -> int:
    """How many images of a shape (channels, height, width) a grid shows at most."""
    return max(1, min(GRID_LIMIT, (_GRID_SIDE // max(shape)) ** 2))


class FolderOutput:
    """A folder of images with a grid of the first of them.

    out: as the user named it. folder: where the images are collected. copies: of all images that
    the disk must hold at some time. complete: whether all was there, and nothing is to be done.
    """

    copies = 1

    def __init__(self, out: Path, job: Job) -> None:
        self.out, self.job, self.complete = out, job, False
        self.folder = ImageFolder(out, job)

    def begin(self) -> None:
        """Look at what an earlier job has left, while no other process is there."""
        self.folder.begin()

    def finish(self) -> None:
        """Write what needs all images; one process does."""
        from PIL import Image

        images = [self.folder.pixels(i) for i in self.job.first[: grid_count(self.job.shape)]]
        grid: Image.Image = plots.image_grid(np.stack(images))
        with self.folder.sentence(GRID):
            write_atomically(self.out / GRID, grid.save)

    def end(self) -> None:
        """Called by the last process, as it leaves."""

    def __str__(self) -> str:
        return f"{len(self.job.first)} files and {GRID} in {self.out}"


class FileOutput:
    """A file of the images, which are collected in a folder beside it; see `FolderOutput`."""

    copies = 2

    def __init__(self, out: Path, job: Job, write: archives.Writer) -> None:
        self.out, self.job, self.complete = out, job, False
        self._write = write
        self.folder = ImageFolder(out.with_name(out.name + _WORK), job)

    def begin(self) -> None:
        """Look at what an earlier job has left, while no other process is there.

        Raises:
            ValueError: a file is there that is not whole, or of another job.
        """
        if self.out.exists():
            self._check_file()
            self.complete = True
        else:
            self.folder.begin(only=True)

    def _check_file(self) -> None:
        found = manifest.of_file(self.out)
        wrong = None
        if found is None:
            wrong = "a file that `sample` did not write, or a damaged one"
        else:
            changed = changes(found["settings"], self.job.settings)
            if changed:
                wrong = f"changes: {', '.join(changed)}"
            elif all(manifest.asked_otherwise(each, self.job.request) for each in found["jobs"]):
                wrong = "other seeds, classes or batches in it"
            elif (damaged := archives.damaged(self.out)) is not None:
                wrong = f"damage in its part {damaged}"
        if wrong is not None:
            raise ValueError(
                f"sample: --out must be a new file, or one of the same job, got {self.out} with "
                f"{wrong}; remove it, or choose another --out"
            )

    def finish(self) -> None:
        """Write the file, which appears whole; one process does."""
        found = manifest.of_folder(self.folder.path)
        assert found is not None  # it was written before the first image
        # In the folder, and so gone with it if this process is killed.
        partial = self.folder.path / f".file{self.out.suffix}"
        with self._sentence():
            try:
                self._write(partial, self.folder, manifest.shown(found))
                publish(partial, self.out)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise

    def end(self) -> None:
        """Remove the folder once the file is there."""
        if self.out.is_file():
            shutil.rmtree(self.folder.path, ignore_errors=True)

    @contextlib.contextmanager
    def _sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"sample: {self.out} must be written, got {reason(error)}; {remedy(error)}, then "
                "repeat the command: its images are kept"
            ) from error

    def __str__(self) -> str:
        return f"{len(self.job.first)} images in {self.out}"
