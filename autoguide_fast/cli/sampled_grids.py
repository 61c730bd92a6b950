"""What `grid` samples: the same seeds at several guidance weights, or on the way from noise."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from PIL import Image

MOST_IMAGES = 1024
COLUMNS = 8  # of a trajectory, unless told otherwise
WEIGHTS = (1.0, 1.5, 2.0, 3.0)
_LEVELS = 0.002, 80.0, 7.0  # sigma_min, sigma_max, rho, as `sample` has them unless told otherwise
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
_NAMED = 12  # rows or columns in a description


@dataclass(frozen=True)
class Drawing:
    """A picture, in a few words what is in it, and in full for who cannot see it."""

    picture: Image.Image
    about: str
    description: str


def check_count(count: int) -> None:
    """Raise ValueError for more images than one picture should have."""
    if count > MOST_IMAGES:
        raise ValueError(
            f"grid: there must be at most {MOST_IMAGES} images in a picture, got {count}; show "
            "fewer"
        )


class Rows:
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
        self.nets = [arguments.model]
        if guided:
            guide = checkpoints.bundled_guide(arguments.guide) or arguments.guide
            guide = guide or checkpoints.bundled_guide(arguments.model)
            self.nets += [guide] if guide else []
        for net in self.nets:
            checkpoints.find(net, "grid: a net", arguments.accept_licence)
        self.steps = arguments.steps
        loaded: list[Any] = [checkpoints.load(net, device) for net in self.nets]
        self.model, self.guide = (*loaded, None)[:2]
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

    def weight(self, weight: float | str) -> Any:
        """A weight as `sample` takes it for these nets: that of a file as a function."""
        from .. import checkpoints
        from ..guidance import weights_of
        from ..guidance_input import guidance_input, guidance_range

        if not isinstance(weight, str):
            return weight
        if self.guide is None and (learnt := guidance_range(self.model)):
            guidance_input(weight, None, learnt)  # which says why not
        saved = weights_of(weight, checkpoints.find(self.nets[0], "grid: model"), "grid")
        saved.check(self.model, [] if self.guide is None else [self.guide], "grid")
        return saved.functions()[0]

    def sample(self, **options: Any) -> np.ndarray | torch.Tensor:
        """One sample for each row."""
        from .. import sample

        return sample(self.model, self.guide, class_labels=self.labels, seeds=self.seeds, **options)

    def drawing(self, images: np.ndarray, columns: Sequence[str], about: str) -> Drawing:
        """The picture of uint8 `[rows, columns, C, H, W]`."""
        from .. import plots

        nets = " guided by ".join(self.nets)
        return Drawing(
            plots.labelled_grid(images.reshape(-1, *images.shape[2:]), self.names, columns),
            about,
            f"Grid of samples of {nets}, {self.steps} steps. Rows: {_listed(self.names)}. Columns: "
            f"{_listed(columns)}.",
        )


def _equals(weight: float | str) -> str:
    return f"w = {Path(weight).name if isinstance(weight, str) else format(weight, 'g')}"


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return "; ".join([*names[:_NAMED], *more])


def over_weights(arguments: argparse.Namespace) -> Drawing:
    """One guidance weight a column."""
    from tqdm import tqdm

    if arguments.at is not None:
        raise ValueError("grid: --at must come with --trajectory, got it alone; leave it out")
    weights = arguments.guidance or WEIGHTS
    rows = Rows(arguments, any(weight != 1 for weight in weights))
    check_count(len(rows.seeds) * len(weights))
    columns = []
    ready = [rows.weight(weight) for weight in weights]
    for weight in tqdm(ready, unit="weight", disable=arguments.quiet):
        columns.append(rows.sample(guidance=weight, num_steps=arguments.steps, array="numpy"))
    images = np.stack(columns, axis=1)
    return rows.drawing(
        images,
        [_equals(weight) for weight in weights],
        f"{len(rows.seeds)} seeds at {len(weights)} guidance weights",
    )


def trajectory(arguments: argparse.Namespace) -> Drawing:
    """One noise level a column, from pure noise to the image."""
    from .. import checkpoints

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
    rows = Rows(arguments, weights[0] != 1)
    check_count(len(rows.seeds) * len(at))
    levels, shown = _on_the_way(rows, rows.weight(weights[0]), steps, at, arguments.trajectory)
    images = np.stack(shown, axis=1)
    return rows.drawing(
        images,
        [f"{_SIGMA} = {level:.3g}" for level in levels],
        f"{len(rows.seeds)} seeds at {len(at)} noise levels, {_equals(weights[0])}",
    )


def _evenly(steps: int) -> list[int]:
    count = min(COLUMNS, steps + 1)
    return [round(i * steps / max(count - 1, 1)) for i in range(count)]


def _on_the_way(
    rows: Rows, weight: Any, steps: int, at: Sequence[int], kind: str
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
