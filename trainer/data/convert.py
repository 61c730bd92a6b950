"""Turns pictures of any kind into a dataset to train on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from .crops import TRANSFORMS
from .digest import digest
from .errors import BrokenFileError, UnsuitableError
from .outputs import Output, open_output
from .pictures import encode_png, holds_several, lay_over, open_picture
from .sources import LATENTS, Origin, Source, open_source
from .threads import map_ahead

Result = TypeVar("Result")

_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_SEVERAL = ("GIF", "PNG", "WEBP", "TIFF")  # formats whose further pictures are worth a word
WHITE = (255, 255, 255)


@dataclass
class Report:
    """What became of a source: `total` files, of which `written` are in the output.

    broken: those that could not be read. enlarged, transparent, animated: pictures of this run that
    were smaller than the target, had transparent pixels, and were the first of several. resumed:
    files that an earlier run had written. changed: whether some of them were made anew, since what
    they were made from has changed. notes: what else a user should be told.
    """

    total: int
    written: int = 0
    resumed: int = 0
    enlarged: int = 0
    transparent: int = 0
    animated: int = 0
    changed: bool = False
    notes: list[str] = field(default_factory=list)
    broken: list[BrokenFileError] = field(default_factory=list)


class Made(NamedTuple):
    """A picture as the content of a PNG file, what it was made from, and what was done to it."""

    data: bytes
    origin: Origin
    enlarged: bool
    transparent: bool
    animated: bool


def convert(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    resolution: tuple[int, int] | None = None,
    transform: str | None = None,
    channels: int = 3,
    workers: int = 1,
    progress: bool = False,
    background: tuple[int, int, int] = WHITE,
) -> Report:
    """Writes the pictures of `source` to `dest` as PNGs of one size, with their labels.

    File number i of the source becomes `NNNNN/imgNNNNNNNN.png` with that number; those that cannot
    be read are named on standard error, and left out. Interrupted, however it was, the
    conversion goes on where it stopped when it is repeated; what was made from files that have
    changed meanwhile is made anew. Pictures are turned as their EXIF data say; of several in one
    file, the first is taken.

    Args:
        source: see `sources.open_source`.
        dest: a folder, or a ZIP file if it ends in .zip; must not exist.
        resolution: (width, height) of the result; default: that of the source's first picture.
        transform: one of `crops.TRANSFORMS`; None for pictures that have the resolution already.
        channels: 3 for RGB, 1 for grey; pictures of the other kind are turned into it.
        workers: threads, >= 1.
        progress: show a bar.
        background: the colour, red, green and blue, over which transparent pixels are laid.

    Raises:
        ValueError: an argument is wrong, a picture has another resolution and there is no
            transform, no picture can be read, or the output cannot be written.
    """
    opened = open_source(source)
    if opened.names[0].lower().endswith(LATENTS):
        raise ValueError(
            f"dataset: source must hold pictures, got latents in {source}; they are ready to train "
            "on as they are"
        )
    _check(resolution, transform, channels)
    if resolution is None:
        index, first = first_readable(
            opened, lambda i: open_picture(opened.read(i), opened.where(i))
        )
        resolution = first.size
        if resolution[0] != resolution[1]:
            raise ValueError(
                f"dataset: pictures must be square, got {_by(resolution)} in "
                f"{opened.where(index)}; add --resolution and --transform center-crop"
            )
    report = Report(len(opened.names), notes=list(opened.notes))

    def make(index: int) -> Made | BrokenFileError:
        return _convert_one(opened, index, resolution, transform, channels, background)

    options = {
        "command": "convert",
        "files": fingerprint(opened),
        "resolution": _by(resolution),
        "transform": transform,
        "channels": channels,
        "background": "#" + bytes(background).hex(),
    }
    with open_output(source, dest, ".png", options, opened.unchanged) as output:
        todo = [i for i in range(report.total) if not output.has(i)]
        report.resumed, report.changed = report.total - len(todo), output.changed
        results = map_ahead(make, todo, workers, ahead=8 * workers)
        for index, made in show(todo, results, report, progress, "convert"):
            output.write(index, made.data, made.origin)
            report.enlarged += made.enlarged
            report.transparent += made.transparent
            report.animated += made.animated
        report.written = finish(output, opened, report)
    return report


def finish(output: Output, opened: Source, report: Report) -> int:
    """Finishes an output that holds something; returns the number of files in it."""
    if len(report.broken) == report.total:
        raise UnsuitableError(str(report.broken[0]))
    return output.finish(opened.labels, opened.classes, report.total)


def show(
    todo: list[int],
    results: Iterator[Result | BrokenFileError],
    report: Report,
    progress: bool,
    title: str,
) -> Iterator[tuple[int, Result]]:
    """Yields (index, result) under a bar; broken files are named there and put into the report."""
    from tqdm import tqdm

    with tqdm(
        total=report.total,
        initial=report.resumed,
        unit="img",
        desc=title,
        disable=not progress,
        file=sys.stderr,
        mininterval=0.5,
    ) as bar:
        for index, result in zip(todo, results, strict=True):
            if isinstance(result, BrokenFileError):
                name_broken(report, result)
                bar.set_postfix(broken=len(report.broken), refresh=False)
            else:
                yield index, result
            bar.update()


def name_broken(report: Report, error: BrokenFileError) -> None:
    """Says that a file is broken, and puts it into the report."""
    from tqdm import tqdm

    report.broken.append(error)
    tqdm.write(f"broken: {error.where}: {error.reason}", file=sys.stderr)


def first_readable(source: Source, read: Callable[[int], Result]) -> tuple[int, Result]:
    """Number i and `read(i)` of the first file that can be read.

    Raises:
        BrokenFileError: that of the first file, if there is none.
    """
    error: BrokenFileError | None = None
    for index in range(len(source.names)):
        try:
            return index, read(index)
        except BrokenFileError as broken:
            error = error or broken
    assert error is not None  # a source has files
    raise error


def fingerprint(source: Source) -> str:
    """Number of files and a checksum of their names, since these number the output."""
    names = "\n".join(source.names)
    return f"{len(source.names)} ({digest(names)})"


def _convert_one(
    source: Source,
    index: int,
    resolution: tuple[int, int],
    transform: str | None,
    channels: int,
    background: tuple[int, int, int],
) -> Made | BrokenFileError:
    """The picture as `Made`, or the error of a broken file."""
    where = source.where(index)
    try:
        data, origin = source.read_with_origin(index)
        image = first = open_picture(data, where)
        if image.mode not in _EIGHT_BITS:
            raise BrokenFileError(where, "a picture of 8 bits a channel", f"mode {image.mode}")
        if image.mode == "LAB":
            image = image.convert("RGB")  # Pillow knows no other way from there
        image, transparent = lay_over(image, background)
        image = image.convert(_MODES[channels])
        enlarged = image.width < resolution[0] or image.height < resolution[1]
        if transform is not None:
            image = TRANSFORMS[transform](image, *resolution)
        elif image.size != resolution:
            raise UnsuitableError(
                f"dataset: {where} must have the resolution {_by(resolution)}, got "
                f"{_by(image.size)}; add --transform center-crop, or leave the file out"
            )
        png = encode_png(image)
        # Last, since it may move on to the next one.
        animated = first.format in _SEVERAL and holds_several(first)
        return Made(png, origin, enlarged, transparent, animated)
    except UnsuitableError:
        raise
    except BrokenFileError as error:
        return error
    except Exception as error:  # one picture that a library cannot handle is one picture
        return BrokenFileError(where, "a picture that can be converted", error)


def _check(resolution: tuple[int, int] | None, transform: str | None, channels: int) -> None:
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
