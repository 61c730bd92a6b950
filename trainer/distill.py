"""`autoguide-fast distill`: one net that does the work of a guided pair, the weight its input."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .interruption import EXIT_CODE, patient_terminal
from .option_flags import add_options
from .options import UNLABELLED, TrainOptions, options_of_net

_EXAMPLES = """\
examples:
  # the bundled pair in one net, which then samples at half the cost
  autoguide-fast distill --model digits --guide digits-guide --data digits --guidance 1 2.5 \\
      --out runs/student
  autoguide-fast sample --model runs/student/snapshots/000204800-0.050.safetensors \\
      --guidance 1.7 --seeds 0-63 --out samples/

  # classifier-free guidance in one net; and going on after Ctrl-C
  autoguide-fast distill --model s.safetensors --guide unlabelled --data img64.zip \\
      --guidance 1 4 --out runs/cfg
  autoguide-fast distill --model s.safetensors --guide unlabelled --data img64.zip \\
      --guidance 1 4 --out runs/cfg --resume
"""

# How a student is trained that begins as the main net: at a lower rate than a new net.
DEFAULTS: dict[str, Any] = {"lr": 0.005, "P_std": 1.2}
SETTABLE = (
    "split",
    "duration",
    "batch",
    "microbatch",
    "lr",
    "decay",
    "rampup",
    "P_mean",
    "P_std",
    "precision",
    "seed",
    "device",
    "shard",
    "compile",
    "ema",
    "snapshots",
)


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `distill` to the command line."""
    parser = subparsers.add_parser(
        "distill",
        help="make one net of a guided pair, with the guidance weight as its input",
        description="Trains a copy of the model to answer as model and guide do together, for any "
        "weight of a range, which it takes as an input (arXiv 2210.03142). `sample` then needs no "
        "guide, and half the evaluations. Trains as `train` does: with snapshots and averages, "
        "stopped by Ctrl-C and resumed, on several processes under torchrun.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NET", help="the main net: a bundled name or a file")
    add(
        "--guide",
        required=True,
        metavar="NET",
        help="its guide, likewise; 'unlabelled' is the model without its label",
    )
    add(
        "--data",
        required=True,
        metavar="DATA",
        help="what the model was trained on, as for `train`; images are noised, never sampled",
    )
    add(
        "--guidance",
        type=float,
        nargs=2,
        required=True,
        metavar=("LO", "HI"),
        help="weights to learn, 1 among them",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    add(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on with the run in --out; 'auto': if there is one, else start it",
    )
    add("--quiet", action="store_true", help="no progress bar")
    add_options(parser, SETTABLE, DEFAULTS)
    parser.set_defaults(run=run)


def student_options(
    model: str, guide: str, data: str, guidance: tuple[float, float], **options: Any
) -> TrainOptions:
    """The options of a run that distils a pair into one net.

    Args:
        model, guide: bundled names or files; the guide may be 'unlabelled', the model without its
            label.
        data: what the model was trained on, as `TrainOptions.data`.
        guidance: lowest and highest weight, 1 among them.
        **options: others of `TrainOptions`, of time, rate, averages and execution.

    Returns:
        What `loop.train` takes.

    Raises:
        ValueError: no such nets, or options that do not fit.
    """
    from autoguide_fast import checkpoints

    unknown = sorted(options.keys() - set(SETTABLE))
    if unknown:
        raise ValueError(
            f"distill: options must be of {', '.join(SETTABLE)}, got {', '.join(unknown)}; the net "
            "is as the model is"
        )
    for name, value in (("model", model), ("guide", guide)):
        if name == "model" or value != UNLABELLED:
            checkpoints.find(value, f"distill: {name}")
    header = checkpoints.read_header(checkpoints.find(model, "distill: model"), "distill")
    low, high = guidance
    if not low <= 1 < high:
        raise ValueError(
            f"distill: guidance must be LO HI with LO <= 1 < HI, got {low:g} {high:g}; 1 is the "
            "model alone, where the net begins"
        )
    return TrainOptions(
        **{
            **DEFAULTS,
            **options_of_net(header["config"]),
            **options,
            "data": data,
            "teacher": (str(model), str(guide)),
            "guidance_range": (float(low), float(high)),
        }
    )


def run(arguments: argparse.Namespace) -> int:
    """Distils as asked; returns 0, or 75 if the run was interrupted and can be resumed."""
    from autoguide_fast.checkpoints.run_folder import SNAPSHOTS

    from .loop import has_run, train
    from .processes import Processes
    from .snapshots import average_name

    fields = {f.name for f in dataclasses.fields(TrainOptions)} & set(SETTABLE)
    given = {name: getattr(arguments, name) for name in fields}
    options = student_options(
        arguments.model,
        arguments.guide,
        arguments.data,
        tuple(arguments.guidance),
        **{name: value for name, value in given.items() if value is not None},
    )
    with Processes.join(options.device) as processes, patient_terminal():
        auto = arguments.resume == "auto" or processes.restarts > 0
        trainer = train(
            options,
            arguments.out,
            resume=has_run(arguments.out) if auto else arguments.resume == "yes",
            progress=not arguments.quiet,
            processes=processes,
            net="student",
        )
        finished = trainer.nimg >= options.duration
        if processes.first:
            print(
                f"student: trained on {trainer.nimg} of {options.duration} images in "
                f"{trainer.seconds:.0f} s on {trainer.device.type}"
            )
            if not finished:
                print("stopped; go on by repeating the command with --resume")
            elif options.snapshots:
                file = arguments.out / SNAPSHOTS / average_name(options.duration, options.ema[0])
                print(
                    f"sample with: autoguide-fast sample --model {file} "
                    f"--guidance {options.guidance_range[1]:g} --seeds 0-63 --out samples/"
                )
    return 0 if finished else EXIT_CODE
