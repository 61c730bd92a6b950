"""`autoguide-fast grid`: pictures to look at, of guidance weights, noise levels or images."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_atomically
from .arguments import check_output_file, integer_ranges, positive_integer

if TYPE_CHECKING:
    import torch
    from PIL import Image

MOST_IMAGES = 1024
_COLUMNS = 8
_WEIGHTS = (1.0, 1.5, 2.0, 3.0)
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
_LEVELS = 0.002, 80.0, 7.0  # sigma_min, sigma_max, rho, as `sample` has them unless told otherwise

_DESCRIPTION = """\
Draw a labelled grid of images: the same seeds with several guidance weights, one weight a column;
with --trajectory, the way from noise to image, one noise level a column; or with --images, images
that are there already, as a contact sheet.
"""

_EXAMPLES = """\
examples:
  # what guidance does: one seed a row, one weight a column
  autoguide-fast grid --classes 0-4 --seeds 7 --guidance 1,1.5,2,3 --out weights.png

  # four seeds of one class of a published net
  autoguide-fast grid --model edm2-img512-s-autog-dino --classes 31 --seeds 0-3 \\
      --guidance 1,1.5,2,3 --out tree-frogs.png

  # how two images come about: what the guided net takes for the image, step by step
  autoguide-fast grid --trajectory denoised --guidance 1.5 --seeds 0,1 --at 0,8,16,20,24,28,32 \\
      --out trajectory.png

  # 100 of the images in a folder, a ZIP file or an .npz, drawn at random
  autoguide-fast grid --images images.zip --count 100 --out sheet.png
