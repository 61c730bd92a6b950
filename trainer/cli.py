"""`autoguide-fast train`: trains a net, or a guided pair; brings the trainer's commands along."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .interruption import EXIT_CODE, patient_terminal
from .option_flags import GROUPS, add_option, value_type
from .options import AUTO, TrainOptions
from .presets import PRESETS, preset

if TYPE_CHECKING:
    from .auto_guide import AutoGuide
    from .pair import Guide, Result

_EXAMPLES = """\
examples:
  # a labelled net for the digits and a guide of half its width and a quarter of its time
  autoguide-fast train --out runs/pair --guide 8:T/4 --guide-set channels_per_head=8

  # a guide that is chosen among candidates, and the weights to guide with
  autoguide-fast train --out runs/auto --guide auto --guide-budget 0.05

  # a published configuration and its guide; what it would cost, and then for real
  autoguide-fast train --out runs/s --data latents.zip --preset edm2-img512-s --guide xs:T/16 \\
      --dry-run
  torchrun --nproc-per-node 8 --max-restarts 3 -m autoguide_fast.cli train --out runs/s \\
      --data latents.zip --preset edm2-img512-s --guide xs:T/16 --precision bf16

  # one whose weights, moments and averages do not fit into one process
  torchrun --nproc-per-node 8 -m autoguide_fast.cli train --out runs/xxl --shard \\
      --data latents.zip --preset edm2-img512-xxl --precision bf16 --microbatch 16

  # classifier-free guidance: a net that is its own guide without its label, or one of its own
  autoguide-fast train --out runs/main --label-dropout 0.1
  autoguide-fast train --out runs/uncond --no-labels

  # go on after Ctrl-C, or after the power went
  autoguide-fast train --out runs/main --resume

