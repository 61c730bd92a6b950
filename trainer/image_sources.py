"""Images to be measured: in files, in an array, or as they come from the sampler."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .data.datasets import BUNDLED, FilesData, open_bundled
from .data.sources import open_source
from .data.threads import available_cores, map_ahead

Images = tuple[torch.Tensor, np.ndarray | None]  # uint8 [n, C, H, W] and classes [n], or None

# As `autoguide-fast sample` names images, and what it writes besides.
_SAMPLED = re.compile(r"(?:.*/)?\d{6,}(?:-class(\d+))?\.png")
_BESIDES = ("grid.png",)
MANIFEST = "manifest.json"  # that `sample` writes beside images, or into the file
_SETTINGS = ("settings.json", MANIFEST)


class ImageSource(Protocol):
    """Images by their number.

    count: how many. labelled: whether they have classes.
    """

    count: int
    labelled: bool

    def parts(self, ranges: Iterable[range]) -> Iterator[Images]:
        """The images of each range in turn; those that follow may be read ahead."""
        ...

    def about(self) -> dict:
        """What a protocol says of them."""
        ...

    def state(self) -> str | None:
        """What changes when files are written to; None where `about` says all."""
        ...


class FileImages:
    """Images of one size in a folder or ZIP file, or those of a bundled dataset.

    Of a folder of `autoguide-fast sample` its grid is left out, and classes are read from names.

    Args:
        path: a folder, a ZIP file, or one of `BUNDLED`.
        split: of what is bundled.
        workers: threads that decode.

    Raises:
        ValueError: there is no such thing, or it holds latents.
    """

    def __init__(self, path: str, split: str = "train", workers: int | None = None) -> None:
        self._workers = workers or available_cores()
        self._path = path
        self._settings: dict | None = None
        self._split = split if path in BUNDLED else None
        if path in BUNDLED:
            self._data: Any = open_bundled(path, split)
            labels = self._data.labels
        else:
            source = open_source(path)
            chosen = [
                i for i, name in enumerate(source.names) if name.rpartition("/")[2] not in _BESIDES
            ]
            names = [source.names[i] for i in chosen]
            matches = [_SAMPLED.fullmatch(name) for name in names]
            labels = None if source.labels is None else source.labels[chosen]
            if names and all(matches) and not _listed(source.kind):
                classes = [match[1] for match in matches if match]
                labels = np.array(classes, np.int64) if all(classes) else None
            if not names:
                raise ValueError(
                    f"evaluate: --images must hold images, got none in {path}; name the folder "
                    "that has them"
                )
            self._settings = _settings_beside(Path(path))
            source = dataclasses.replace(source, names=names, labels=labels)
            self._data = FilesData(source, Path(path).name)
        if self._data.encoder_name != "pixels":
            raise ValueError(
                f"evaluate: --images must be pictures, got {path} with latents; decode them first"
            )
        self.count, self.labelled = len(self._data), labels is not None

    def parts(self, ranges: Iterable[range]) -> Iterator[Images]:
        """Images and classes of each range, decoded ahead by threads."""

        def read(chosen: range) -> Images:
            images, labels = self._data.batch(np.array(chosen))
            return torch.from_numpy(images), labels

        return map_ahead(read, ranges, self._workers, 2 * self._workers)

    def state(self) -> str | None:
        """A checksum of the files' stamps, or of what the archive's table of contents says."""
        stamp = self._data.stamp() if hasattr(self._data, "stamp") else None
        return stamp or self._data.digest()

    def about(self) -> dict:
        """Name, number, size and the settings that `sample` left beside them."""
        found: dict[str, Any] = {
            "source": self._path if self._path in BUNDLED else Path(self._path).name,
            "rounding": "uint8, as in the files",
            "size": [self._data.channels, self._data.resolution, self._data.resolution],
        }
        if self._split:
            found["split"] = self._split
        if self._settings is not None:
            found["sampled_with"] = self._settings
        return found


class ArrayImages:
    """The images of an `.npz` file, `arr_0` uint8 `[N, H, W, C]` as ADM's evaluator takes them.

    Read piece by piece; `arr_1`, if there, are their classes.

    Args:
        path: the file.

    Raises:
        ValueError: it is damaged, or holds no such array.
    """

    labelled = False

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._labels: np.ndarray | None = None
        self._settings: dict | None = None
        try:
            with zipfile.ZipFile(self.path) as archive:
                with archive.open("arr_0.npy") as file:
                    self.shape, self.dtype = _header(file)
                if MANIFEST in archive.namelist():  # by `sample`
                    self._settings = json.loads(archive.read(MANIFEST))
            with np.load(self.path, allow_pickle=False) as arrays:
                if "arr_1" in arrays.files and arrays["arr_1"].shape == self.shape[:1]:
                    self._labels = arrays["arr_1"].astype(np.int64)
                    self.labelled = True
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"evaluate: --images must be a whole .npz file with images in arr_0, got "
                f"{self.path} ({' '.join(str(error).split())}); make or copy it again"
            ) from None
        if self.dtype != np.uint8 or len(self.shape) != 4 or self.shape[3] not in (1, 3):
            raise ValueError(
                f"evaluate: --images must hold arr_0 uint8 [N, H, W, 1 or 3], got {self.path} with "
                f"{self.dtype} {list(self.shape)}; write what ADM's evaluator takes"
            )
        self.count = self.shape[0]
        # `sample` repeats the channel of grey images, since ADM's evaluator wants three.
        self.channels = (self._settings or {}).get("images", {}).get("channels", self.shape[3])

    def parts(self, ranges: Iterable[range]) -> Iterator[Images]:
        """Images and classes of each range; ranges must ascend."""
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            place, size = 0, int(np.prod(self.shape[1:]))
            for chosen in ranges:
                _skip(file, (chosen.start - place) * size)
                data = file.read(len(chosen) * size)
                if len(data) < len(chosen) * size:
                    raise ValueError(
                        f"evaluate: --images must be a whole .npz file, got {self.path}, cut short "
                        "in arr_0; make or copy it again"
                    )
                place = chosen.stop
                images = np.frombuffer(data, np.uint8).reshape(len(chosen), *self.shape[1:])
                images = images[..., : self.channels]
                labels = None if self._labels is None else self._labels[chosen.start : chosen.stop]
                yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels

    def state(self) -> str | None:
        """Size and time of change."""
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def about(self) -> dict:
        """Name, size and the settings that `sample` left in it."""
        found: dict[str, Any] = {
            "source": self.path.name,
            "rounding": "uint8, as in the file",
            "size": [self.channels, *self.shape[1:3]],
        }
        if self._settings is not None:
            found["sampled_with"] = self._settings
        return found


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: what `autoguide_fast.sample` is called with, and the batch."""

    options: dict[str, Any]
    batch_size: int


