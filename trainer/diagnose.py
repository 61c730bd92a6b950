"""`autoguide-fast diagnose`: whether a guide helps, from data, in seconds and without sampling."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from autoguide_fast.cli.arguments import check_image_count, check_output_file, positive_integer

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .data import Dataset

_EXAMPLES = """\
examples:
  autoguide-fast diagnose
  autoguide-fast diagnose --model runs/a/nets/main.safetensors --guide small=s.safetensors
      early=e.safetensors --data img64.zip --heldout img64-val.zip --images 2000 --out found.json
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `diagnose` to the command line."""
    parser = subparsers.add_parser(
        "diagnose",
        help="tell from data whether a guide helps, at which noise levels and how much",
        description="Evaluates a model and its guides on noisy data and prints, for each noise "
        "level, the guidance weight that brings them nearest to the perfect denoiser, with its "
        "95 % bootstrap interval and the share of the model's squared error that it removes. On "
        "data that the model was trained on and on data that it was not, side by side.",
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
        help="names or files of guides, or NAME=NET; several are weighted together "
        "(default: digits-guide)",
    )
    add(
        "--data",
        default="digits",
        metavar="DATA",
        help="what the model was trained on: digits, photos, a folder or a ZIP file; of what is "
        "bundled the held-out images are taken as well (default: digits)",
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
    add("--out", type=Path, metavar="FILE", help="write every figure as JSON")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Diagnoses, prints the tables, writes the figures."""
    from tqdm import tqdm

    from autoguide_fast import load
    from autoguide_fast.diagnosis import SIGMAS, diagnose

    check_image_count(arguments.images, 2, "diagnose", "one image has no interval")
    check_output_file(arguments.out, "diagnose")
    model = load(arguments.model, arguments.device or "cpu")
    images, labels = {}, {}
    for name, dataset in _datasets(arguments.data, arguments.heldout).items():
        images[name], labels[name] = _drawn(dataset, arguments.images, arguments.seed)
    with tqdm(disable=True if arguments.quiet else None, unit="batch", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = diagnose(
            model,
            _guides(arguments.guide),
            images,
            labels if model.label_dim else None,
            sigmas=arguments.sigmas or SIGMAS,
            seed=arguments.seed,
            device=arguments.device,
            progress=progress,
        )
    for name in found.sets:
        print(f"{name}, {len(images[name])} images")
        print(found.summary(name))
        print()
    if arguments.out is not None:
        found.save(arguments.out)
        print(f"wrote {arguments.out}")


def _guides(values: list[str]) -> dict[str, str]:
    guides: dict[str, str] = {}
    for value in values:
        name, separator, net = value.partition("=")
        name, net = (name, net) if separator else (Path(value).stem, value)
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


def _drawn(dataset: Dataset, count: int, seed: int) -> tuple[torch.Tensor, np.ndarray | None]:
    """Images as the net sees them, drawn without repetition, and their classes or None."""
    import numpy as np
    import torch

    from .training_data import encode

    generator = np.random.default_rng(seed)
    indices = np.sort(generator.permutation(len(dataset))[:count])
    images, labels = dataset.batch(indices)
    images = torch.from_numpy(images)
    normal = None
    if dataset.encoder_name == "latents":
        shape = len(images), images.shape[1] // 2, *images.shape[2:]
        normal = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    return encode(dataset, images, normal), labels if dataset.num_classes else None
