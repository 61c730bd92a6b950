"""What one training run is: every option in one place, checked before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run; the defaults train a small labelled net on the digits.

    Network: `channels`, `channel_mult`, `num_blocks`, `attn_resolutions`, `channels_per_head`,
    `dropout`, `sigma_data` as in `autoguide_fast.networks.Precond`; `labelled` False trains a net
    without labels.
    Loss: ln sigma ~ N(P_mean, P_std^2).
    Time: `duration` and `batch` in images; `snapshots` counts the moments, evenly spread, at which
    the averages are stored.
    Rate: `lr` is alpha_ref, `decay` t_ref in steps (0: none), `rampup` in images (0: none).
    Averages: `ema` lists the sigma_rel that are tracked.
    """

    labelled: bool = True
    channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2)
    num_blocks: int = 1
    attn_resolutions: tuple[int, ...] = (4,)
    channels_per_head: int = 16
    dropout: float = 0.0
    sigma_data: float = 0.5
    P_mean: float = -0.4
    P_std: float = 1.0
    duration: int = 204_800
    batch: int = 256
    lr: float = 0.01
    decay: float = 400.0
    rampup: float = 10_000.0
    ema: tuple[float, ...] = (0.05, 0.10)
    snapshots: int = 16
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attn_resolutions", "ema"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("channels", "num_blocks", "channels_per_head", "batch", "duration"):
            self._at_least(name, 1, "raise it")
        for name in ("lr", "decay", "rampup", "P_std", "snapshots", "seed"):
            self._at_least(name, 0, "use 0 or more")
        if not self.channel_mult or min(self.channel_mult) < 1:
            self._refuse("channel_mult", "hold integers >= 1", "for example 1 2")
        if not 0 <= self.dropout < 1:
            self._refuse("dropout", "lie in [0, 1)", "0.1 is usual")
        if not self.sigma_data > 0:
            self._refuse("sigma_data", "be > 0", "0.5 is usual")
        if self.duration % self.batch:
            whole = max(1, round(self.duration / self.batch)) * self.batch
            self._refuse("duration", f"be a multiple of batch={self.batch}", f"for example {whole}")
        if self.snapshots and not self.ema:
            self._refuse("ema", "name at least one average where snapshots are kept", "add 0.05")
        if len(set(self.ema)) < len(self.ema):
            self._refuse("ema", "name each average once", "remove the duplicate")
        if self.split not in ("train", "all"):
            self._refuse("split", "be 'train' or 'all'", "'train' leaves a fifth to judge against")

    def _at_least(self, name: str, least: int, remedy: str) -> None:
        if not getattr(self, name) >= least:
            self._refuse(name, f"be >= {least}", remedy)

    def _refuse(self, name: str, rule: str, remedy: str) -> None:
        value = getattr(self, name)
        value = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"train: {name} must {rule}, got {value!r}; {remedy}")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.duration // self.batch

    def net_options(self) -> dict:
        """The part that `Precond` takes as keyword options."""
        return {
            "model_channels": self.channels,
            "channel_mult": list(self.channel_mult),
            "num_blocks": self.num_blocks,
            "attn_resolutions": list(self.attn_resolutions),
            "channels_per_head": self.channels_per_head,
            "dropout": self.dropout,
            "sigma_data": self.sigma_data,
        }

    def as_dict(self) -> dict:
        """Plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def changed_from(self, stored: dict) -> list[str]:
        """Names of the options that differ from a stored run; `duration` may grow."""
        mine = self.as_dict()
        names = [k for k in mine if k != "duration" and mine[k] != stored.get(k)]
        return names + (["duration"] if mine["duration"] < stored.get("duration", 0) else [])