exit code: 0 finished; 75 stopped by Ctrl-C, SIGTERM or SIGHUP, saved, go on with --resume; 2 an
error
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `train` and what goes with it to the command line."""
    from . import diagnose, distill, ema_command, evaluate, judge, plot, tune
    from .toy import cli as toy

    parser = subparsers.add_parser(
        "train",
        help="train a denoiser, or a guided pair",
        description="Trains a denoiser, and with --guide the worse version that guides it, as one "
        "job, on the handwritten digits that scikit-learn ships (8x8 grey, 10 classes) or on "
        "--data. Ctrl-C saves a checkpoint and stops; --resume goes on from there. Runs on several "
        "processes under torchrun.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder of the run")
    add("--preset", metavar="NAME", help=f"published configuration: {', '.join(PRESETS)}")
    add(
        "--guide",
        metavar="SIZE:T/K",
        help="also train a guide: a size of the preset, or a number of channels, for 1/K of the "
        "duration; T/K alone takes the main net as it stood then; auto trains narrower nets for "
        "short times, samples with the best of them and with the main net's past, and keeps the "
        "one that brings samples nearest to the data",
    )
    add(
        "--guide-budget",
        type=float,
        metavar="B",
        help="with --guide auto, what the candidates may cost together, in shares of the main "
        "net's arithmetic (default: 0.05)",
    )
    add(
        "--guide-set",
        nargs="+",
        metavar="NAME=VALUE",
        default=[],
        help="options of the guide that differ, such as dropout=0.1",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print parameters, arithmetic, memory and time, and train nothing",
    )
    add(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on with the run in --out; 'auto': if there is one, else start it",
    )
    add(
        "--checkpoint-minutes",
        type=float,
        default=10.0,
        metavar="M",
        help="save the state this often, and at each snapshot (default: 10)",
    )
    add(
        "--grid",
        type=int,
        default=16,
        metavar="N",
        help="images in the grid drawn at each snapshot; 0: no grid (default: 16)",
    )
    add(
        "--grid-guidance",
        type=float,
        default=2.0,
        metavar="W",
        help="guidance weight of its guided half (default: 2)",
    )
    add("--quiet", action="store_true", help="no progress bar")
    fields = {f.name: f for f in dataclasses.fields(TrainOptions)}
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, (metavar, text) in options.items():
            add_option(group, name, fields[name].default, metavar, text)
        if title == "data":
            group.add_argument(
                "--no-labels",
                dest="labelled",
                action="store_false",
                default=None,
                help="train without class labels",
            )
            group.add_argument(
                "--flip",
                dest="flip",
                action="store_true",
                default=None,
                help="mirror half of the images left to right",
            )
    parser.set_defaults(run=run)
    for module in (distill, tune, judge, evaluate, diagnose, ema_command, plot, toy):
        module.add_command(subparsers)


def run(arguments: argparse.Namespace) -> int:
    """Trains as asked; returns 0, or 75 if the run was interrupted and can be resumed."""
    from . import pair
    from .processes import Processes

    if arguments.out is None and not arguments.dry_run:
        raise ValueError("train: --out must name the folder of the run; add --out runs/NAME")
    main, guide = _job(arguments)
    if arguments.dry_run:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all come here
            print(_dry_run(main, guide))
        return 0
    for name, least in (("grid", 0), ("checkpoint_minutes", 0)):
        if not getattr(arguments, name) >= least:
            raise ValueError(
                f"train: {name} must be >= {least}, got {getattr(arguments, name)}; raise it"
            )
    if not math.isfinite(arguments.grid_guidance):
        raise ValueError(
            f"train: grid_guidance must be finite, got {arguments.grid_guidance}; 2 is usual"
        )
    with Processes.join(main.device) as processes, patient_terminal():
        out = arguments.out
        begun = pair.has_run(out) or pair.has_run(out / pair.GUIDE)
        # torchrun starts the same command again after a process died.
        auto = arguments.resume == "auto" or processes.restarts > 0
        result = pair.train_pair(
            main,
            guide,
            out,
            resume=begun if auto else arguments.resume == "yes",
            progress=not arguments.quiet,
            processes=processes,
            grid=arguments.grid,
            grid_guidance=arguments.grid_guidance,
            checkpoint_minutes=arguments.checkpoint_minutes,
        )
        if processes.first:
            print(_summary(result, main, guide, arguments))
    return 0 if result.finished else EXIT_CODE


def _summary(
    result: Result,
    main: TrainOptions,
    guide: Guide | AutoGuide | None,
    arguments: argparse.Namespace,
) -> str:
    from autoguide_fast.checkpoints.run_folder import SNAPSHOTS

    from . import guide_report
    from .pair import GUIDE, Guide
    from .snapshots import average_name

    lines = []
    for name, trainer in (("guide", result.guide), ("main", result.main)):
        if trainer is None:
            continue
        notes = [f"{trainer.repaired_steps} steps repaired"] * bool(trainer.repaired_steps)
        notes += [f"{trainer.skipped_steps} steps left out"] * bool(trainer.skipped_steps)
        parameters = sum(p.numel() for p in trainer.net.parameters())
        duration = trainer.options.duration
        whole = "" if trainer.nimg >= duration else f" of {duration}"
        lines.append(
            f"{name}: trained {parameters} parameters on {trainer.nimg}{whole} images in "
            f"{trainer.seconds:.0f} s on {trainer.device.type}"
            f"{''.join(', ' + note for note in notes)}"
        )
    if not result.finished:
        return "\n".join(
            [*lines, f"stopped; go on with: autoguide-fast train --out {arguments.out} --resume"]
        )
    if result.guide_share is not None:
        lines.append(f"the guide took {100 * result.guide_share:.1f} % of the main net's time")
    folder = arguments.out / SNAPSHOTS
    lines.append(f"averages are in {folder}")
    if result.choice is not None:
        chosen = result.choice["candidates"][result.choice["chosen"]]
        guide_file = average_name(chosen["images"], chosen["ema"])
        return "\n".join(
            [
                *lines,
                guide_report.report(result.choice),
                f"sample with: autoguide-fast sample "
                f"--model {folder / average_name(main.duration, main.ema[0])} "
                f"--guide {arguments.out / GUIDE / SNAPSHOTS / guide_file} "
                "--guidance auto --seeds 0-63 --out samples/",
            ]
        )
    if isinstance(guide, Guide) and main.snapshots:
        guide_folder = folder if guide.options is None else arguments.out / GUIDE / SNAPSHOTS
        guide_ema = (guide.options or main).ema[-1]
        lines.append(
            f"sample with: autoguide-fast sample "
            f"--model {folder / average_name(main.duration, main.ema[0])} "
            f"--guide {guide_folder / average_name(guide.nimg, guide_ema)} "
            f"--guidance {arguments.grid_guidance:g} --seeds 0-63 --out samples/"
        )
    elif main.head_after and main.snapshots:
        lines.append(
            f"sample with: autoguide-fast sample "
            f"--model {folder / average_name(main.duration, main.ema[0])} "
            "--guide self:head --guidance 1.5 --seeds 0-63 --out samples/"
        )
    return "\n".join(lines)


def _job(arguments: argparse.Namespace) -> tuple[TrainOptions, Guide | AutoGuide | None]:
    """The options of the main net, and its guide or None.

    On resuming, what is not given is as the run in --out has it.
    """
    from . import auto_guide, pair
    from .precision import as_stored

    given = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(TrainOptions)}
    given = {name: value for name, value in given.items() if value is not None}
    chosen = preset(arguments.preset) if arguments.preset else {}
    resumed = arguments.resume and arguments.out
    job = pair.stored_job(arguments.out, lambda text: None) if resumed else {}
    stored = job.get("main", {})
    main = as_stored(TrainOptions(**{**stored, **chosen, **given}), stored)
    spec = arguments.guide or job.get("guide")
    if arguments.guide_budget is not None and spec != auto_guide.AUTO:
        raise ValueError(
            f"train: guide_budget must come with --guide auto, got it with guide {spec}; leave out "
            "one of the two"
        )
    if spec is None:
        if resumed and "guide" not in job and pair.has_run(arguments.out / pair.GUIDE):
            raise ValueError(
                f"train: guide must be named again, since {arguments.out / pair.GUIDE} holds one "
                f"and {pair.JOB} is lost, got none; add --guide and --guide-set as at the start"
            )
        if arguments.guide_set:
            raise ValueError("train: guide_set must come with --guide, got it alone; add --guide")
        return main, None
    changes = _changes(arguments.guide_set) or job.get("guide_set", {})
    name = arguments.preset or job.get("preset")
    if spec == auto_guide.AUTO:
        budget = arguments.guide_budget
        if budget is None:
            budget = job.get("guide_budget", auto_guide.BUDGET)
        return main, auto_guide.auto_guide(main, name, changes, budget)
    return main, pair.parse_guide(spec, main, name, changes)


def _changes(pairs: list[str]) -> dict:
    """Options from `name=value`, lists as `1,2`."""
    fields = {f.name: f.default for f in dataclasses.fields(TrainOptions)}
    for shared in ("duration", "batch", "data", *GROUPS["execution"]):
        fields.pop(shared)
    changes: dict = {}
    for text in pairs:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in fields or not value:
            raise ValueError(
                f"train: guide_set must hold NAME=VALUE with an option's name, got {text!r}; for "
                "example dropout=0.1 channel_mult=1,2"
            )
        default = fields[name]
        try:
            if isinstance(default, bool):
                changes[name] = {"true": True, "false": False}[value.lower()]
            elif isinstance(default, tuple):
                changes[name] = tuple(value_type(default)(v) for v in value.split(","))
            else:
                changes[name] = value_type(default)(value)
        except (ValueError, KeyError, argparse.ArgumentTypeError):
            raise ValueError(
                f"train: guide_set must give {name} a value like {default}, got {value!r}; correct "
                "it"
            ) from None
    return changes


def _dry_run(main: TrainOptions, guide: Guide | AutoGuide | None) -> str:
    from . import estimate, guide_finals
    from .auto_guide import AutoGuide
    from .devices import choose_device
    from .pair import Guide
    from .precision import decide
    from .processes import Processes
    from .training_data import attention_note, shape_of

    processes = int(os.environ.get("WORLD_SIZE", 1))
    shape = shape_of(main)
    decided = None
    if main.precision == AUTO:
        found, why = decide(main, shape, processes, choose_device(main, Processes()))
        decided = f"precision would be {found}: {why}"
        main = dataclasses.replace(main, precision=found)
    nets = {"main": main}
    if isinstance(guide, AutoGuide):
        nets |= {f"candidate of {name} channels": run for name, run in guide.runs.items()}
    elif guide is not None and guide.options is not None:
        nets["guide"] = guide.options
    notes = filter(None, (attention_note(net, shape[0]) for net in nets.values()))
    estimates = {name: estimate.estimate(net, *shape, processes) for name, net in nets.items()}
    text = estimate.report(estimates, processes, estimate.convolution_speed())
    if isinstance(guide, AutoGuide):
        past = ", ".join(f"{nimg:,}" for nimg in guide.past)
        count, cost = guide_finals.images_of_each(main, guide)
        text += (
            f"\nthe main net as it stood at {past} images is a candidate, too: no cost\n"
            f"the candidates cost {100 * guide.cost:.1f} % of a budget of "
            f"{100 * guide.budget:.1f} %; {count} images sampled with each of the best and "
            f"without a guide, {100 * cost:.2g} %, and scoring them in addition an evaluation of "
            "each on some thousand images; the paper's guides cost 3.6 %"
        )
    if isinstance(guide, Guide) and guide.options is None:
        text += f"\nthe guide is the main net as it stood at {guide.nimg:,} images: no cost"
    return "\n".join([text, *filter(None, [decided]), *dict.fromkeys(notes)])
