"""The averages that a run left on disk, and nets with any EMA length made from them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.native import METADATA_KEY
from autoguide_fast.networks import Precond

from .durable import publish
from .ema import length_name, reconstruct

SNAPSHOTS = "snapshots"
OPTIONS = "options.json"

Read = TypeVar("Read")


def stored_options(out: str | os.PathLike) -> dict:
    """Options of the run in the folder `out`, or {} if it holds none."""
    path = Path(out) / OPTIONS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def average_name(nimg: int, sigma_rel: float) -> str:
    """Name of the file of an average; every width has its own."""
    return f"{nimg:09d}-{length_name(sigma_rel)}.safetensors"


def save_average(net: Precond, out: Path, nimg: int, sigma_rel: float) -> Path:
    """Writes one average as it stands, to `snapshots/NIMG-SIGMA_REL.safetensors`."""
    path = out / SNAPSHOTS / average_name(nimg, sigma_rel)
    temporary = path.with_name(f".{path.name}")
    try:
        checkpoints.save(net, temporary, nimg=nimg, sigma_rel=sigma_rel)
        publish(temporary, path)
    except Exception as error:
        # safetensors has an error class of its own, which a full disk raises too.
        raise OSError(
            f"train: a snapshot must be written to {path}, got {error}; what was saved before is "
            "intact: make room, then repeat the command with --resume auto"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


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
        self._stored = [(*_read(f, _moment), functools.partial(_read, f, _state))
                        for f in self.files]  # fmt: skip
        self.times = sorted({nimg for nimg, _, _ in self._stored})

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
        return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @functools.cached_property
    def _template(self) -> Precond:
        return checkpoints.load(self.files[0])


def _read(path: Path, what: Callable[[Path], Read]) -> Read:
    """`what(path)` of a snapshot; a ValueError names one that cannot be read."""
    from safetensors import SafetensorError

    try:
        return what(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Snapshots: {path} must be a snapshot that `autoguide-fast train` wrote, got one "
            f"that cannot be read ({error}); remove it to do without"
        ) from None


def _moment(path: Path) -> tuple[int, float]:
    """Images seen and sigma_rel, as the header has them."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    return int(header["nimg"]), float(header["sigma_rel"])


def _state(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
