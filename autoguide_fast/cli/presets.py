"""`autoguide-fast presets`: the published presets, and which of their weights are here."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..checkpoints.presets import Weights

_EXAMPLES = """\
examples:
  autoguide-fast presets
  autoguide-fast sample --model edm2-img512-s-autog-fid --seeds 0-15 --accept-licence --out images/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `presets` to the command line."""
    parser = subparsers.add_parser(
        "presets",
        help="list the published nets and guidance weights that have a name",
        description="List the published presets: model and guide (size, millions of images, EMA\n"
        "length), guidance weight w, and the published distances. Sizes in millions of\n"
        "parameters: xs 125, s 280, m 498, l 777, xl 1119, xxl 1523. A star marks weights that\n"
        "are on this machine, in the folder that AGF_MODELS names or in torch's hub cache.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list; returns 0."""
    from ..checkpoints.presets import PARAMETERS, licence, presets
    from ..checkpoints.weights import present

    def described(weights: Weights | None) -> dict[str, Any] | None:
        if weights is None:
            return None
        return {
            "file": weights.file,
            "size": weights.size,
            "parameters": PARAMETERS[weights.size] * 1_000_000,
            "labels": weights.labels,
            "images": weights.images,
            "ema": weights.ema,
            "present": present(weights.file) is not None,
        }

    rows = [
        {
            "name": each.name,
            "net": described(each.net),
            "guide": described(each.guide),
            "guidance": each.guidance,
            **each.published,
        }
        for each in presets().values()
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'preset':32} {'model':>19}   {'guide':>19}   {'w':>5} {'FID':>6} {'FD_DINOv2':>10}")
    for row in rows:
        weight = f"{row['guidance']:.2f}" if row["guide"] else ""
        print(
            f"{row['name']:32} {_short(row['net'])} {_short(row['guide'])} {weight:>5} "
            f"{row.get('fid', ''):>6} {row.get('fd_dinov2', ''):>10}"
        )
    print(f"The weights' licence is {licence()}.")
    return 0


def _short(net: dict | None) -> str:
    if net is None:
        return " " * 21
    kind = net["size"] if net["labels"] else f"{net['size']}-uncond"
    star = "*" if net["present"] else " "
    return f"{kind:>10} {net['images'] / 1e6:4.0f} {net['ema']:.3f}{star}"
