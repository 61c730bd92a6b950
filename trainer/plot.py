"""`autoguide-fast plot`: the curves of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.cli.arguments import check_output_file
from autoguide_fast.files import write_atomically
from autoguide_fast.plots import CURVES, training_curve

_EXAMPLES = """\
examples:
  autoguide-fast plot runs/pair
  autoguide-fast plot runs/pair --out curves.png
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `plot` to the command line."""
    parser = subparsers.add_parser(
        "plot",
        help="draw the curves of a training run",
        description="Draws loss, learning rate, norm of the gradients and images per second of a "
        "run, main net and guide, over the images that they have seen.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="folder that `train` wrote")
    add("--out", type=Path, metavar="FILE", help="picture to write (default: RUN/curves.png)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draws and says where."""
    check_output_file(arguments.out, "plot")
    path = arguments.out or arguments.folder / "curves.png"
    rows = read_log(arguments.folder)
    draw(rows, path)
    for net in dict.fromkeys(row["net"] for row in rows):
        last = [row for row in rows if row["net"] == net][-1]
        loss = "not finite" if last.get("loss") is None else f"{last['loss']:.4g}"
        print(f"{net}: loss {loss} at {last['nimg']} images")
    print(path)


def draw(rows: list[dict], path: Path) -> None:
    """Writes the picture.

    Args:
        rows: lines of a log, see `RunLog`.
        path: with the ending of a kind of picture that Matplotlib can write.

    Raises:
        ValueError: no line is there yet, or Matplotlib does not know the ending.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("plot: run must have logged something, got an empty log; train longer")
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(2, 2).flat, CURVES, strict=True):
        training_curve(axes, rows, name)
    kind = path.suffix[1:] or "png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110, format=kind))
