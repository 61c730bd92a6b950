"""The averages that a run left on disk, and nets with any EMA length made from them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from autoguide_fast import checkpoints
from autoguide_fast.networks import Precond

from .durable import not_written
from .ema import length_name, reconstruct

SNAPSHOTS = "snapshots"
OPTIONS = "options.json"

Read = TypeVar("Read")


def stored_options(out: str | os.PathLike) -> dict:
    """Options of the run in the folder `out`, or {} if it holds none."""
    path = Path(out) / OPTIONS
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"Snapshots: {path} must hold the options of the run, got a damaged file ({error}); "
            "go on with the run, which writes it again, or restore it"
        ) from None


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


class Snapshots:
    """What the run in a folder stored.

    Args:
        run: the folder given to `train` as `out`.

    Raises:
        ValueError: it holds no snapshots, or one of them cannot be read.

    options: dict, as the run was started; times: the image counts at which averages were stored.
    """

    def __init__(self, run: str | os.PathLike) -> None:
        self.run = Path(run)
        self.options = stored_options(self.run)
        self.files = sorted((self.run / SNAPSHOTS).glob("[0-9]*.safetensors"))
        if not self.files:
            raise ValueError(
                f"Snapshots: run must be a folder that `autoguide-fast train` wrote, got {run} "
                "without snapshots; train there first"
            )
        # Widths come from the files' headers: names of earlier versions have three decimals.
        self._stored = [
            (*_read(f, _moment), functools.partial(_read, f, _state)) for f in self.files
        ]
        self.times = sorted({nimg for nimg, _, _ in self._stored})

    def identity(self) -> str:
        """The same for the same snapshots, wherever they lie; of their headers alone."""
        digest = hashlib.sha256()
        for path in self.files:
            header = checkpoints.read_header(path, "Snapshots")
            digest.update(json.dumps([path.name, header]).encode())
        return digest.hexdigest()[:32]

    def nearest_time(self, share: float) -> int:
        """The stored image count nearest to a share of the whole run."""
        return min(self.times, key=lambda t: abs(t - share * self.times[-1]))

    def net(self, nimg: int, sigma_rel: float) -> Precond:
        """The net averaged with width `sigma_rel` as training stood at `nimg`, in eval mode.

        Raises:
            ValueError: nothing was stored at that time.
        """
        return self.nets(nimg, [sigma_rel])[0]

    def nets(self, nimg: int, sigma_rels: Sequence[float]) -> list[Precond]:
        """`net` of several widths, in one pass over the snapshots."""
        if nimg not in self.times:
            raise ValueError(
                f"Snapshots: nimg must be one of the stored {self.times}, got {nimg}; pick the "
                "nearest"
            )
        states = reconstruct(self._stored, sigma_rels, nimg)
        return [self._build(state) for state in states]

    def _build(self, state: dict[str, torch.Tensor]) -> Precond:
        template = self._template
        with torch.device("meta"):
            net = Precond(**template.config)
        net.load_state_dict(state, assign=True)
        net.encoder = template.encoder
        net.eval().requires_grad_(False)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def _template(self) -> Precond:
        return checkpoints.load(self.files[0])


def _read(path: Path, what: Callable[[Path], Read]) -> Read:
    """`what(path)` of a snapshot; a ValueError names one that cannot be read."""
    try:
        return what(path)
    except ValueError as error:
        raise ValueError(f"{error}; or remove it to do without") from None


def _moment(path: Path) -> tuple[int, float]:
    """Images seen and sigma_rel, as the header has them."""
    header = checkpoints.read_header(path, "Snapshots")
    try:
        return int(header["nimg"]), float(header["sigma_rel"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"Snapshots: {path} must be a snapshot that `autoguide-fast train` wrote, got a net "
            "that does not say which moment of a run it is of"
        ) from None


def _state(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read(path, "Snapshots")[1]
