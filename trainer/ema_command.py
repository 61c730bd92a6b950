"""`autoguide-fast ema reconstruct`: nets with any EMA length, from what a run stored."""

from __future__ import annotations

import argparse
from pathlib import Path

from autoguide_fast.ema import check_sigma_rel, length_name

_EXAMPLES = """\
examples:
  # three lengths of the finished net, in one pass over the snapshots
  autoguide-fast ema reconstruct --run runs/main --ema 0.02 0.07 0.13 --out nets/

  # as it stood earlier, for a guide; at half the size
  autoguide-fast ema reconstruct --run runs/main --ema 0.12 --nimg 12800 --half --out nets/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `ema` to the command line."""
    parser = subparsers.add_parser(
        "ema",
        help="make nets with other EMA lengths after training",
        description="What can be done with the averages that a run stored.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    parser = actions.add_parser(
        "reconstruct",
        help="make nets of any EMA length",
        description="Makes nets of any EMA length from the averages that a run stored (EDM2 "
        "section 3.2), all in one pass over them. Needs 8 bytes of memory per parameter and "
        "length, however many snapshots there are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--run",
        dest="folder",
        type=Path,
        required=True,
        metavar="RUN",
        help="folder that `train` wrote",
    )
    add("--ema", type=float, nargs="+", required=True, metavar="S", help="sigma_rel of each net")
    add(
        "--nimg",
        type=int,
        metavar="N",
        help="images trained on, the nearest that was stored (default: the last)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for NIMG-S.safetensors")
    add("--half", action="store_true", help="store float16, half the size")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Reconstructs and writes."""
    import torch

    from autoguide_fast import checkpoints
    from autoguide_fast.checkpoints.run_folder import SNAPSHOTS
    from autoguide_fast.locks import sole_writer

    from .durable import remove_leftovers
    from .snapshots import average_name

    check_sigma_rel("ema reconstruct", arguments.ema, "--ema")
    stored = checkpoints.Snapshots(arguments.folder)
    nimg = stored.times[-1]
    if arguments.nimg is not None:
        nimg = min(stored.times, key=lambda t: abs(t - arguments.nimg))
    snapshots = arguments.folder / SNAPSHOTS
    if arguments.out.resolve() == snapshots.resolve():
        raise ValueError(
            f"ema reconstruct: out must be another folder than that of the run's own averages, got "
            f"{arguments.out}; what is made from them would count as one of them"
        )
    lengths = list(dict.fromkeys(arguments.ema))
    dtype = torch.float16 if arguments.half else None
    with sole_writer(arguments.out, "ema reconstruct"):
        remove_leftovers(arguments.out)
        for length, net in zip(lengths, stored.nets(nimg, lengths), strict=True):
            path = arguments.out / average_name(nimg, length)
            checkpoints.save(net, path, dtype, nimg=nimg, sigma_rel=length)
            print(f"sigma_rel {length_name(length)} at {nimg} images: {path}")
