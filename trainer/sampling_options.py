"""Options by which images are drawn to be measured, and the nets that draw them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoguide_fast.cli.arguments import integer_ranges, positive_integer, weight_or_file

from .image_sources import SampledImages, Sampling
from .options import UNLABELLED

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float32", "bfloat16", "int8", "float16", "float8_e4m3fn")
DEFAULT_BATCH = 64
_ROUNDING = {
    "pixels": "uint8 by the net's encoder: x * 127.5 + 128, clamped and truncated",
    "latents": "uint8 by the net's encoder: the VAE's output * 255, clamped and truncated",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options to a command's parser."""
    add = parser.add_argument_group("images from the sampler").add_argument
    add(
        "--model",
        "--preset",
        dest="model",
        metavar="NET",
        help="a preset (see `autoguide-fast presets`), a bundled net's name, a file, or with --ema "
        "the folder of a run",
    )
    add("--ema", type=float, metavar="S", help="of --model, where it is the folder of a run")
    add(
        "--guide",
        metavar="NET",
        help="the net to guide away from, likewise; 'unlabelled' is the model itself without its "
        "label (default: the guide that a preset or a bundled net comes with)",
    )
    add("--guide-ema", type=float, metavar="S", help="of --guide, likewise")
    add(
        "--guidance",
        type=weight_or_file,
        metavar="W",
        help="guidance weight, or auto or a file that `diagnose` wrote, as for `sample`; 1 is no "
        "guidance (default: that of a preset, otherwise 1)",
    )
    add(
        "--interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="guide only at noise levels above LO, up to and including HI",
    )
    add("--seeds", type=integer_ranges, metavar="S", help="one image each, such as 0-49999")
    add(
        "--classes",
        type=integer_ranges,
        metavar="C",
        help="such as 3 or 0-9, in turn (default: each seed draws its class)",
    )
    add("--balanced", action="store_true", help="all classes of the net in turn")
    add("--steps", type=positive_integer, default=32, metavar="N", help="(default: 32)")
    add("--sigma-min", type=float, metavar="S", help="lowest noise level (default: the net's)")
    add("--sigma-max", type=float, metavar="S", help="highest noise level (default: the net's)")
    add("--rho", type=float, default=7.0, metavar="R", help="of the noise levels (default: 7)")
    add(
        "--churn",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="C",
        help="S_churn [S_min S_max S_noise] (default: 0 0 inf 1)",
    )
    add(
        "--compute-dtype",
        choices=DTYPES,
        metavar="TYPE",
        help="what the networks multiply, as for `sample` (default: as for `sample`)",
    )
    add(
        "--sample-batch",
        type=positive_integer,
        default=DEFAULT_BATCH,
        metavar="N",
        help=f"images at a time (default: {DEFAULT_BATCH})",
    )
    add("--accept-licence", action="store_true", help="of published weights, as for `sample`")


def given(arguments: argparse.Namespace) -> list[str]:
    """Those options about sampling that were given, but for --model."""
    names = ("ema", "guide", "guide_ema", "guidance", "interval", "seeds", "classes")
    names += ("balanced", "sigma_min", "sigma_max", "compute_dtype")
    found = [name for name in names if getattr(arguments, name) not in (None, False)]
    return [f"--{name.replace('_', '-')}" for name in found]


def sampled_images(arguments: argparse.Namespace, device: str, repeats: int) -> SampledImages:
    """The images that the options ask for, those of all repeats one after the other.

    A repeat takes the seeds of the one before, moved on by their whole width.

    Raises:
        ValueError: options that do not fit.
    """
    from autoguide_fast import checkpoints
    from autoguide_fast.guidance import weights_of
    from autoguide_fast.guidance_input import guidance_input

    if not arguments.seeds or len(arguments.seeds) < 2:
        raise ValueError(
            "evaluate: --seeds must name at least two images, got "
            f"{len(arguments.seeds or [])}; 0-49999 is usual"
        )
    if arguments.balanced and arguments.classes is not None:
        raise ValueError(
            "evaluate: --balanced must come without --classes, got both; leave out one"
        )
    if len(arguments.churn) > 4:
        raise ValueError(
            f"evaluate: --churn must be at most four numbers, got {len(arguments.churn)}; they are "
            "S_churn S_min S_max S_noise"
        )
    churn = arguments.churn + [0.0, 0.0, math.inf, 1.0][len(arguments.churn) :]
    guidance = arguments.guidance
    if guidance is None:
        guidance = checkpoints.default_guidance(arguments.model)
    agreed = arguments.accept_licence
    model, about = load_net(arguments.model, arguments.ema, "--model", device, agreed)
    guide, about_guide = None, None
    # A net with the weight for an input has its guide within.
    within = arguments.guide is None and "guidance_range" in model.config
    if guidance != 1 and not within:
        guide, about_guide = _guide(arguments, model, device)
    shown: Any = guidance
    if isinstance(guidance, str):
        if within:
            guidance_input(guidance, None, model.config["guidance_range"])  # which says why not
        file = None
        if arguments.ema is None:
            file = checkpoints.find(arguments.model, "evaluate: --model", agreed)
        saved = weights_of(guidance, file, "evaluate")
        saved.check(model, [guide], "evaluate")
        guidance = saved.functions()[0]
        shown = replace(saved, name=Path(saved.name).name).as_dict()
    options: dict[str, Any] = {
        "guidance": guidance,
        "interval": tuple(arguments.interval) if arguments.interval and guide else None,
        "num_steps": arguments.steps,
        "sigma_min": arguments.sigma_min,
        "sigma_max": arguments.sigma_max,
        "rho": arguments.rho,
        **dict(zip(("S_churn", "S_min", "S_max", "S_noise"), churn, strict=True)),
    }
    described = {
        **options,
        "guidance": shown,
        "S_max": "inf" if churn[2] == math.inf else churn[2],
        "compute_dtype": arguments.compute_dtype,
        "batch": arguments.sample_batch,
        "device": device.partition(":")[0],
    }
    label_dim = getattr(model, "label_dim", 0)
    seeds, labels, rule = _seeds_and_labels(arguments, label_dim, repeats)
    draw = None
    if labels is None and label_dim:
        draw = _drawn_labels(model, label_dim)
    dtype = arguments.compute_dtype
    if dtype not in (None, "auto"):
        import torch

        dtype = getattr(torch, dtype)
    sampling = Sampling(
        {"model": model, "guide": guide, **options, "compute_dtype": dtype}, arguments.sample_batch
    )
    return SampledImages(
        sampling,
        seeds,
        labels,
        rule,
        draw,
        {
            "rounding": _ROUNDING.get(getattr(model.encoder, "name", ""), "by the net's encoder"),
            "model": about,
            "guide": about_guide,
            "sampler": described,
        },
    )


