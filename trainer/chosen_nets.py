"""Nets by where they are: a bundled name, a file, a moment of a run, or one without its label."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoguide_fast import checkpoints, load, unlabelled
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.checkpoints.run_folder import is_run_folder
from autoguide_fast.files import sha256
from autoguide_fast.networks import Precond

from . import pair
from .auto_guide import AUTO
from .options import TrainOptions
from .snapshots import average_path


@dataclass(frozen=True)
class NetChoice:
    """Which net takes a role.

    place: a bundled name, a file or the folder of a run. nimg, ema: the moment and the average of
    a run. without_label: it is not told its label.
    """

    place: str
    nimg: int | None = None
    ema: float | None = None
    without_label: bool = False

    @property
    def file(self) -> Path | None:
        """Where the net lies; None for an average that the run did not store."""
        if self.ema is None:
            return Path(checkpoints.find(self.place, "a net"))
        nimg = Snapshots(self.place).times[-1] if self.nimg is None else self.nimg
        path = average_path(Path(self.place), nimg, self.ema)
        return path if path.is_file() else None

    def load(self) -> Any:
        """The net, a `Precond`, or one that is not told its label."""
        if self.ema is None:
            net = load(self.place)
        elif (file := self.file) is not None:
            net = load(file)
        else:
            run = Snapshots(self.place)
            net = run.net(run.times[-1] if self.nimg is None else self.nimg, self.ema)
        return unlabelled(net) if self.without_label else net


class OneNet:
    """A net in a file, to be searched like the snapshots of a run that stored it alone.

    Args:
        path: the file, or a bundled name.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.run = Path(path)
        self._path = checkpoints.find(path, "tune: a net")
        header = checkpoints.read_header(self._path, "tune")
        self._digest = header.get("checksum") or sha256(self._path)
        self._net = load(self._path)
        self.options: dict = {}
        nimg, ema = (self._net.info.get(name) for name in ("nimg", "sigma_rel"))
        self.times = [nimg if isinstance(nimg, int) else 0]
        self.ema = float(ema) if isinstance(ema, (int, float)) else 0.0

    def identity(self) -> str:
        """The same for the same net, wherever it lies."""
        return self._digest

    def nearest_time(self, share: float) -> int:
        """The images that it was trained on, 0 where it does not say."""
        return self.times[0]

    def net(self, nimg: int, sigma_rel: float) -> Precond:
        """The net; there is no other."""
        return self._net


def snapshots_of(place: str | os.PathLike) -> Snapshots | OneNet:
    """What a run stored, or the one net in a file.

    Raises:
        ValueError: it is neither.
    """
    if not is_run_folder(place) and (Path(place).is_file() or place in checkpoints.BUNDLED):
        return OneNet(place)
    return Snapshots(place)


def of_run(
    folder: Path, ema: float | None, guide_ema: float | None, command: str
) -> dict[str, NetChoice]:
    """The nets of a run that `train` wrote, by role, as it trained them.

    The guide is the run's own, or an earlier moment of the main net; the net without its label is
    there for CFG where labels were dropped in training.

    Args:
        folder: of the run.
        ema: length of the main net's average; None takes the first that was tracked.
        guide_ema: that of the guide's; None takes the last.
        command: which messages name.
    """
    run = Snapshots(folder)
    tracked = run.options.get("ema") or []
    if not tracked and (ema is None or guide_ema is None):
        raise ValueError(
            f"{command}: --ema and --guide-ema must be given for a run without options, got none "
            f"for {folder}; 0.05 is usual"
        )
    main = NetChoice(str(folder), run.times[-1], ema if ema is not None else tracked[0])
    found = {"main": main}
    last = guide_ema if guide_ema is not None else tracked[-1]
    job = pair.stored_job(folder, lambda text: None)
    if is_run_folder(folder / pair.GUIDE):
        own = Snapshots(folder / pair.GUIDE)
        if guide_ema is None and own.options.get("ema"):
            last = own.options["ema"][-1]
        found["guide"] = NetChoice(str(own.run), own.times[-1], last)
    elif job.get("guide") == AUTO:
        raise ValueError(
            f"{command}: the run must have chosen its guide, got {folder} before that; go on with "
            f"autoguide-fast train --out {folder} --resume"
        )
    elif job.get("guide"):
        asked = pair.parse_guide(job["guide"], TrainOptions(**job["main"]), job.get("preset"))
        found["guide"] = NetChoice(str(folder), asked.nimg, last)
    if run.options.get("label_dropout"):
        found["uncond"] = replace(main, without_label=True)
    return found


def of_folder(folder: Path, names: dict[str, str]) -> dict[str, NetChoice]:
    """The nets in a folder that `tune` wrote, by role, as far as they are there.

    Args:
        folder: the folder.
        names: of the files, without their ending, by role.
    """
    found = {}
    for role, name in names.items():
        file = folder / f"{name}.safetensors"
        if role != "uncond" or file.exists():
            found[role] = NetChoice(str(file))
    return found
