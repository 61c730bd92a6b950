"""`autoguide-fast sample`: seeds in, PNG files out."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import integer_ranges, positive_integer

if TYPE_CHECKING:
    import numpy as np

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended

_EXAMPLES = """\
examples:
  # 64 threes from the bundled digits, autoguidance at w = 1.5
  autoguide-fast sample --model digits --guidance 1.5 --seeds 0-63 --classes 3 --out out/

  # the same seeds without guidance
  autoguide-fast sample --model digits --seeds 0-63 --classes 3 --out unguided/

  # classifier-free guidance with the bundled unconditional net, one seed in all ten classes
  autoguide-fast sample --guide digits-uncond --guidance 1.5 --seeds 7 --classes 0-9 \\
      --out seven/

  # your own nets, with noise added along the way
  autoguide-fast sample --model main.safetensors --guide guide.safetensors --guidance 2 \\
      --seeds 0-9999 --churn 40 --batch-size 256 --out images/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `sample` to the command line."""
    parser = subparsers.add_parser(
        "sample",
        help="sample images and write PNGs and a grid",
        description="Sample images. Writes one PNG per image, named after its seed (and class,\n"
        "if asked for), as soon as it is there; then grid.png with the first of them. A command\n"
        "that was stopped goes on when it is repeated; settings.json says what the images in the\n"
        "folder were sampled with, and other settings are refused.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to sample").add_argument
    add(
        "--model",
        default="digits",
        metavar="NET",
        help="a bundled net's name, a preset (see `autoguide-fast presets`), a .safetensors file, "
        "or a .pkl of the reference implementation (default: digits)",
    )
    add(
        "--seeds",
        type=integer_ranges,
        default="0-63",
        help="one image each, such as 0-63 or 0,5,9-12 (default: 0-63)",
    )
    add(
        "--classes",
        type=integer_ranges,
        help="such as 3 or 0-9; paired with the seeds, and the shorter of both lists is repeated "
        "(default: each seed draws its class)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write to; made if absent",
    )
    add = parser.add_argument_group("guidance").add_argument
    add(
        "--guidance",
        type=float,
        metavar="W",
        help="guidance weight; 1 is no guidance and never runs the guide (default: that of a "
        "preset, otherwise 1)",
    )
    add(
        "--guide",
        metavar="NET",
        help="the net to guide away from (default: the guide that a bundled model comes with)",
    )
    add(
        "--interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="guide only at noise levels above LO, up to and including HI",
    )
    add = parser.add_argument_group("sampler").add_argument
    add(
        "--steps",
        type=positive_integer,
        default=32,
        metavar="N",
        help="number of steps (default: 32)",
    )
    add(
        "--sigma-min",
        type=float,
        default=0.002,
        metavar="S",
        help="lowest noise level (default: 0.002)",
    )
    add(
        "--sigma-max",
        type=float,
        default=80.0,
        metavar="S",
        help="highest noise level (default: 80)",
    )
    add(
        "--rho",
        type=float,
        default=7.0,
        metavar="R",
        help="how strongly steps gather at low noise (default: 7)",
    )
    add(
        "--churn",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="C",
        help="S_churn [S_min S_max S_noise]: fresh noise at each step (default: 0 0 inf 1)",
    )
    add = parser.add_argument_group("running").add_argument
    add(
        "--batch-size",
        type=positive_integer,
        metavar="N",
        help="images at a time: speed and memory (default: 64)",
    )
    add(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1 ... (default: cuda if there is one)",
    )
    add(
        "--compute-dtype",
        choices=("auto", "float32", "bfloat16", "int8", "float16", "float8_e4m3fn"),
        metavar="TYPE",
        help="what the networks multiply: 'auto' for the fastest type whose images are as good as "
        "float32's, or float32, bfloat16, int8 on a CPU, float32, bfloat16, float16, float8_e4m3fn "
        "on a GPU (default: float32, or float16 on a GPU for networks that say so)",
    )
    add(
        "--accept-licence",
        action="store_true",
        help="agree to the licence of published weights, CC BY-NC-SA 4.0, and download them",
    )
    add(
        "--quiet",
        action="store_true",
        help="no progress bar",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Sample and write the files; returns 0, or 130 if Ctrl-C came."""
    if len(arguments.churn) > 4:
        raise ValueError(
            f"--churn must be at most four numbers, got {len(arguments.churn)}; "
            "they are S_churn S_min S_max S_noise"
        )
    churn = arguments.churn + [0.0, 0.0, math.inf, 1.0][len(arguments.churn) :]

    import torch

    import autoguide_fast

    from ..locks import sole_writer
    from ..request import DEFAULT_BATCH_SIZE
    from .image_folder import ImageFolder

    seeds, labels = arguments.seeds, None
    if arguments.classes is not None:
        count = max(len(seeds), len(arguments.classes))
        seeds = [seeds[i % len(seeds)] for i in range(count)]
        labels = [arguments.classes[i % len(arguments.classes)] for i in range(count)]
    names = [f"{seed:06d}" for seed in seeds]
    if labels is not None:
        names = [f"{name}-class{label}" for name, label in zip(names, labels, strict=True)]
    if arguments.guidance is None:
        arguments.guidance = autoguide_fast.checkpoints.default_guidance(arguments.model)
    model, guide = _nets(arguments)
    for net in (model, guide):
        if net is not None:
            autoguide_fast.checkpoints.find(net, "sample: a net", arguments.accept_licence)
    settings = {
        "model": _identity(model),
        "guide": None if guide is None else _identity(guide),
        "guidance": arguments.guidance,
        "interval": arguments.interval if guide is not None else None,
        "steps": arguments.steps,
        "sigma_min": arguments.sigma_min,
        "sigma_max": arguments.sigma_max,
        "rho": arguments.rho,
        "churn": churn if churn[0] else None,
        "compute_dtype": arguments.compute_dtype,
    }
    compute_dtype = arguments.compute_dtype
    if compute_dtype not in (None, "auto"):
        compute_dtype = getattr(torch, compute_dtype)
    shape = _image_shape(model)
    start = time.perf_counter()
    with sole_writer(arguments.out, "sample"):
        folder = ImageFolder(arguments.out, names, settings, shape)
        folder.warn_of_little_room()
        # Whole batches, those that a command without interruption has: rounding depends on what
        # is computed together.
        size = arguments.batch_size or DEFAULT_BATCH_SIZE
        batches = [range(i, min(i + size, len(seeds))) for i in range(0, len(seeds), size)]
        todo = [i for batch in batches if any(folder.missing[i] for i in batch) for i in batch]

        def write(indices: range, images: np.ndarray) -> None:
            folder.write([todo[i] for i in indices], images)

        try:
            with folder.writing():
                autoguide_fast.sample(
                    model,
                    guide=guide or arguments.guide,
                    guidance=arguments.guidance,
                    interval=arguments.interval,
                    class_labels=None if labels is None else [labels[i] for i in todo],
                    seeds=[seeds[i] for i in todo],
                    num_steps=arguments.steps,
                    sigma_min=arguments.sigma_min,
                    sigma_max=arguments.sigma_max,
                    rho=arguments.rho,
                    S_churn=churn[0],
                    S_min=churn[1],
                    S_max=churn[2],
                    S_noise=churn[3],
                    batch_size=size,
                    device=arguments.device,
                    compute_dtype=compute_dtype,
                    progress=not arguments.quiet,
                    array="numpy",
                    on_batch=write,
                )
        except KeyboardInterrupt:
            print(
                f"\nautoguide-fast sample: interrupted; {folder.written()} of {folder.count} "
                f"images are in {arguments.out}, repeat the command to go on",
                file=sys.stderr,
            )
            return INTERRUPTED
        folder.write_grid()
    seconds = time.perf_counter() - start
    new = sum(folder.missing)
    done = f"{new} images in {seconds:.1f} s ({new / seconds:.1f} images/s, loading included)"
    if not new:
        done = f"all {folder.count} images were there, sampled with these settings"
    elif new < folder.count:
        done += f", {folder.count - new} were there"
    print(f"{done}: {folder.count} files and grid.png in {arguments.out}")
    return 0


