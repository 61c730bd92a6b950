"""The averages that a run left on disk, and nets with any EMA length made from them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from autoguide_fast import checkpoints
from autoguide_fast.networks import Precond

from .ema import reconstruct
from .loop import SNAPSHOTS, stored_options


class Snapshots:
    """What the run in a folder stored.

    Args:
        run: the folder given to `train` as `out`.

    Raises:
        ValueError: it holds no snapshots.

    options: dict, as the run was started; times: the image counts at which averages were stored.
    """

    def __init__(self, run: str | os.PathLike) -> None:
        self.run = Path(run)
        self.options = stored_options(self.run)
        self.files = sorted((self.run / SNAPSHOTS).glob("*.safetensors"))
        if not self.files:
            raise ValueError(
                f"Snapshots: run must be a folder that `autoguide-fast train` wrote, got {run} "
                "without snapshots; train there first"
            )
        self.times = sorted({int(f.stem.split("-")[0]) for f in self.files})

    @functools.cached_property
    def _averages(self) -> list[tuple[int, float, Precond]]:
        loaded = [(f.stem.split("-"), checkpoints.load(f)) for f in self.files]
        return [(int(name[0]), float(name[1]), net) for name, net in loaded]

    def nearest_time(self, share: float) -> int:
        """The stored image count nearest to a share of the whole run."""
        return min(self.times, key=lambda t: abs(t - share * self.times[-1]))

    def net(self, nimg: int, sigma_rel: float) -> Precond:
        """The net averaged with width `sigma_rel` as training stood at `nimg`, in eval mode.

        Raises:
            ValueError: nothing was stored at that time.
        """
        if nimg not in self.times:
            raise ValueError(
                f"Snapshots: nimg must be one of the stored {self.times}, got {nimg}; pick the "
                "nearest"
            )
        averages = [(t, s, net.state_dict()) for t, s, net in self._averages if t <= nimg]
        template = self._averages[0][2]
        net = Precond(**template.config)
        net.load_state_dict(reconstruct(averages, [sigma_rel], nimg)[0])
        net.encoder = template.encoder
        return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
