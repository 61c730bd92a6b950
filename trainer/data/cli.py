"""`autoguide-fast dataset`: convert pictures, encode them as latents, look at what there is."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from autoguide_fast.cli.arguments import positive_integer
from autoguide_fast.encoders import STABILITY_VAE

from .convert import WHITE, Report
from .crops import TRANSFORMS
from .errors import printable
from .threads import available_cores

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

_SOURCES = """\
SOURCE is a folder or a ZIP file of images: with dataset.json, which holds
{"labels": [[file name, class], ...]}; or with a folder for each class, in the order of their names,
or of the numbers that they are; or without labels. Folders around all of it do not matter. It may
also be a dataset that Hugging Face's `datasets` saved to disk.
"""

_CONVERT = f"""\
Make pictures of any kind and size into a dataset to train on: PNGs of one size, and dataset.json
with their labels. Pictures are turned as their EXIF data say, and of several in one file the first
is taken; those that cannot be read are named, counted and left out. An interrupted conversion goes
on when the command is repeated; what was made from files that have changed is made anew.

{_SOURCES}"""

_TRANSFORMS = """\
transforms:
  center-crop           the largest centred square, resized (Lanczos)
  center-crop-wide      the largest centred part of a wide shape, such as 64x36, resized (Lanczos),
                        between black bars that make it a square of the width
  center-crop-dhariwal  ADM's centre crop, with which the published ImageNet nets were trained:
                        halved (box) while it can be, resized (bicubic), cut out
  stretch               the whole picture, resized to a square (Lanczos)

"""

_CONVERT_EXAMPLES = """\
examples:
  # a folder for each class, as ADM and EDM2 prepare ImageNet at 64x64
  autoguide-fast dataset convert imagenet/train img64.zip --resolution 64x64 \\
      --transform center-crop-dhariwal

  # pictures that have the right size already
  autoguide-fast dataset convert pictures/ data.zip
"""

_ENCODE = f"""\
Encode RGB images as latents of the Stability VAE: one NPY file each, float32 [8, H/8, W/8] with
the mean of 4 channels and their standard deviation, and dataset.json with the labels. Needs the
package diffusers: pip install 'autoguide_fast[vae]'. An interrupted run goes on when the command
is repeated.

{_SOURCES}"""

_ENCODE_EXAMPLES = """\
examples:
  autoguide-fast dataset convert imagenet/train img512.zip --resolution 512x512 \\
      --transform center-crop-dhariwal
  autoguide-fast dataset encode img512.zip img512-latents.zip --device cuda --batch-size 16