def load_net(
    name: str, ema: float | None, option: str, device: str, accept_licence: bool = False
) -> tuple[Any, dict]:
    """A net on a device, and what a protocol says of it: its name and what tells it from others.

    Args:
        name: a preset, a bundled net, a file, or with `ema` the folder of a run.
        ema: the length of the average, of a run.
        option: that named it, for messages.
        device: where to put it.
        accept_licence: of published weights.
    """
    from autoguide_fast import checkpoints
    from autoguide_fast.checkpoints import Snapshots
    from autoguide_fast.checkpoints.run_folder import is_run_folder
    from autoguide_fast.files import sha256

    if ema is not None:
        net = checkpoints.load(name, device, ema)
        return net, {"name": Path(name).name, "ema": ema, "digest": Snapshots(name).identity()}
    if Path(name).is_dir():
        folder = is_run_folder(name)
        ema_option = "--ema" if option == "--model" else f"{option}-ema"
        raise ValueError(
            f"evaluate: {option} must be a file or a run's folder with its EMA length, got the "
            f"folder {name}; " + (f"add {ema_option} 0.05" if folder else "name a file in it")
        )
    path = checkpoints.find(name, f"evaluate: {option}", accept_licence)
    digest = checkpoints.read_header(path, "evaluate").get("checksum") or sha256(path)
    shown = name if name in checkpoints.BUNDLED or checkpoints.presets().get(name) else path.name
    return checkpoints.load(path, device), {"name": shown, "digest": digest}


def _guide(arguments: argparse.Namespace, model: Any, device: str) -> tuple[Any, dict]:
    from autoguide_fast import checkpoints, unlabelled

    if arguments.guide == UNLABELLED:
        return unlabelled(model), {"name": UNLABELLED}
    named = checkpoints.bundled_guide(arguments.guide) if arguments.guide_ema is None else None
    name = named or arguments.guide or checkpoints.bundled_guide(arguments.model)
    if name is None:
        raise ValueError(
            "evaluate: --guide must be given where --guidance is not 1, got none; name a worse "
            f"version of the model, or '{UNLABELLED}'"
        )
    return load_net(name, arguments.guide_ema, "--guide", device, arguments.accept_licence)


def _seeds_and_labels(
    arguments: argparse.Namespace, label_dim: int, repeats: int
) -> tuple[list[int], list[int] | None, str]:
    """Seeds and labels of all repeats, and how labels were chosen, in words."""
    first: list[int] = arguments.seeds
    span = max(first) - min(first) + 1
    seeds = [seed + repeat * span for repeat in range(repeats) for seed in first]
    classes: list[int] | None = arguments.classes
    rule = "drawn from each seed" if label_dim else "none: the net has no classes"
    if arguments.balanced or classes is not None:
        if not label_dim:
            raise ValueError(
                "evaluate: --classes and --balanced must be left out for a net without classes, "
                f"got one of them with {arguments.model}"
            )
        rule = "all classes in turn"
        if classes is not None:
            rule = f"classes {','.join(map(str, classes[:20]))} in turn"
    if arguments.balanced:
        classes = list(range(label_dim))
    if classes is None:
        return seeds, None, rule
    labels = [classes[i % len(classes)] for _ in range(repeats) for i in range(len(first))]
    return seeds, labels, rule


def _drawn_labels(model: Any, label_dim: int) -> Callable[[Sequence[int]], np.ndarray]:
    """A function that tells which classes seeds draw, as the sampler draws them."""
    shape = (model.img_channels, model.img_resolution, model.img_resolution)

    def draw(seeds: Sequence[int]) -> np.ndarray:
        from autoguide_fast.seeds import StackedRandom

        random = StackedRandom("cpu", seeds)
        random.randn(shape)  # comes first in each seed's stream
        return random.randint(label_dim).numpy()

    return draw


def chosen_device(name: str | None, local_rank: int) -> str:
    """The device that an option names, or the GPU of this process if there is one, or the CPU."""
    import torch

    from autoguide_fast.arguments import present_device

    if name is None:
        name = (
            f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        )
    found: torch.device = present_device(name, "evaluate")
    return str(found)
