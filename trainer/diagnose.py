"""`autoguide-fast diagnose`: whether a guide helps, from data, in seconds and without sampling."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoguide_fast.cli.arguments import check_image_count, check_output_file, positive_integer

if TYPE_CHECKING:
    import torch

    from autoguide_fast import Diagnosis

_EXAMPLES = """\
examples:
  autoguide-fast diagnose --plot found.png
  autoguide-fast diagnose --by classes bands
  autoguide-fast diagnose --model runs/a/nets/main.safetensors --guide small=s.safetensors
      early=e.safetensors --data img64.zip --heldout img64-val.zip --images 2000 --out found.json

  # without another net
  autoguide-fast diagnose --guide self:attn_temperature=0 b=self:left_out=dec.8x8_block0

  # kept beside the model, for `sample --guidance auto`
  autoguide-fast diagnose --model pair/main.safetensors --guide pair/guide.safetensors --save
  autoguide-fast sample --model pair/main.safetensors --guide pair/guide.safetensors \\
      --guidance auto --out images/

  # points of the toy that `autoguide-fast toy` trained
  autoguide-fast diagnose --data toy --model toy/nets/main-0.safetensors \\
      --guide toy/nets/guide-0.safetensors
"""
TOY = "toy"
BY = ("classes", "bands")


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `diagnose` to the command line."""
    parser = subparsers.add_parser(
        "diagnose",
        help="tell from data whether a guide helps, at which noise levels and how much",
        description="Evaluates a model and its guides on noisy data and prints, for each noise "
        "level, the guidance weight that brings them nearest to the perfect denoiser, with its "
        "95 % bootstrap interval and the share of the model's squared error that it removes. On "
        "data that the model was trained on and on data that it was not, side by side. What --out "
        "or --save wrote is a guidance weight for `sample`, of these nets alone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="digits", metavar="NET", help="name or file (default: digits)")
    add(
        "--guide",
        nargs="+",
        default=["digits-guide"],
        metavar="NET",
        help="names or files of guides, or self:OPTION,... as for `sample`, or NAME=NET; several "
        "are weighted together (default: digits-guide)",
    )
    add(
        "--data",
        default="digits",
        metavar="DATA",
        help="what the model was trained on: digits, photos, a folder or a ZIP file; of what is "
        "bundled the held-out images are taken as well; toy: new points of its class A (default: "
        "digits)",
    )
    add("--heldout", metavar="DATA", help="a folder or a ZIP file of images held out of training")
    add(
        "--images",
        type=positive_integer,
        default=1000,
        metavar="N",
        help="of each set, at most (default: 1000)",
    )
    add("--sigmas", type=float, nargs="+", metavar="S", help="noise levels (default: 0.02 to 20)")
    add("--seed", type=int, default=0, metavar="S", help="of noise and images (default: 0)")
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: cpu)")
    add(
        "--by",
        nargs="+",
        choices=BY,
        default=[],
        metavar="WHAT",
        help="the weights of each of the classes, or of each third of the spatial frequencies "
        "(bands), too",
    )
    add("--out", type=Path, metavar="FILE", help="write every figure as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw the weights over the noise level as PNG")
    add(
        "--save",
        action="store_true",
        help="write as --out does, beside the model's file: `sample --guidance auto` takes that",
    )
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Diagnoses, prints the tables, writes the figures."""
    from tqdm import tqdm

    from autoguide_fast import load
    from autoguide_fast.diagnosis import SIGMAS, diagnose, sets_of
    from autoguide_fast.plots import diagnosis_picture

    from .guide_scores import drawn

    check_image_count(arguments.images, 2, "diagnose", "one image has no interval")
    check_output_file(arguments.out, "diagnose")
    check_output_file(arguments.plot, "diagnose", "--plot")
    beside = _beside(arguments.model) if arguments.save else None
    model = load(arguments.model, arguments.device or "cpu")
    images: dict = {}
    labels: dict = {}
    if arguments.data == TOY:
        images["new points"] = _points(arguments.images, arguments.seed)
    else:
        for name, dataset in _datasets(arguments.data, arguments.heldout).items():
            images[name], labels[name] = drawn(dataset, arguments.images, arguments.seed)
    with tqdm(disable=True if arguments.quiet else None, unit="batch", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = diagnose(
            model,
            _guides(arguments.guide),
            images,
            labels if labels and model.label_dim else None,
            sigmas=arguments.sigmas or SIGMAS,
            seed=arguments.seed,
            device=arguments.device,
            progress=progress,
        )
    for name in found.sets:
        print(f"{name}, {len(images[name])} samples")
        print(found.summary(name))
        for what in arguments.by:
            print(_table(found, name, what))
        print()
    print(found.verdict())
    for path in filter(None, (arguments.out, beside)):
        found.save(path)
        print(f"wrote {path}")
    if arguments.plot is not None:
        figures = found.as_dict()
        diagnosis_picture(arguments.plot, figures, sets_of(figures))
        print(f"wrote {arguments.plot}")


def _beside(model: str) -> Path:
    """Where `sample --guidance auto` looks for what was found of a model."""
    from autoguide_fast import checkpoints
    from autoguide_fast.guidance.saved import place_beside

    if model in checkpoints.BUNDLED:
        raise ValueError(
            f"diagnose: --save must be for a net in a file of yours, got the bundled {model}; "
            "write to a file with --out"
        )
    return place_beside(checkpoints.find(model, "diagnose: --model"))


def _table(found: Diagnosis, data: str, what: str) -> str:
    """The weights of each class or band, a column for each, in a table for each guide."""
    if what == "classes":
        columns = {str(c): found.weights(data, label=c) for c in found.classes(data)}
    else:
        columns = {band: found.weights(data, band) for band in found.bands}
    if not columns:
        return f"no {what}: these samples have none"
    lines = []
    for g, guide in enumerate(found.guides):
        lines.append(f"\n{guide}, by {what}")
        lines.append(f"{'sigma':>8}" + "".join(f"{name:>9}" for name in columns))
        for i, sigma in enumerate(found.sigmas):
            cells = "".join(f"{weights[i, g]:9.3f}" for weights in columns.values())
            lines.append(f"{sigma:8.3g}{cells}")
    return "\n".join(lines)


def _points(count: int, seed: int) -> torch.Tensor:
    """Points of the toy's class A."""
    import torch

    from autoguide_fast.toy import fractal

    return fractal("A").sample(count, torch.Generator().manual_seed(seed))


def _guides(values: list[str]) -> dict[str, str]:
    from autoguide_fast.guidance import is_of_model

    guides: dict[str, str] = {}
    for value in values:
        name, separator, net = value.partition("=")
        if is_of_model(value):
            name = net = value
        elif not separator:
            name, net = Path(value).stem, value
        if name in guides:
            raise ValueError(f"diagnose: --guide must have each name once, got {name} twice")
        guides[name] = net
    return guides


def _datasets(data: str, heldout: str | None) -> dict:
    from .data import open_dataset
    from .data.datasets import BUNDLED

    sets = {"training": open_dataset(data)}
    if heldout is not None:
        sets["held out"] = open_dataset(heldout)
    elif data in BUNDLED:
        sets["held out"] = open_dataset(data, "heldout")
    return sets
