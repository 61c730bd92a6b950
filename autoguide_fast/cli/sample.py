"""`autoguide-fast sample`: seeds in, PNG files out."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from autoguide_fast.cli.arguments import integer_ranges, positive_integer

GRID_LIMIT = 1024  # more images in one picture serve nobody

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


def add_command(subparsers) -> None:
    """Add `sample` to the command line."""
    parser = subparsers.add_parser(
        "sample",
        help="sample images and write PNGs and a grid",
        description="Sample images. Writes one PNG per image, named after its seed (and class,\n"
        f"if asked for), and grid.png with all of them, or the first {GRID_LIMIT}.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what to sample").add_argument
    add(
        "--model",
        default="digits",
        metavar="NET",
        help="a bundled net's name or a .safetensors file (default: digits)",
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
        default=1.0,
        metavar="W",
        help="guidance weight; 1 is no guidance and never runs the guide (default: 1)",
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
        "--quiet",
        action="store_true",
        help="no progress bar",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample and write the files."""
    if len(arguments.churn) > 4:
        raise ValueError(
            f"--churn must be at most four numbers, got {len(arguments.churn)}; "
            "they are S_churn S_min S_max S_noise"
        )
    churn = arguments.churn + [0.0, 0.0, math.inf, 1.0][len(arguments.churn) :]
    arguments.out.mkdir(parents=True, exist_ok=True)  # fail before the work, not after it

    import autoguide_fast

    seeds, labels = arguments.seeds, None
    if arguments.classes is not None:
        count = max(len(seeds), len(arguments.classes))
        seeds = [seeds[i % len(seeds)] for i in range(count)]
        labels = [arguments.classes[i % len(arguments.classes)] for i in range(count)]
    start = time.perf_counter()
    images = autoguide_fast.sample(
        arguments.model,
        guide=arguments.guide,
        guidance=arguments.guidance,
        interval=arguments.interval,
        class_labels=labels,
        seeds=seeds,
        num_steps=arguments.steps,
        sigma_min=arguments.sigma_min,
        sigma_max=arguments.sigma_max,
        rho=arguments.rho,
        S_churn=churn[0],
        S_min=churn[1],
        S_max=churn[2],
        S_noise=churn[3],
        batch_size=arguments.batch_size,
        device=arguments.device,
        progress=not arguments.quiet,
    )
    seconds = time.perf_counter() - start
    files = write_images(images.cpu(), seeds, labels, arguments.out)
    print(
        f"{len(seeds)} images in {seconds:.1f} s ({len(seeds) / seconds:.1f} images/s, loading "
        f"included): {files} files and grid.png in {arguments.out}"
    )


def write_images(images, seeds: list[int], labels: list[int] | None, out: Path) -> int:
    """Write each image under its seed and class, and the first `GRID_LIMIT` as `grid.png`.

    The same seed in the same class is the same image, and so the same file.

    Args:
        images: uint8 `[N, C, H, W]` on the CPU.
        seeds: N seeds.
        labels: N classes, or None where the seeds drew them.
        out: an existing folder.

    Returns:
        The number of files written besides the grid.
    """
    from autoguide_fast import plots

    names = [f"{seed:06d}" for seed in seeds]
    if labels is not None:
        names = [f"{name}-class{label}" for name, label in zip(names, labels, strict=True)]
    for name, image in zip(names, images, strict=True):
        plots.to_image(image).save(out / f"{name}.png")
    plots.image_grid(images[:GRID_LIMIT]).save(out / "grid.png")
    return len(set(names))