"""

_INFO_EXAMPLES = """\
examples:
  autoguide-fast dataset info img64.zip
  autoguide-fast dataset info photos --json
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `dataset` to the command line."""
    dataset = subparsers.add_parser(
        "dataset", help="prepare and inspect training data", description="Prepare training data."
    )
    commands = dataset.add_subparsers(metavar="WHAT", dest="what", required=True)
    add = _command(
        commands,
        "convert",
        "pictures to a dataset of one size",
        _CONVERT,
        _TRANSFORMS + _CONVERT_EXAMPLES,
        run_convert,
    )
    add("dest", type=Path, metavar="DEST", help="folder to make, or ZIP file if it ends in .zip")
    add(
        "--resolution",
        type=_resolution,
        metavar="WxH",
        help="of the result, such as 64x64 (default: that of the first picture)",
    )
    add(
        "--transform",
        choices=list(TRANSFORMS),
        metavar="T",
        help="how pictures of another size become this one, see below (default: they are an error)",
    )
    add("--channels", type=int, choices=(1, 3), default=3, help="3: RGB, 1: grey (default: 3)")
    add(
        "--background",
        type=_colour,
        default=WHITE,
        metavar="COLOUR",
        help="over which transparent pixels are laid, a name or #rrggbb (default: white)",
    )
    _add_running(add)
    add = _command(
        commands,
        "encode",
        "images to latents of the Stability VAE",
        _ENCODE,
        _ENCODE_EXAMPLES,
        run_encode,
    )
    add("dest", type=Path, metavar="DEST", help="folder to make, or ZIP file if it ends in .zip")
    add(
        "--vae",
        default=STABILITY_VAE,
        metavar="V",
        help=f"name or folder of an AutoencoderKL for diffusers to load (default: {STABILITY_VAE})",
    )
    add(
        "--batch-size",
        type=positive_integer,
        default=8,
        metavar="N",
        help="images at a time: speed and memory (default: 8)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    _add_running(add)
    add = _command(
        commands,
        "info",
        "what a dataset holds, and what is broken in it",
        "Read every file once and say what there is.\n\n"
        + _SOURCES
        + "Or one of the bundled datasets, digits, photos and mnist.\n",
        _INFO_EXAMPLES,
        run_info,
    )
    add("--json", action="store_true", help="for programs")
    _add_running(add)


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    text: str,
    description: str,
    epilog: str,
    run: Callable[[argparse.Namespace], int | None],
) -> Callable[..., argparse.Action]:
    parser = commands.add_parser(
        name,
        help=text,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="see above")
    parser.set_defaults(run=run)
    return parser.add_argument


def _add_running(add: Callable[..., argparse.Action]) -> None:
    cores = available_cores()
    add(
        "--workers",
        type=positive_integer,
        default=cores,
        metavar="N",
        help=f"threads that read images (default: {cores}, the cores here)",
    )
    add("--quiet", action="store_true", help="no progress bar")


def _resolution(text: str) -> tuple[int, int]:
    """Parse `64x64` to (64, 64)."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT such as 64x64, got {text!r}")
    return int(match[1]), int(match[2])


def _colour(text: str) -> tuple[int, int, int]:
    """Parse `white` or `#ffffff` to (255, 255, 255)."""
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        raise argparse.ArgumentTypeError(
            f"must be a colour such as white, black or #808080, got {text!r}"
        )
    return colour


def run_convert(arguments: argparse.Namespace) -> int:
    """Converts, and says what came of it."""
    from .convert import convert

    return _finish(
        arguments,
        lambda: convert(
            arguments.source,
            arguments.dest,
            arguments.resolution,
            arguments.transform,
            arguments.channels,
            arguments.workers,
            not arguments.quiet,
            arguments.background,
        ),
    )


def run_encode(arguments: argparse.Namespace) -> int:
    """Encodes, and says what came of it."""
    import torch

    from .encode import encode

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return _finish(
        arguments,
        lambda: encode(
            arguments.source,
            arguments.dest,
            arguments.vae,
            arguments.batch_size,
            device,
            arguments.workers,
            not arguments.quiet,
        ),
    )


def _finish(arguments: argparse.Namespace, work: Callable[[], Report]) -> int:
    try:
        report = work()
    except KeyboardInterrupt:
        print(
            f"\nautoguide-fast dataset {arguments.what}: interrupted; repeat the command to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    counts = [f"{report.written} of {report.total} images are in {arguments.dest}"]
    if report.resumed:
        counts.append(f"{report.resumed} of them from before")
    if report.enlarged:
        counts.append(f"{report.enlarged} were smaller and have been enlarged")
    if report.transparent:
        colour = "#" + bytes(arguments.background).hex()
        counts.append(f"{report.transparent} had transparent pixels, laid over {colour}")
    if report.animated:
        counts.append(f"{report.animated} hold several pictures, the first was taken")
    if report.changed:
        counts.append("what was made from files that have changed since was made anew")
    if report.broken:
        counts.append(f"{len(report.broken)} broken, named above")
    print(printable("; ".join(counts)))
    return 0


def run_info(arguments: argparse.Namespace) -> None:
    """Describes a dataset."""
    from .info import as_text, describe

    info = describe(arguments.source, arguments.workers, not arguments.quiet)
    for note in info["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(info, indent=1) if arguments.json else printable(as_text(info)))
