"""`autoguide-fast convert`: a snapshot of the reference implementation as a safetensors file."""

from __future__ import annotations

import argparse
from pathlib import Path

_EXAMPLES = """\
examples:
  autoguide-fast convert edm2-img512-s-2147483-0.070.pkl s.safetensors
  autoguide-fast sample --model s.safetensors --seeds 0-15 --out images/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `convert` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="turn a .pkl of the reference implementation into a .safetensors file",
        description="Write a network snapshot of the reference implementation as a safetensors\n"
        "file. The snapshot is read as data: no code in it runs. Weights keep their type; the\n"
        "encoder, training facts and the hash of the snapshot are kept beside them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SNAPSHOT", help="the .pkl file")
    parser.add_argument("path", type=Path, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Convert the file; returns 0."""
    from .. import checkpoints

    checkpoints.convert(arguments.source, arguments.path, progress=not arguments.quiet)
    header = checkpoints.read_header(arguments.path, "convert")
    size = arguments.path.stat().st_size / 1e6
    config = header["config"]
    classes = f"{config['label_dim']} classes" if config["label_dim"] else "no labels"
    print(
        f"{arguments.path}: {size:.1f} MB, {config['img_channels']} channels of "
        f"{config['img_resolution']}x{config['img_resolution']}, {classes}, encoder "
        f"{header['encoder'] or 'none'}, from {header['converted_from']['sha256'][:16]}..."
    )
    return 0
