"""Turns a dataset of images into one of latents."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np
import torch

from autoguide_fast.arguments import present_device
from autoguide_fast.encoders import STABILITY_VAE, LatentEncoder

from .convert import Report, fingerprint, finish, first_readable, name_broken, show
from .digest import digest
from .errors import BrokenFileError, UnsuitableError
from .outputs import open_output
from .pictures import decode, encode_array
from .sources import Origin, open_source
from .threads import map_ahead


def encode(
    source: str | os.PathLike,
    dest: str | os.PathLike,
    vae: str | os.PathLike = STABILITY_VAE,
    batch_size: int = 8,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Writes the images of `source` to `dest` as moments of a VAE's latents, with their labels.

    A file is float32 [8, H/8, W/8] in NPY's format: the mean of 4 channels and their standard
    deviation, unscaled. Broken images and interruption are as with `convert.convert`.

    Args:
        source: RGB images of one size, divisible by 8; see `sources.open_source`.
        dest: a folder, or a ZIP file if it ends in .zip; must not exist.
        vae: see `autoguide_fast.encoders.LatentEncoder`.
        batch_size: images at a time, >= 1.
        device: where the VAE runs.
        workers: threads that read images, >= 1.
        progress: show a bar.

    Raises:
        ValueError: an argument is wrong, images differ in size, no image can be read, the VAE
            cannot be loaded or does not fit, or the output cannot be written.
        ImportError: diffusers is not installed.
    """
    if batch_size < 1:
        raise ValueError(f"dataset: batch_size must be >= 1, got {batch_size}; raise it")
    device = present_device(device, "dataset")
    opened = open_source(source)
    encoder = LatentEncoder(vae)

    first, image = first_readable(opened, lambda i: decode(opened.read(i), opened.where(i)))
    shape = image.shape
    if shape[0] != 3 or shape[1] % encoder.pixels or shape[1] != shape[2]:
        raise ValueError(
            f"dataset: source must hold square RGB images of a size divisible by {encoder.pixels}, "
            f"got {shape[2]}x{shape[1]} with {shape[0]} channels in {opened.where(first)}; run "
            "`autoguide-fast dataset convert` first"
        )

    weights = encoder.load().state_dict().values()  # fails before the work

    def checked(index: int) -> tuple[np.ndarray, Origin] | BrokenFileError:
        try:
            data, origin = opened.read_with_origin(index)
            image = decode(data, opened.where(index))
        except BrokenFileError as error:
            return error
        if image.shape != shape:
            raise UnsuitableError(
                f"dataset: {opened.where(index)} must be {shape[2]}x{shape[1]} with 3 channels as "
                f"the first, got {image.shape[2]}x{image.shape[1]} with {image.shape[0]}; run "
                "`autoguide-fast dataset convert` first"
            )
        return image, origin

    report = Report(len(opened.names), notes=list(opened.notes))
    options = {
        "command": "encode",
        "files": fingerprint(opened),
        "vae": str(vae),
        "weights": digest(*(w.detach().float().numpy() for w in weights)),
    }
    with (
        _memory(batch_size),
        open_output(source, dest, ".npy", options, opened.unchanged) as output,
    ):
        todo = [i for i in range(report.total) if not output.has(i)]
        report.resumed, report.changed = report.total - len(todo), output.changed
        results = map_ahead(checked, todo, workers, ahead=batch_size + 8 * workers)
        readable = show(todo, results, report, progress, "encode")
        for group in _groups(readable, batch_size):
            images = torch.from_numpy(np.stack([image for _, (image, _) in group])).to(device)
            moments = encoder.moments(images).cpu().numpy()
            for (index, (_, origin)), each in zip(group, moments, strict=True):
                if np.isfinite(each).all():
                    output.write(index, encode_array(each), origin)
                else:
                    name_broken(
                        report,
                        BrokenFileError(
                            opened.where(index), "an image whose latents are finite", "nan or inf"
                        ),
                    )
        report.written = finish(output, opened, report)
    return report


@contextlib.contextmanager
def _memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            f"dataset: batch_size must leave the VAE memory to work in, got {batch_size}; repeat "
            "the command with a smaller one: it goes on where it stopped"
        ) from None


def _groups(items: Iterator, size: int) -> Iterator[list]:
    while group := list(itertools.islice(items, size)):
        yield group
