"""`autoguide-fast train`: trains a net on the digits; brings `search` and `judge` along."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .options import TrainOptions

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

_EXAMPLES = """\
examples:
  # a small labelled net; a few minutes on one core
  autoguide-fast train --out runs/main

  # its guide: half the width, half the time
  autoguide-fast train --out runs/guide --channels 8 --channels-per-head 8 --duration 102400

  # a net without labels, for classifier-free guidance
  autoguide-fast train --out runs/uncond --no-labels

  # go on after Ctrl-C, or after the power went
  autoguide-fast train --out runs/main --resume
"""

# Option of TrainOptions -> (flag's metavar, help). The defaults come from the dataclass.
_GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "network": {
        "channels": ("N", "base width"),
        "channel_mult": ("M", "width of each level, in multiples of the base width"),
        "num_blocks": ("N", "encoder blocks per level"),
        "attn_resolutions": ("R", "resolutions with self-attention"),
        "channels_per_head": ("N", "width of an attention head; narrower levels have none"),
        "dropout": ("P", "dropout probability in the residual branches"),
        "sigma_data": ("S", "standard deviation that the data are taken to have"),
    },
    "training": {
        "duration": ("N", "length of the run in images; a multiple of the batch"),
        "batch": ("N", "images per step"),
        "lr": ("A", "reference learning rate alpha_ref"),
        "decay": ("T", "steps after which the rate falls as 1/sqrt(t); 0: never"),
        "rampup": ("N", "images over which the rate rises from 0"),
        "P_mean": ("M", "mean of ln sigma"),
        "P_std": ("S", "standard deviation of ln sigma"),
        "seed": ("N", "of first weights, data order, noise and dropout"),
        "split": ("S", "'train' holds a fifth of the digits out, 'all' does not"),
    },
    "averages": {
        "ema": ("S", "sigma_rel of each average that is tracked"),
        "snapshots": ("N", "how often the averages are stored, evenly over the run"),
    },
}


def add_command(subparsers) -> None:
    """Adds `train`, `search` and `judge` to the command line."""
    from . import judge, search

    parser = subparsers.add_parser(
        "train",
        help="train a denoiser on the bundled digits",
        description="Trains a denoiser on the handwritten digits that scikit-learn ships (8x8 "
        "grey, 10 classes). Ctrl-C saves a checkpoint and stops; --resume goes on from there.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    fields = {f.name: f for f in dataclasses.fields(TrainOptions)}
    for title, options in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, (metavar, text) in options.items():
            _add_option(group, name, fields[name].default, metavar, text)
        if title == "network":
            group.add_argument("--no-labels", dest="labelled", action="store_false", default=None,
                               help="train without class labels")  # fmt: skip
    parser.set_defaults(run=run)
    search.add_command(subparsers)
    judge.add_command(subparsers)


def _add_option(group, name: str, default, metavar: str, text: str) -> None:
    """Adds one option; None stands for "not given", so that --resume can tell."""
    several = isinstance(default, tuple)
    shown = " ".join(map(str, default)) if several else default
    group.add_argument(
        "--" + name.lower().replace("_", "-"),
        dest=name,
        type=type(default[0]) if several else type(default),
        nargs="+" if several else None,
        metavar=metavar,
        help=f"{text} (default: {shown})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Trains as asked; returns 0, or 130 if the run was interrupted and can be resumed."""
    from . import loop

    options = _options(arguments)
    trainer = loop.train(
        options, arguments.out, resume=arguments.resume, progress=not arguments.quiet
    )
    repaired = f", {trainer.repaired_steps} steps repaired" if trainer.repaired_steps else ""
    parameters = sum(p.numel() for p in trainer.net.parameters())
    if trainer.nimg < options.duration:
        print(
            f"stopped at {trainer.nimg} of {options.duration} images{repaired}; "
            f"go on with: autoguide-fast train --out {arguments.out} --resume"
        )
        return INTERRUPTED
    print(
        f"trained {parameters} parameters on {trainer.nimg} images{repaired}; "
        f"averages are in {arguments.out / loop.SNAPSHOTS}"
    )
    return 0


def _options(arguments: argparse.Namespace) -> TrainOptions:
    """The options given; on resuming, what is not given is as the run in --out has it."""
    from . import loop

    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(TrainOptions)}
    given = {name: value for name, value in given.items() if value is not None}
    stored = loop.stored_options(arguments.out) if arguments.resume else {}
    return TrainOptions(**{**stored, **given})
