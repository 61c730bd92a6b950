"""The dataset of a run: opened, checked against the run's options, encoded."""

from __future__ import annotations

import sys

import torch

from autoguide_fast import encoders

from .data import Dataset, open_dataset
from .options import TrainOptions

_MANY = 20_000  # files, whose reading one may have to wait for
# Digests of folders by their stamps, so that main net and guide do not both read them.
_CONTENTS: dict[str, str] = {}


def open_training_data(options: TrainOptions) -> Dataset:
    """The dataset that a run trains on (see `trainer.data`), checked against the run's options.

    Raises:
        ValueError: there is none, or it does not fit; says what to change.
    """
    dataset = open_dataset(options.data, options.split)
    check_training_data(dataset, options)
    return dataset


def check_training_data(dataset: Dataset, options: TrainOptions) -> None:
    """Raises ValueError where a dataset does not fit the options of a run."""
    if options.labelled and not dataset.num_classes:
        raise ValueError(
            f"train: data must have class labels for a net with labels, got {dataset.name} "
            "without; add --no-labels, or a dataset.json or a folder for each class"
        )
    if options.resolution not in (0, dataset.resolution):
        raise ValueError(
            f"train: data must have resolution {options.resolution}, got {dataset.name} with "
            f"{dataset.resolution}; convert it with `autoguide-fast dataset convert`, or set "
            f"--resolution {dataset.resolution}"
        )
    stored = 2 * encoders.LatentEncoder.channels
    if dataset.encoder_name == "latents" and dataset.channels != stored:
        raise ValueError(
            f"train: data must hold latents of {stored} channels, means and deviations, got "
            f"{dataset.name} with {dataset.channels}; write them with "
            "`autoguide-fast dataset encode`"
        )
    channels = image_channels(dataset)
    if options.img_channels not in (0, channels):
        raise ValueError(
            f"train: data must have {options.img_channels} channels, got {dataset.name} with "
            f"{channels}; choose the preset that suits them, or set --img-channels {channels}"
        )
    if options.flip and dataset.encoder_name == "latents":
        raise ValueError(
            "train: flip must be off for latents, got flip=True; a mirrored latent is not the "
            "latent of the mirrored image: mirror before `autoguide-fast dataset encode`"
        )


def identity(dataset: Dataset, known: dict | None = None) -> dict:
    """What a dataset holds, as plain values; but for `stamp` equal for the same data anywhere.

    Args:
        dataset: the dataset.
        known: what this gave earlier. Files that nobody has written to since are not read again.
    """
    held = {
        "images": len(dataset),
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "classes": dataset.num_classes,
    }
    if not hasattr(dataset, "digest"):
        return held
    stamp = dataset.stamp() if hasattr(dataset, "stamp") else None
    if stamp is None:
        return {**held, "contents": dataset.digest()}
    if known is not None and known.get("stamp") == stamp:
        _CONTENTS[stamp] = known["contents"]
    if stamp not in _CONTENTS:
        if len(dataset) >= _MANY:
            print(
                f"train: reading all {len(dataset)} files of {dataset.name} once, by which the run "
                "knows them again; of a ZIP file it need not",
                file=sys.stderr,
            )
        _CONTENTS[stamp] = dataset.digest()
    return {**held, "contents": _CONTENTS[stamp], "stamp": stamp}


def shape_of(options: TrainOptions) -> tuple[int, int, int]:
    """Resolution, channels and classes of what the net sees: what the options say, else the data.

    A preset says it all but the classes, ImageNet's 1000 unless the data are there to be asked.
    """
    if options.resolution and options.img_channels and options.data == "digits":
        return options.resolution, options.img_channels, 1000 if options.labelled else 0
    dataset = open_training_data(options)
    classes = dataset.num_classes if options.labelled else 0
    return dataset.resolution, image_channels(dataset), classes


def attention_note(options: TrainOptions, resolution: int) -> str | None:
    """A sentence where attention was asked for and no block has it, else None."""
    levels = [resolution >> level for level in range(len(options.channel_mult))]
    wide = [
        level
        for level, multiple in zip(levels, options.channel_mult, strict=True)
        if options.channels * multiple >= options.channels_per_head
    ]
    asked = options.attn_resolutions
    if not asked or any(level in asked for level in wide):
        return None
    shown = " ".join(map(str, asked))
    if any(level in asked for level in levels):
        return (
            f"attn_resolutions {shown} has no effect: the net is narrower there than "
            f"channels_per_head={options.channels_per_head}; lower --channels-per-head"
        )
    remedy = f"for example {' '.join(map(str, wide[-1:] or levels[-1:]))}"
    return (
        f"attn_resolutions {shown} has no effect: the levels of the net are "
        f"{' '.join(map(str, levels))}; set --attn-resolutions to some of them, {remedy}"
    )


def image_channels(dataset: Dataset) -> int:
    """Channels of what the net sees: a stored latent holds its mean and its deviation."""
    return dataset.channels // 2 if dataset.encoder_name == "latents" else dataset.channels


def encode(dataset: Dataset, images: torch.Tensor, normal: torch.Tensor | None) -> torch.Tensor:
    """What the net is trained on, float32, from what a dataset gives.

    Args:
        dataset: the dataset.
        images: what its `batch` returned, as a tensor.
        normal: standard normal numbers with which latents are drawn; None for pixels.
    """
    encoder = encoders.encoder(dataset.encoder_name)
    assert encoder is not None  # only no name has none
    if isinstance(encoder, encoders.LatentEncoder):
        return encoder.encode(images, normal)
    return encoder.encode(images)
