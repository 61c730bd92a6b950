"""`autoguide-fast report`: one HTML file about images, runs, evaluations and diagnoses."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically
from .arguments import check_output_file, positive_integer

if TYPE_CHECKING:
    from .reporting.blocks import Section

_DESCRIPTION = """\
Write one HTML file that needs nothing else, to be opened in a browser, sent, or kept: of images a
grid and their manifest, of a training run its curves, samples and options, of an evaluation its
metrics and protocol, of a diagnosis the guidance weight over the noise level.
"""

_EXAMPLES = """\
examples:
  # images: a folder, a ZIP file or an .npz
  autoguide-fast report images.zip --out report.html

  # a training run, its diagnosis, its samples and how they were judged, in one page
  autoguide-fast report runs/pair found.json weights.png images/ evaluation.json \\
      --out report.html
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `report` to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="write an HTML page about images, a run, an evaluation or a diagnosis",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="folder of a run or of images, ZIP file, .npz, JSON file that `evaluate`, `judge`, "
        "`diagnose` or `sample` wrote, or picture that `grid` drew; each becomes a section",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the HTML file to write")
    add("--title", default="autoguide_fast report", metavar="T", help="of the page")
    add(
        "--count",
        type=positive_integer,
        default=64,
        metavar="N",
        help="images in a grid, fewer where they are large (default: 64)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is; returns 0."""
    from .reporting.parts import section

    check_output_file(arguments.out, "report")
    text = page([section(path, arguments.count) for path in arguments.paths], arguments.title)
    write_atomically(arguments.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"{len(text) / 1e6:.1f} MB: {arguments.out}")
    return 0


def page(sections: list[Section], title: str) -> str:
    """The sections as an HTML page; whatever stands in them is text, not HTML."""
    from jinja2 import Environment, FileSystemLoader

    from .._extension import build_info

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        sections=sections,
        version=build_info()["version"],
        date=datetime.date.today().isoformat(),
    )