class SampledImages:
    """Images as the sampler makes them, each by its seed; nothing is written.

    Args:
        sampling: how.
        seeds: one for each image.
        labels: classes, or None where each seed draws its own or the net has none.
        rule: how classes were chosen, in words.
        draw_labels: find out which classes the seeds draw, where they do.
        about: of nets and sampler, for a protocol.
    """

    def __init__(
        self,
        sampling: Sampling,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        rule: str,
        draw_labels: Callable[[Sequence[int]], np.ndarray] | None,
        about: dict,
    ) -> None:
        self._sampling, self._seeds, self._labels = sampling, seeds, labels
        self._rule, self._draw, self._about = rule, draw_labels, about
        self.count = len(seeds)
        self.labelled = labels is not None or draw_labels is not None
        self._size: list[int] | None = None

    def parts(self, ranges: Iterable[range]) -> Iterator[Images]:
        """Images and classes of each range. Ranges of whole batches give the same as all at once.

        They are on the device where they were made.
        """
        from autoguide_fast import sample

        for chosen in ranges:
            seeds = self._seeds[chosen.start : chosen.stop]
            labels = None
            if self._labels is not None:
                labels = list(self._labels[chosen.start : chosen.stop])
            made: list[torch.Tensor] = []
            sample(
                **self._sampling.options,
                class_labels=labels,
                seeds=seeds,
                batch_size=self._sampling.batch_size,
                on_batch=lambda indices, images: made.append(images),  # noqa: B023, called here
            )
            images = torch.cat(made)
            if images.dtype != torch.uint8:
                raise ValueError(
                    "evaluate: --model must have an encoder that makes images of its samples, got "
                    "one without; set net.encoder and save it again"
                )
            classes: np.ndarray | None = None
            if labels is not None:
                classes = np.array(labels, np.int64)
            elif self._draw is not None:
                classes = self._draw(seeds)
            yield images, classes

    def state(self) -> str | None:
        """None: seeds, nets and options are all there is."""
        return None

    def about(self) -> dict:
        """Seeds, how classes came about; nets, sampler and rounding, as given."""
        return {
            "source": "sampled",
            "seeds": as_ranges(self._seeds),
            "labels": self._rule,
            **self._about,
        }


def open_images(path: str, split: str = "train") -> FileImages | ArrayImages:
    """The images in a folder, a ZIP file, an `.npz` file, or of a bundled dataset."""
    if path not in BUNDLED and path.lower().endswith(".npz"):
        return ArrayImages(path)
    return FileImages(path, split)


def as_ranges(seeds: Sequence[int]) -> str:
    """Seeds as the command line takes them: `0-49999`, `0-9,20`."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    shown = [f"{a}-{b}" if b > a else f"{a}" for a, b in parts[:20]]
    return ",".join(shown) + (f" and {len(parts) - 20} ranges more" if len(parts) > 20 else "")


def _listed(kind: str) -> bool:
    """Whether classes are listed in a file, which counts before names."""
    return "dataset.json" in kind


def _settings_beside(path: Path) -> dict | None:
    """What `autoguide-fast sample` wrote of the images in a folder or a ZIP file, or None."""
    for name in _SETTINGS:
        try:
            if path.is_dir():
                found = json.loads((path / name).read_bytes())
            else:
                with zipfile.ZipFile(path) as archive:
                    found = json.loads(archive.read(name))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            continue
        if isinstance(found, dict):
            return found
    return None


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that a file begins with; raises ValueError for another file."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"an array of the format {version}")
    shape, fortran, dtype = read(file)
    if fortran:
        raise ValueError("an array whose columns come first")
    return shape, dtype


def _skip(file: Any, count: int) -> None:
    """Move a file on by some bytes."""
    if count < 0:
        raise AssertionError("ranges must ascend")
    for _ in range(math.ceil(count / (1 << 24))):
        file.read(min(count, 1 << 24))
        count -= 1 << 24
