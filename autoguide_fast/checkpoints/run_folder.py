"""The folder of a training run: options, log, and nets of any EMA length made of its averages."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from ..ema import reconstruct
from ..networks import Precond
from .format import read, read_header
from .native import load_file

SNAPSHOTS = "snapshots"
OPTIONS = "options.json"
LOG = "log.jsonl"
SAMPLES = "samples"  # grids drawn while it was trained, `NET-NIMG.png`

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


def read_log(out: str | os.PathLike) -> list[dict]:
    """The lines of a job's log; one that is cut short or damaged is left out.

    Raises:
        ValueError: the folder holds no log.
    """
    path = Path(out) / LOG
    if not path.is_file():
        raise ValueError(
            f"plot: run must be a folder that `autoguide-fast train` wrote, got {out} without "
            f"{LOG}; train there first"
        )
    rows = [parsed_line(line) for line in path.read_bytes().splitlines()]
    return [row for row in rows if row is not None]


def parsed_line(line: bytes) -> dict | None:
    """A line of a log, or None for what is none."""
    try:
        row = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    whole = isinstance(row, dict) and isinstance(row.get("net"), str)
    return row if whole and isinstance(row.get("nimg"), int) else None


def is_run_folder(path: object) -> bool:
    """Whether `path` is a folder that `autoguide-fast train` wrote."""
    if not isinstance(path, (str, os.PathLike)):
        return False
    try:
        return (Path(path) / SNAPSHOTS).is_dir()
    except OSError:  # such as a name that is too long
        return False


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
            header = read_header(path, "Snapshots")
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
        return [
            self._build(state, {"nimg": nimg, "sigma_rel": sigma_rel})
            for state, sigma_rel in zip(states, sigma_rels, strict=True)
        ]

    def _build(self, state: dict[str, torch.Tensor], info: dict) -> Precond:
        template = self._template
        with torch.device("meta"):
            net = Precond(**template.config)
        net.load_state_dict(state, assign=True)
        net.encoder = template.encoder
        net.info = info
        net.eval().requires_grad_(False)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @functools.cached_property
    def _template(self) -> Precond:
        return load_file(self.files[0])


def _read(path: Path, what: Callable[[Path], Read]) -> Read:
    """`what(path)` of a snapshot; a ValueError names one that cannot be read."""
    try:
        return what(path)
    except ValueError as error:
        raise ValueError(f"{error}; or remove it to do without") from None


def _moment(path: Path) -> tuple[int, float]:
    """Images seen and sigma_rel, as the header has them."""
    header = read_header(path, "Snapshots")
    try:
        return int(header["nimg"]), float(header["sigma_rel"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"Snapshots: {path} must be a snapshot that `autoguide-fast train` wrote, got a net "
            "that does not say which moment of a run it is of"
        ) from None


def _state(path: Path) -> dict[str, torch.Tensor]:
    return read(path, "Snapshots")[1]
