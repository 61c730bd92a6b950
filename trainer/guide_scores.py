"""How well candidates would guide a net, foretold from data: the scores of `--guide auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from autoguide_fast import Diagnosis, checkpoints
from autoguide_fast.diagnosis import SIGMAS, diagnose
from autoguide_fast.networks import Precond

from .data import Dataset, open_dataset
from .data.datasets import BUNDLED
from .options import TrainOptions
from .training_data import encode, open_training_data

# Of each set. What the full diagnosis takes is many times what so many candidates need.
IMAGES = 512
LEVELS = SIGMAS[::2]
AT_ONCE = 8  # candidates that are in memory with the main net

Samples = tuple[torch.Tensor, "np.ndarray | None"]


@dataclass(frozen=True)
class Candidate:
    """A net that could guide.

    net: "past" for an earlier state of the main net, otherwise the channels of the net in words.
    file: where it lies. channels, nimg, ema: its width, what it was trained on, its average.
    cost: what its training took, in shares of the main net's.
    """

    net: str
    file: Path
    channels: int
    nimg: int
    ema: float
    cost: float


def samples_of(options: TrainOptions, count: int) -> dict[str, Samples]:
    """Training images and, where the data have such, held-out ones, with their classes or None.

    Args:
        options: of the main net.
        count: of each, at most.
    """
    sets: dict[str, Dataset] = {"training": open_training_data(options)}
    if options.data in BUNDLED and options.split == "train":
        sets["held out"] = open_dataset(options.data, "heldout")
    drawn_sets = {name: drawn(dataset, count, options.seed) for name, dataset in sets.items()}
    return {n: (y, labels if options.labelled else None) for n, (y, labels) in drawn_sets.items()}


def scores(
    main: Precond,
    candidates: Sequence[Candidate],
    samples: dict[str, Samples],
    seed: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """What each candidate would do as the only guide, by set of samples.

    The share of the main net's squared error that the best weights remove, negative where they are
    below 1, averaged over ln sigma. Of what docs/prediction.md compares, that orders guides best on
    held-out images; without the sign, a net that has hardly been trained can come first, since
    guiding backwards from it, too, removes error.
    """
    nets = {str(i): checkpoints.load(c.file, device) for i, c in enumerate(candidates)}
    found = diagnosed(main, nets, samples, LEVELS, seed, device)
    gains = {name: found.signed_gain_of_each(name).mean(0) for name in found.sets}
    return [{n: float(gain[i]) for n, gain in gains.items()} for i in range(len(candidates))]


def diagnosed(
    main: Precond,
    guides: dict[str, Precond],
    samples: dict[str, Samples],
    levels: Sequence[float],
    seed: int,
    device: torch.device,
) -> Diagnosis:
    """`diagnose` of a net that has classes or none."""
    labels = {name: classes for name, (_, classes) in samples.items()}
    return diagnose(
        main,
        guides,
        {name: y for name, (y, _) in samples.items()},
        labels if main.label_dim else None,
        sigmas=levels,
        seed=seed,
        device=device,
    )


def drawn(dataset: Dataset, count: int, seed: int) -> Samples:
    """Images as the net sees them, drawn without repetition, and their classes or None."""
    generator = np.random.default_rng(seed)
    indices = np.sort(generator.permutation(len(dataset))[:count])
    images, labels = dataset.batch(indices)
    images = torch.from_numpy(images)
    normal = None
    if dataset.encoder_name == "latents":
        shape = len(images), images.shape[1] // 2, *images.shape[2:]
        normal = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    return encode(dataset, images, normal), labels if dataset.num_classes else None