"""


def _weights(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, such as 1,1.5,2,3, got {text!r}"
        )
    return values


_SAMPLED = {
    "model": "digits",
    "guide": None,
    "guidance": None,
    "seeds": range(4),
    "classes": None,
    "steps": 32,
    "trajectory": None,
    "at": None,
    "device": None,
    "accept_licence": False,
}
_THERE = {"images": None, "count": 64, "columns": 8}


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `grid` to the command line."""
    parser = subparsers.add_parser(
        "grid",
        help="draw images over guidance weights or noise levels, or a contact sheet",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # so that `run` knows what was given
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="PNG to write")
    parser.add_argument("--quiet", action="store_true", default=False, help="no progress bar")
    add = parser.add_argument_group("what is sampled").add_argument
    add(
        "--model",
        metavar="NET",
        help="a name, a preset or a file, as for `sample` (default: digits)",
    )
    add("--guide", metavar="NET", help="the net to guide away from (default: the model's own)")
    add(
        "--guidance",
        type=_weights,
        metavar="W,W",
        help="weights, one for each column (default: 1,1.5,2,3); with --trajectory, one (default: "
        "that of a preset, otherwise 1)",
    )
    add("--seeds", type=integer_ranges, help="such as 0-3 (default: 0-3)")
    add(
        "--classes",
        type=integer_ranges,
        help="such as 3 or 0-9; paired with the seeds, and the shorter of both lists is repeated: "
        "a pair is a row (default: each seed draws its class)",
    )
    add("--steps", type=positive_integer, metavar="N", help="of sampling (default: 32)")
    add(
        "--trajectory",
        choices=("denoised", "state"),
        help="one noise level a column instead: the denoised image there, or the noisy state, "
        "scaled to the contrast of the data",
    )
    add(
        "--at",
        type=integer_ranges,
        metavar="STEPS",
        help="after which steps the trajectory is shown, 0 for pure noise (default: "
        f"{_COLUMNS} evenly spread)",
    )
    add("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add(
        "--accept-licence",
        action="store_true",
        help="agree to the licence of published weights, CC BY-NC-SA 4.0, and download them",
    )
    add = parser.add_argument_group("images that are there").add_argument
    add("--images", type=Path, metavar="PATH", help="a folder, a ZIP file or an .npz")
    add(
        "--count",
        type=positive_integer,
        metavar="N",
        help="of images, drawn at random, always the same (default: 64)",
    )
    add("--columns", type=positive_integer, metavar="N", help="images in a row (default: 8)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture and say where it is; returns 0."""
    check_output_file(arguments.out, "grid")
    there = hasattr(arguments, "images")
    for name in _SAMPLED if there else _THERE:
        if hasattr(arguments, name):
            raise ValueError(
                f"grid: --{name.replace('_', '-')} must come {'without' if there else 'with'} "
                "--images, got it otherwise; leave it out"
            )
    arguments = argparse.Namespace(**(_SAMPLED | _THERE | vars(arguments)))
    if arguments.images is not None:
        picture, about = contact_sheet(arguments.images, arguments.count, arguments.columns)
    elif arguments.trajectory is not None:
        picture, about = _trajectory(arguments)
    else:
        picture, about = _over_weights(arguments)
    write_atomically(arguments.out, lambda path: picture.save(path, "PNG"))
    print(f"{about}: {arguments.out}")
    return 0


def contact_sheet(path: Path, count: int, columns: int) -> tuple[Image.Image, str]:
    """A picture of images that are there, with the name of the first of each row, and its title.

    Raises:
        ValueError: there are none, or they differ in size.
    """
    from .. import plots
    from .pictures import open_pictures

    _check_count(count)
    with open_pictures(path, "grid") as pictures:
        numbers = pictures.some(count)
        images = pictures.stacked(numbers, "grid")
        columns = min(columns, len(numbers))
        firsts = [Path(pictures.names[i]).stem for i in numbers[::columns]]
        total = len(pictures.names)
    picture = plots.labelled_grid(images, firsts, [""] * columns)
    return picture, f"{len(numbers)} of {total} images in {path}"


def _check_count(count: int) -> None:
    if count > MOST_IMAGES:
        raise ValueError(
            f"grid: there must be at most {MOST_IMAGES} images in a picture, got {count}; show "
            "fewer"
        )


class _Rows:
    """The nets, and the seed and class of each row."""

    def __init__(self, arguments: argparse.Namespace, guided: bool) -> None:
        import torch

        from .. import checkpoints

        seeds, self.labels = list(arguments.seeds), None
        if arguments.classes is not None:
            count = max(len(seeds), len(arguments.classes))
            seeds = [seeds[i % len(seeds)] for i in range(count)]
            self.labels = [arguments.classes[i % len(arguments.classes)] for i in range(count)]
        self.seeds = seeds
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        names = [arguments.model, None]
        if guided:
            names[1] = checkpoints.bundled_guide(arguments.guide) or arguments.guide
            names[1] = names[1] or checkpoints.bundled_guide(arguments.model)
        for name in names:
            if name is not None:
                checkpoints.find(name, "grid: a net", arguments.accept_licence)
        self.model, self.guide = (n and checkpoints.load(n, device) for n in names)
        if self.model.encoder is None or self.model.img_channels > 4:
            raise ValueError(
                "grid: model must have an encoder that makes images of its samples, got "
                f"{arguments.model} without; set net.encoder and save it again"
            )

    @property
    def names(self) -> list[str]:
        """What stands before each row."""
        if self.labels is None:
            return [f"seed {seed}" for seed in self.seeds]
        return [f"class {k}, seed {s}" for k, s in zip(self.labels, self.seeds, strict=True)]

    def sample(self, **options: Any) -> np.ndarray | torch.Tensor:
        """One sample for each row."""
        from .. import sample

        return sample(self.model, self.guide, class_labels=self.labels, seeds=self.seeds, **options)


def _over_weights(arguments: argparse.Namespace) -> tuple[Image.Image, str]:
    from tqdm import tqdm

    from .. import plots

    if arguments.at is not None:
        raise ValueError("grid: --at must come with --trajectory, got it alone; leave it out")
    weights = arguments.guidance or _WEIGHTS
    rows = _Rows(arguments, any(weight != 1 for weight in weights))
    _check_count(len(rows.seeds) * len(weights))
    columns = []
    for weight in tqdm(weights, unit="weight", disable=arguments.quiet):
        columns.append(rows.sample(guidance=weight, num_steps=arguments.steps, array="numpy"))
    images = np.stack(columns, axis=1)
    picture = plots.labelled_grid(
        images.reshape(-1, *images.shape[2:]), rows.names, [f"w = {weight:g}" for weight in weights]
    )
    return picture, f"{len(rows.seeds)} seeds at {len(weights)} guidance weights"


def _trajectory(arguments: argparse.Namespace) -> tuple[Image.Image, str]:
    from .. import checkpoints, plots

    weights = arguments.guidance or (checkpoints.default_guidance(arguments.model),)
    if len(weights) != 1:
        raise ValueError(
            f"grid: --guidance must be one weight with --trajectory, got {len(weights)}; draw a "
            "picture of each"
        )
    steps = arguments.steps
    at = arguments.at or _evenly(steps)
    if max(at) > steps:
        raise ValueError(
            f"grid: --at must be steps from 0 to {steps}, got {max(at)}; raise --steps, or leave "
            "it out"
        )
    rows = _Rows(arguments, weights[0] != 1)
    _check_count(len(rows.seeds) * len(at))
    levels, shown = _on_the_way(rows, weights[0], steps, at, arguments.trajectory)
    images = np.stack(shown, axis=1)
    picture = plots.labelled_grid(
        images.reshape(-1, *images.shape[2:]),
        rows.names,
        [f"{_SIGMA} = {level:.3g}" for level in levels],
    )
    return picture, f"{len(rows.seeds)} seeds at {len(at)} noise levels, w = {weights[0]:g}"


def _evenly(steps: int) -> list[int]:
    count = min(_COLUMNS, steps + 1)
    return [round(i * steps / max(count - 1, 1)) for i in range(count)]


def _on_the_way(
    rows: _Rows, weight: float, steps: int, at: Sequence[int], kind: str
) -> tuple[list[float], list[np.ndarray]]:
    """Noise levels after these steps, and uint8 `[N, C, H, W]` for each, in their order."""
    import torch

    from ..generate import StepInfo
    from ..guidance import guided_denoiser
    from ..schedules import rho_schedule
    from ..seeds import StackedRandom

    model = rows.model
    device = next(model.parameters()).device
    streams = StackedRandom(device, rows.seeds)
    shape = [model.img_channels, model.img_resolution, model.img_resolution]
    noise = streams.randn(shape)
    labels = None
    if model.label_dim:
        drawn = streams.randint(model.label_dim)
        classes = drawn if rows.labels is None else torch.tensor(rows.labels, device=device)
    sigmas = [float(sigma) for sigma in rho_schedule(steps, *_LEVELS)]
    states = {0: noise * sigmas[0]}

    def keep(info: StepInfo) -> None:
        if info.step + 1 in at:
            part = states.setdefault(info.step + 1, torch.empty_like(noise))
            part[info.indices.start : info.indices.stop] = info.x

    # Where classes are out of range, this says so.
    levels = {"sigma_min": _LEVELS[0], "sigma_max": _LEVELS[1], "rho": _LEVELS[2]}
    rows.sample(guidance=weight, num_steps=steps, callback=keep, raw=True, **levels)
    if model.label_dim:
        labels = torch.nn.functional.one_hot(classes, model.label_dim).float()
    denoiser = guided_denoiser(model, rows.guide, weight)
    shown = []
    for step in at:
        x, sigma = states[step], sigmas[step]
        if kind == "state":
            x = x / (1 + (sigma / model.sigma_data) ** 2) ** 0.5
        elif sigma:
            with torch.no_grad():
                parts = [slice(i, i + 64) for i in range(0, len(x), 64)]
                level = torch.tensor(sigma, device=device)
                x = torch.cat(
                    [denoiser(x[p], level, None if labels is None else labels[p]) for p in parts]
                )
        shown.append(model.encoder.decode(x).cpu().numpy())
    return [sigmas[step] for step in at], shown
