"""The dataset of a run: opened, checked against the run's options, encoded."""

from __future__ import annotations

import sys

import torch

from autoguide_fast import encoders

from .data import open_dataset
from .options import TrainOptions

_MANY = 20_000  # files, whose reading one may have to wait for
# Digests of folders by their stamps, so that main net and guide do not both read them.
_CONTENTS: dict[str, str] = {}


def open_source(options: TrainOptions):
    """The dataset that a run trains on (see `trainer.data`), checked against the run's options.

    Raises:
        ValueError: there is none, or it does not fit; says what to change.
    """
    source = open_dataset(options.data, options.split)
    check_source(source, options)
    return source


def check_source(source, options: TrainOptions) -> None:
    """Raises ValueError where a dataset does not fit the options of a run."""
    if options.labelled and not source.num_classes:
        raise ValueError(
            f"train: data must have class labels for a net with labels, got {source.name} without; "
            "add --no-labels, or a dataset.json or a folder for each class"
        )
    if options.resolution not in (0, source.resolution):
        raise ValueError(
            f"train: data must have resolution {options.resolution}, got {source.name} with "
            f"{source.resolution}; convert it with `autoguide-fast dataset convert`, or set "
            f"--resolution {source.resolution}"
        )
    stored = 2 * encoders.LatentEncoder.channels
    if source.encoder_name == "latents" and source.channels != stored:
        raise ValueError(
            f"train: data must hold latents of {stored} channels, means and deviations, got "
            f"{source.name} with {source.channels}; write them with `autoguide-fast dataset encode`"
        )
    channels = image_channels(source)
    if options.img_channels not in (0, channels):
        raise ValueError(
            f"train: data must have {options.img_channels} channels, got {source.name} with "
            f"{channels}; choose the preset that suits them, or set --img-channels {channels}"
        )
    if options.flip and source.encoder_name == "latents":
        raise ValueError(
            "train: flip must be off for latents, got flip=True; a mirrored latent is not the "
            "latent of the mirrored image: mirror before `autoguide-fast dataset encode`"
        )


def identity(source, known: dict | None = None) -> dict:
    """What a dataset holds, as plain values; but for `stamp` equal for the same data anywhere.

    Args:
        source: the dataset.
        known: what this gave earlier. Files that nobody has written to since are not read again.
    """
    held = {
        "images": len(source),
        "resolution": source.resolution,
        "channels": source.channels,
        "classes": source.num_classes,
    }
    if not hasattr(source, "digest"):
        return held
    stamp = source.stamp() if hasattr(source, "stamp") else None
    if stamp is None:
        return {**held, "contents": source.digest()}
    if known is not None and known.get("stamp") == stamp:
        _CONTENTS[stamp] = known["contents"]
    if stamp not in _CONTENTS:
        if len(source) >= _MANY:
            print(
                f"train: reading all {len(source)} files of {source.name} once, by which the run "
                "knows them again; of a ZIP file it need not",
                file=sys.stderr,
            )
        _CONTENTS[stamp] = source.digest()
    return {**held, "contents": _CONTENTS[stamp], "stamp": stamp}


def shape_of(options: TrainOptions) -> tuple[int, int, int]:
    """Resolution, channels and classes of what the net sees: what the options say, else the data.

    A preset says it all but the classes, ImageNet's 1000 unless the data are there to be asked.
    """
    if options.resolution and options.img_channels and options.data == "digits":
        return options.resolution, options.img_channels, 1000 if options.labelled else 0
    source = open_source(options)
    classes = source.num_classes if options.labelled else 0
    return source.resolution, image_channels(source), classes


def image_channels(source) -> int:
    """Channels of what the net sees: a stored latent holds its mean and its deviation."""
    return source.channels // 2 if source.encoder_name == "latents" else source.channels


def encode(source, images: torch.Tensor, normal: torch.Tensor | None) -> torch.Tensor:
    """What the net is trained on, float32, from what a dataset gives.

    Args:
        source: the dataset.
        images: what its `batch` returned, as a tensor.
        normal: standard normal numbers with which latents are drawn; None for pixels.
    """
    encoder = encoders.encoder(source.encoder_name)
    return encoder.encode(images) if normal is None else encoder.encode(images, normal)