def _nets(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """Names or paths of the model and, where one runs, of its guide."""
    from .. import checkpoints

    guide = None
    if arguments.guidance != 1:
        named = checkpoints.bundled_guide(arguments.guide) or arguments.guide
        guide = named or checkpoints.bundled_guide(arguments.model)
    return arguments.model, guide


def _identity(net: str) -> dict[str, str]:
    """A net's name and what tells it from others: its checksum, without reading it all."""
    from .. import checkpoints
    from ..files import sha256

    path = checkpoints.find(net, "sample: a net")
    digest = checkpoints.read_header(path, "sample").get("checksum")
    if digest is None:  # a file of an earlier version, or of another program
        digest = sha256(path)
    return {"name": net, "digest": digest}


def _image_shape(net: str) -> tuple[int, int, int]:
    """Channels, height and width of the PNGs, of which all are the same.

    Raises:
        ValueError: PNGs cannot be made of the net's samples.
    """
    from .. import checkpoints
    from ..encoders import LatentEncoder, PixelEncoder

    path = checkpoints.find(net, "sample: model")
    header = checkpoints.read_header(path, "sample")
    channels, side = (header["config"].get(k) for k in ("img_channels", "img_resolution"))
    if not isinstance(channels, int) or not isinstance(side, int):
        raise ValueError(
            f"sample: model must say its img_channels and img_resolution, got {net} with "
            f"{channels!r} and {side!r}; save it again with autoguide_fast.checkpoints.save"
        )
    if header.get("encoder") == LatentEncoder.name:
        return 3, side * LatentEncoder.pixels, side * LatentEncoder.pixels
    if header.get("encoder") != PixelEncoder.name:
        raise ValueError(
            f"sample: model must have an encoder that makes images of its samples, got {net} "
            f"with {header.get('encoder')}; set net.encoder and save it again, or call "
            "autoguide_fast.sample in Python, which returns the samples"
        )
    if channels not in (1, 3):
        raise ValueError(
            f"sample: model must make images of 1 or 3 channels, got {net} with {channels}; call "
            "autoguide_fast.sample in Python, which returns all of them"
        )
    return channels, side, side
