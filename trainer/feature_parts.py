"""Features of images that were measured, kept beside the output until all of them are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autoguide_fast.files import reason, remedy, write_atomically

_NAME = re.compile(r"([0-9a-f]{16})-(\d+)-(\d+)\.npz")


class Part(NamedTuple):
    """Some images' features by the detector's name, their classes or None, and their checksum."""

    features: dict[str, np.ndarray]
    labels: np.ndarray | None
    digest: str


class FeatureParts:
    """A folder of parts, each a range of images; several processes may write to it.

    A part counts if it is whole (the archive's checksums say so) and was made of the same images
    by the same networks, which `about` tells.

    Args:
        folder: made when the first part is stored.
        about: all that features depend on, as JSON holds it.
        command: which messages name.
    """

    def __init__(self, folder: Path, about: dict, command: str = "evaluate") -> None:
        self.folder, self._command = folder, command
        self._key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def load(self, chosen: range) -> Part | None:
        """The part of a range of images, or None where it is not there or not whole."""
        try:
            with np.load(self._path(chosen), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            digest, labels = str(found.pop("digest")), found.pop("labels", None)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        features = {name.removeprefix("features/"): values for name, values in found.items()}
        if any(values.ndim != 2 or len(values) != len(chosen) for values in features.values()):
            return None
        return Part(features, labels, digest)

    def store(self, chosen: range, part: Part) -> None:
        """Keep a part; it appears whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        arrays = {f"features/{name}": values for name, values in part.features.items()}
        arrays["digest"] = np.array(part.digest)
        if part.labels is not None:
            arrays["labels"] = part.labels

        def write(partial: Path) -> None:
            with open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(self._path(chosen), write)
        except OSError as error:
            raise OSError(
                f"{self._command}: {self.folder} must be a folder that can be written, got "
                f"{reason(error)}; {remedy(error)}, then repeat the command: it goes on where it "
                "stopped"
            ) from error

    def remove(self) -> None:
        """Remove the parts of this measurement, and the folder if nothing else is in it."""
        for path in self.folder.glob("*.npz"):
            match = _NAME.fullmatch(path.name)
            if match and match[1] == self._key:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, chosen: range) -> Path:
        return self.folder / f"{self._key}-{chosen.start}-{chosen.stop}.npz"


def room_needed(folder: Path, images: int, width: int) -> str | None:
    """A sentence where the disk may not hold the features of so many images, else None."""
    needed, free = 4 * images * width, shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return (
        f"evaluate: {folder} has room for {free / 1e9:.1f} GB, and the features that are kept "
        f"meanwhile may take {needed / 1e9:.1f} GB; if it runs full, make room and repeat the "
        "command"
    )
