"""Turns pictures of any kind into a dataset to train on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .crops import TRANSFORMS
from .errors import BrokenFileError
from .outputs import open_output
from .pictures import encode_png, open_picture
from .sources import LATENTS, Source, open_source
from .threads import map_ahead

_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass
class Report:
    """What became of a source: `total` files, of which `written` are in the output.

    broken: those that could not be read. enlarged: pictures smaller than the target in this run.
    resumed: files that an earlier run had written.
    """

    total: int
    written: int = 0
    resumed: int = 0
    enlarged: int = 0
    broken: list[BrokenFileError] = field(default_factory=list)


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    resolution: tuple[int, int] | None = None,
    transform: str | None = None,
    channels: int = 3,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Writes the pictures of `source` to `dest` as PNGs of one size, with their labels.

    File number i of the source becomes `NNNNN/imgNNNNNNNN.png` with that number; those that cannot
    be read are named on standard error, and left out. Interrupted, however it was, the
    conversion goes on where it stopped when it is repeated.

    Args:
        source: see `sources.open_source`.
        dest: a folder, or a ZIP file if it ends in .zip; must not exist.
        resolution: (width, height) of the result; default: that of the source's first picture.
        transform: one of `crops.TRANSFORMS`; None for pictures that have the resolution already.
        channels: 3 for RGB, 1 for grey; pictures of the other kind are turned into it.
        workers: threads, >= 1.
        progress: show a bar.

    Raises:
        ValueError: an argument is wrong, a picture has another resolution and there is no
            transform, no picture can be read, or the output cannot be written.
    """
    opened = open_source(source)
    if opened.names[0].endswith(LATENTS):
        raise ValueError(
            f"dataset: source must hold pictures, got latents in {source}; they are ready to train "
            "on as they are"
        )
    _check(resolution, transform, channels)
    if resolution is None:
        first = first_readable(opened, lambda i: open_picture(opened.read(i), opened.where(i)))
        resolution = first.size
        if resolution[0] != resolution[1]:
            raise ValueError(
                f"dataset: pictures must be square, got {_by(resolution)} in {opened.where(0)}; "
                "add --resolution and --transform center-crop"
            )
    report = Report(len(opened.names))

    def make(index: int):
        return _convert_one(opened, index, resolution, transform, channels)

    options = {"command": "convert", "files": fingerprint(opened), "resolution": _by(resolution),
               "transform": transform, "channels": channels}  # fmt: skip
    with open_output(source, dest, ".png", options) as output:
        todo = [i for i in range(report.total) if not output.has(i)]
        report.resumed = report.total - len(todo)
        results = map_ahead(make, todo, workers, ahead=8 * workers)
        for index, (data, enlarged) in show(todo, results, report, progress, "convert"):
            output.write(index, data)
            report.enlarged += enlarged
        report.written = finish(output, opened, report)
    return report


def finish(output, opened: Source, report: Report) -> int:
    """Finishes an output that holds something; returns the number of files in it."""
    if len(report.broken) == report.total:
        raise report.broken[0]
    return output.finish(opened.labels, opened.classes, report.total)


def show(
    todo: list[int], results: Iterator, report: Report, progress: bool, title: str
) -> Iterator[tuple[int, object]]:
    """Yields (index, result) under a bar; broken files are named there and put into the report."""
    from tqdm import tqdm

    with tqdm(
        total=report.total, initial=report.resumed, unit="img", desc=title, disable=not progress,
        file=sys.stderr, mininterval=0.5,
    ) as bar:  # fmt: skip
        for index, result in zip(todo, results, strict=True):
            if isinstance(result, BrokenFileError):
                report.broken.append(result)
                tqdm.write(f"broken: {result.where}: {result.reason}", file=sys.stderr)
                bar.set_postfix(broken=len(report.broken), refresh=False)
            else:
                yield index, result
            bar.update()


def first_readable(source: Source, read: Callable[[int], object]):
    """`read(i)` of the first file that can be read.

    Raises:
        BrokenFileError: that of the first file, if there is none.
    """
    error = None
    for index in range(len(source.names)):
        try:
            return read(index)
        except BrokenFileError as broken:
            error = error or broken
    raise error


def fingerprint(source: Source) -> str:
    """Number of files and a checksum of their names, since these number the output."""
    names = hashlib.sha256("\n".join(source.names).encode()).hexdigest()
    return f"{len(source.names)} ({names[:16]})"


def _convert_one(source: Source, index: int, resolution, transform, channels):
    """(PNG, whether the picture was smaller), or the error of a broken file."""
    where = source.where(index)
    try:
        image = open_picture(source.read(index), where)
        if image.mode not in _EIGHT_BITS:
            raise BrokenFileError(where, "a picture of 8 bits a channel", f"mode {image.mode}")
        image = image.convert(_MODES[channels])
    except BrokenFileError as error:
        return error
    enlarged = image.width < resolution[0] or image.height < resolution[1]
    if transform is not None:
        image = TRANSFORMS[transform](image, *resolution)
    elif image.size != resolution:
        raise ValueError(
            f"dataset: {where} must have the resolution {_by(resolution)}, got {_by(image.size)}; "
            "add --transform center-crop, or leave the file out"
        )
    return encode_png(image), enlarged


def _check(resolution, transform, channels) -> None:
    if channels not in _MODES:
        raise ValueError(f"dataset: channels must be 1 or 3, got {channels}; 3 is RGB, 1 is grey")
    if transform is None:
        return
    if transform not in TRANSFORMS:
        raise ValueError(
            f"dataset: transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}; pick "
            "one"
        )
    if resolution is None:
        raise ValueError(
            f"dataset: resolution must be given with a transform, got none with {transform}; add "
            "--resolution, such as 64x64"
        )
    wide = transform == "center-crop-wide"
    if not (resolution[0] > resolution[1] if wide else resolution[0] == resolution[1]):
        raise ValueError(
            f"dataset: resolution must be {'wider than high' if wide else 'square'} for "
            f"{transform}, got {_by(resolution)}; nets train on squares"
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
