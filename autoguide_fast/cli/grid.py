"""`autoguide-fast grid`: pictures to look at, of guidance weights, noise levels or images."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..files import write_atomically
from .arguments import check_output_file, integer_ranges, positive_integer, weight_or_file
from .sampled_grids import COLUMNS, Drawing, check_count, over_weights, trajectory

_DESCRIPTION = """\
Draw a labelled grid of images: the same seeds with several guidance weights, one weight a column;
with --trajectory, the way from noise to image, one noise level a column; or with --images, images
that are there already, as a contact sheet.
"""

_EXAMPLES = """\
examples:
  # what guidance does: one seed a row, one weight a column
  autoguide-fast grid --classes 0-4 --seeds 7 --guidance 1,1.5,2,3 --out weights.png

  # four seeds of one class of a published net
  autoguide-fast grid --model edm2-img512-s-autog-dino --classes 31 --seeds 0-3 \\
      --guidance 1,1.5,2,3 --out tree-frogs.png

  # how two images come about: what the guided net takes for the image, step by step
  autoguide-fast grid --trajectory denoised --guidance 1.5 --seeds 0,1 --at 0,8,16,20,24,28,32 \\
      --out trajectory.png

  # 100 of the images in a folder, a ZIP file or an .npz, drawn at random
  autoguide-fast grid --images images.zip --count 100 --out sheet.png
"""


def _weights(text: str) -> tuple[float | str, ...]:
    values = tuple(weight_or_file(part) for part in text.split(","))
    if not all(v if isinstance(v, str) else math.isfinite(v) for v in values):
        raise argparse.ArgumentTypeError(
            "must be numbers separated by commas, such as 1,1.5,2,3, or auto or files that "
            f"`diagnose` wrote among them, got {text!r}"
        )
    return values


_SAMPLED = {
    "model": "digits",
    "guide": None,
    "guidance": None,
    "seeds": range(4),
    "classes": None,
    "steps": 32,
    "trajectory": None,
    "at": None,
    "device": None,
    "accept_licence": False,
}
_THERE = {"images": None, "count": 64, "columns": 8}


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `grid` to the command line."""
    parser = subparsers.add_parser(
        "grid",
        help="draw images over guidance weights or noise levels, or a contact sheet",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that `run` knows what was given
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
    add = parser.add_argument_group("what is sampled").add_argument
    add(
        "--model",
        metavar="NET",
        help="a name, a preset or a file, as for `sample` (default: digits)",
    )
    add("--guide", metavar="NET", help="the net to guide away from (default: the model's own)")
    add(
        "--guidance",
        type=_weights,
        metavar="W,W",
        help="weights, one for each column, among them auto or a file, as for `sample` (default: "
        "1,1.5,2,3); with --trajectory, one (default: "
        "that of a preset, otherwise 1)",
    )
    add("--seeds", type=integer_ranges, help="such as 0-3 (default: 0-3)")
    add(
        "--classes",
        type=integer_ranges,
        help="such as 3 or 0-9; paired with the seeds, and the shorter of both lists is repeated: "
        "a pair is a row (default: each seed draws its class)",
    )
    add("--steps", type=positive_integer, metavar="N", help="of sampling (default: 32)")
    add(
        "--trajectory",
        choices=("denoised", "state"),
        help="one noise level a column instead: the denoised image there, or the noisy state, "
        "scaled to the contrast of the data",
    )
    add(
        "--at",
        type=integer_ranges,
        metavar="STEPS",
        help="after which steps the trajectory is shown, 0 for pure noise (default: "
        f"{COLUMNS} evenly spread)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add(
        "--accept-licence",
        action="store_true",
        help="agree to the licence of published weights, CC BY-NC-SA 4.0, and download them",
    )
    add = parser.add_argument_group("images that are there").add_argument
    add("--images", type=Path, metavar="PATH", help="a folder, a ZIP file or an .npz")
    add(
        "--count",
        type=positive_integer,
        metavar="N",
        help="of images, drawn at random, always the same (default: 64)",
    )
    add("--columns", type=positive_integer, metavar="N", help="images in a row (default: 8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture and say where it is; returns 0."""
    from PIL import PngImagePlugin

    check_output_file(arguments.out, "grid")
    there = hasattr(arguments, "images")
    for name in _SAMPLED if there else _THERE:
        if hasattr(arguments, name):
            raise ValueError(
                f"grid: --{name.replace('_', '-')} must come {'without' if there else 'with'} "
                "--images, got it otherwise; leave it out"
            )
    arguments = argparse.Namespace(**(_SAMPLED | _THERE | vars(arguments)))
    if arguments.images is not None:
        drawing = contact_sheet(arguments.images, arguments.count, arguments.columns)
    elif arguments.trajectory is not None:
        drawing = trajectory(arguments)
    else:
        drawing = over_weights(arguments)
    information = PngImagePlugin.PngInfo()
    information.add_itxt("Description", drawing.description)  # which `report` reads out
    write_atomically(
        arguments.out, lambda path: drawing.picture.save(path, "PNG", pnginfo=information)
    )
    print(f"{drawing.about}: {arguments.out}")
    return 0


def contact_sheet(path: Path, count: int, columns: int) -> Drawing:
    """A picture of images that are there, with the name of the first of each row.

    Raises:
        ValueError: there are none, or they differ in size.
    """
    from .. import plots
    from .pictures import open_pictures

    check_count(count)
    with open_pictures(path, "grid") as pictures:
        numbers = pictures.some(count)
        images = pictures.stacked(numbers, "grid")
        columns = min(columns, len(numbers))
        firsts = [Path(pictures.names[i]).stem for i in numbers[::columns]]
        total = len(pictures.names)
    picture = plots.labelled_grid(images, firsts, [""] * columns)
    about = f"{len(numbers)} of {total} images in {path}"
    return Drawing(picture, about, f"Contact sheet of {about}.")
