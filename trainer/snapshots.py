"""The averages that a run leaves on disk."""

from __future__ import annotations

from pathlib import Path

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.run_folder import SNAPSHOTS
from autoguide_fast.ema import length_name
from autoguide_fast.networks import Precond

from .durable import not_written


def average_path(out: Path, nimg: int, sigma_rel: float) -> Path:
    """Where a run keeps an average."""
    return out / SNAPSHOTS / average_name(nimg, sigma_rel)


def average_name(nimg: int, sigma_rel: float) -> str:
    """Name of the file of an average; every width has its own."""
    return f"{nimg:09d}-{length_name(sigma_rel)}.safetensors"


def save_average(net: Precond, out: Path, nimg: int, sigma_rel: float) -> Path:
    """Writes one average as it stands, to `snapshots/NIMG-SIGMA_REL.safetensors`."""
    path = average_path(out, nimg, sigma_rel)
    try:
        checkpoints.save(net, path, nimg=nimg, sigma_rel=sigma_rel)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise not_written(f"a snapshot must be written to {path}", cause) from error
    return path


def check_snapshots(out: Path, nimg: int) -> dict[Path, str]:
    """The damaged snapshots of a run up to `nimg`, and what is wrong with each.

    Those of the last moment are read whole: they may have been in the making when a machine failed.
    Of the others, which may be terabytes, header and length are checked; their contents are when
    they are used.
    """
    stored = [
        (int(path.name.partition("-")[0]), path)
        for path in (out / SNAPSHOTS).glob("[0-9]*.safetensors")
    ]
    stored = sorted((time, path) for time, path in stored if time <= nimg)
    damaged = {}
    for time, path in stored:
        look = checkpoints.read if time == stored[-1][0] else checkpoints.read_header
        try:
            look(path, "train")
        except ValueError as error:
            damaged[path] = str(error).partition(", got ")[2].partition("; ")[0]
    return damaged
