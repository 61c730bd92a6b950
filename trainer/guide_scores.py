"""How well candidates would guide a net, foretold from data: the scores of `--guide auto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

# What the full diagnosis takes is many times what so many candidates need.
IMAGES = 256
LEVELS = SIGMAS[::2]
PAST = "past"
AT_ONCE = 8  # candidates that are in memory with the main net

Samples = tuple[torch.Tensor, "np.ndarray | None"]


@dataclass(frozen=True)
class Candidate:
    """A net that could guide.

    net: `PAST` for an earlier state of the main net, otherwise the channels of the net in words.
    file: where it lies. channels, nimg, ema: its width, what it was trained on, its average.
    cost: what its training took, in shares of the main net's. evaluation: what one of its
    evaluations on one image takes, likewise.
    """

    net: str
    file: Path
    channels: int
    nimg: int
    ema: float
    cost: float
    evaluation: float


def scored_on(options: TrainOptions, count: int) -> tuple[str, Samples]:
    """Which images candidates are scored on, and these: held-out ones where the data have such.

    Args:
        options: of the main net.
        count: at most.
    """
    if options.data not in BUNDLED or options.split != "train":
        return "training", training_images(options, count)
    return "held-out", _of(options, open_dataset(options.data, "heldout"), count)


def training_images(options: TrainOptions, count: int) -> Samples:
    """Images that a net was trained on, with the classes that it was told, or None."""
    return _of(options, open_training_data(options), count)


def _of(options: TrainOptions, dataset: Dataset, count: int) -> Samples:
    images, labels = drawn(dataset, count, options.seed)
    return images, labels if options.labelled else None


def scores(
    main: Precond,
    candidates: Sequence[Candidate],
    samples: Samples,
    seed: int,
    device: torch.device,
) -> list[float]:
    """What each candidate would do as the only guide.

    The share of the main net's squared error that the best weights remove, negative where they are
    below 1, averaged over ln sigma. Of what docs/prediction.md compares, that orders guides best on
    held-out images; without the sign, a net that has hardly been trained can come first, since
    guiding backwards from it, too, removes error.
    """
    nets = {str(i): checkpoints.load(c.file, device) for i, c in enumerate(candidates)}
    found = diagnosed(main, nets, "scored", samples, LEVELS, seed, device)
    return found.signed_gain_of_each().mean(0).tolist()


def diagnosed(
    main: Precond,
    guides: dict[str, Precond],
    name: str,
    samples: Samples,
    levels: Sequence[float],
    seed: int,
    device: torch.device,
) -> Diagnosis:
    """`diagnose` of a net that has classes or none, on samples of this name."""
    images, labels = samples
    return diagnose(
        main,
        guides,
        {name: images},
        {name: labels} if main.label_dim else None,
        sigmas=levels,
        seed=seed,
        device=device,
    )


def drawn(dataset: Dataset, count: int, seed: int) -> Samples:
    """Images as the net sees them, drawn without repetition, and their classes or None."""
    generator = np.random.default_rng(seed)
    return _encoded(dataset, np.sort(generator.permutation(len(dataset))[:count]), generator)


def drawn_batches(dataset: Dataset, count: int, seed: int, at_once: int) -> Iterator[Samples]:
    """As `drawn`, a few at a time, in an order drawn at random."""
    generator = np.random.default_rng(seed)
    indices = generator.permutation(len(dataset))[:count]
    for first in range(0, len(indices), at_once):
        yield _encoded(dataset, indices[first : first + at_once], generator)


def _encoded(dataset: Dataset, indices: np.ndarray, generator: np.random.Generator) -> Samples:
    images, labels = dataset.batch(indices)
    images = torch.from_numpy(images)
    normal = None
    if dataset.encoder_name == "latents":
        shape = len(images), images.shape[1] // 2, *images.shape[2:]
        normal = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    return encode(dataset, images, normal), labels if dataset.num_classes else None
