"""What one training run is: every option in one place, checked before any work."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from autoguide_fast.ema import check_sigma_rel
from autoguide_fast.net_config import WEAKENING, NetConfig

# In the place of a precision: the faster of fp32 and bf16 where the run begins.
AUTO = "auto"
PRECISIONS = ("fp32", "bf16", "fp16", AUTO)

# In the place of a guide: the main net itself, without its label.
UNLABELLED = "unlabelled"

DEVICES = ("auto", "cpu", "cuda")

# What a run calls options of the network otherwise than `NetConfig`; which of them are None for 0;
# and which are the data's, or the same for every run.
_NET_NAMES = {
    "model_channels": "channels",
    "channel_mult_noise": "noise_channels",
    "channel_mult_emb": "emb_channels",
}
_NONE_IF_0 = ("noise_channels", "emb_channels", "clip_act")
_NOT_OF_THE_RUN = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "resample_filter",
    "use_fp16",
    *WEAKENING,
)

# Of those that are empty, what they hold.
_KINDS = {"guidance_range": float, "teacher": str}

# May differ when a run is resumed: its length, how a step is cut into passes, what runs it, and
# where the data and a teacher's nets lie, since `Trainer` compares what they hold.
_FREE = ("duration", "data", "teacher", "microbatch", "device", "shard", "compile", "graph")


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run; the defaults train a small labelled net on the digits.

    Data: `data` is 'digits', 'photos', 'mnist' or a path, which has no `split`; `resolution` and
    `img_channels` are what the data must have (0: whatever they have); `labelled` False leaves the
    labels out; `flip` mirrors half of the images; `label_dropout` is the share of images whose
    label is dropped, so that a net without its label is a guide for itself (CFG).
    Network: as in `autoguide_fast.networks.Precond`, where `channels` is model_channels and
    `noise_channels`, `emb_channels` are the widths of Fourier features and embedding in multiples
    of it (0: as there).
    Distillation: `teacher` names main net and guide, which this net is to stand for; it is empty
    where a net learns from data. `guidance_range` is the net's, as of the networks.
    Loss: ln sigma ~ N(P_mean, P_std^2). The error of the head after a block of the decoder,
    `head_after` (empty: none), counts `head_weight` times.
    Time: `duration` and `batch` in images; a process takes its share of a batch in passes of
    `microbatch` images (0: in one); `snapshots` counts the moments, evenly spread, at which the
    averages are stored.
    Rate: `lr` is alpha_ref, `decay` t_ref in steps (0: none), `rampup` in images (0: none). Adam
    with `betas` and `eps`.
    Averages: `ema` lists the sigma_rel that are tracked.
    Arithmetic: `precision` is that of the U-Net; weights, loss and averages stay float32. "auto" is
    the faster of fp32 and bf16, and becomes one of the two when the run begins.
    `loss_scale` is where the scaling of the loss begins with fp16.
    Execution: `device` is 'cpu', 'cuda' (each process its own GPU) or 'auto' (a GPU if there is
    one); `shard` splits weights, moments and averages among the processes; `compile` runs the net
    under `torch.compile`; `graph` records a step as CUDA graphs.
    """

    data: str = "digits"
    split: str = "train"
    resolution: int = 0
    img_channels: int = 0
    labelled: bool = True
    flip: bool = False
    label_dropout: float = 0.0
    channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2)
    noise_channels: int = 0
    emb_channels: int = 0
    num_blocks: int = 1
    attn_resolutions: tuple[int, ...] = (4,)
    channels_per_head: int = 16
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0
    logvar_channels: int = 128
    dropout: float = 0.0
    sigma_data: float = 0.5
    guidance_range: tuple[float, ...] = ()
    teacher: tuple[str, ...] = ()
    head_after: str = ""
    head_weight: float = 0.5
    P_mean: float = -0.4
    P_std: float = 1.0
    duration: int = 204_800
    batch: int = 256
    microbatch: int = 0
    lr: float = 0.01
    decay: float = 400.0
    rampup: float = 10_000.0
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    precision: str = "fp32"
    loss_scale: float = 256.0
    ema: tuple[float, ...] = (0.05, 0.10)
    snapshots: int = 16
    seed: int = 0
    device: str = "auto"
    shard: bool = False
    compile: bool = False
    graph: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_kind(field.name, field.default)
        for name in (
            "channels",
            "num_blocks",
            "channels_per_head",
            "logvar_channels",
            "batch",
            "duration",
            "loss_scale",
        ):
            self._at_least(name, 1, "raise it")
        for name in (
            "lr",
            "decay",
            "rampup",
            "P_std",
            "snapshots",
            "seed",
            "resolution",
            "img_channels",
            "noise_channels",
            "emb_channels",
            "microbatch",
            "clip_act",
        ):
            self._at_least(name, 0, "use 0 or more")
        for name in ("label_balance", "concat_balance", "res_balance", "attn_balance"):
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "lie in [0, 1]", "it weighs the second term of a sum")
        for name, example in (("sigma_data", 0.5), ("eps", 1e-8)):
            if not getattr(self, name) > 0:
                self._refuse(name, "be > 0", f"{example} is usual")
        if not self.channel_mult or min(self.channel_mult) < 1:
            self._refuse("channel_mult", "hold integers >= 1", "for example 1 2")
        if min(self.attn_resolutions, default=1) < 1:
            self._refuse("attn_resolutions", "hold integers >= 1", "for example 16 8")
        if not 0 <= self.dropout < 1:
            self._refuse("dropout", "lie in [0, 1)", "0.1 is usual")
        if not 0 <= self.label_dropout < 1:
            self._refuse("label_dropout", "lie in [0, 1)", "0.1 is usual, 0 drops none")
        if self.label_dropout and not self.labelled:
            self._refuse("label_dropout", "be 0 without labels", "leave it or --no-labels out")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            self._refuse("betas", "be two numbers in [0, 1)", "0.9 0.99 is usual")
        if self.duration % self.batch:
            whole = max(1, round(self.duration / self.batch)) * self.batch
            self._refuse("duration", f"be a multiple of batch={self.batch}", f"for example {whole}")
        if self.snapshots and not self.ema:
            self._refuse("ema", "name at least one average where snapshots are kept", "add 0.05")
        check_sigma_rel("train", self.ema, "ema")
        if len(set(self.ema)) < len(self.ema):
            self._refuse("ema", "name each average once", "remove the duplicate")
        if self.split not in ("train", "all"):
            self._refuse("split", "be 'train' or 'all'", "'train' leaves a fifth to judge against")
        if self.precision not in PRECISIONS:
            self._refuse("precision", f"be one of {', '.join(PRECISIONS)}", "fp32 suits any CPU")
        if self.device not in DEVICES:
            self._refuse("device", f"be one of {', '.join(DEVICES)}", "auto takes what is there")
        if len(self.teacher) not in (0, 2):
            self._refuse("teacher", "name a main net and its guide", "or leave it out")
        if bool(self.teacher) != bool(self.guidance_range):
            self._refuse(
                "guidance_range",
                "be two weights with a teacher, and empty without one",
                "`autoguide-fast distill` sets both",
            )
        if self.head_after and not self.head_weight > 0:
            self._refuse("head_weight", "be > 0 with head_after", "0.5 is the default")
        if self.shard and self.compile:
            self._refuse("shard", "be off with compile", "leave out one of the two")
        if self.shard and self.graph:
            self._refuse("shard", "be off with graph", "leave out one of the two")

    def _check_kind(self, name: str, default: Any) -> None:
        """Raises ValueError where an option is of another kind than its default, or not finite."""
        several = isinstance(default, tuple)
        kind = _KINDS.get(name) or type(default[0] if several else default)
        values = getattr(self, name)
        if several:
            if not isinstance(values, tuple | list):
                self._refuse(name, "be several values", f"for example {list(default)}")
            object.__setattr__(self, name, tuple(values))
        words = {
            int: "an integer",
            float: "a finite number",
            bool: "True or False",
            str: "a string",
        }
        for value in getattr(self, name) if several else [values]:
            if kind is float:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = number and math.isfinite(value)
            else:
                fits = type(value) is kind
            if not fits:
                rule = f"hold {words[kind]} each" if several else f"be {words[kind]}"
                self._refuse(name, rule, f"the default is {default}")

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

    def share(self, processes: int = 1) -> tuple[int, int]:
        """Images of a step that each process takes, and how many of them in one pass.

        Raises:
            ValueError: batch and microbatch do not divide so.
        """
        if self.batch % processes:
            self._refuse(
                "batch",
                f"be a multiple of the {processes} processes",
                f"for example {max(1, round(self.batch / processes)) * processes}",
            )
        share = self.batch // processes
        micro = self.microbatch or share
        if share % micro:
            fitting = max(d for d in range(1, micro + 1) if share % d == 0)
            self._refuse(
                "microbatch",
                f"divide the {share} images that a process takes of a batch",
                f"for example {fitting}",
            )
        return share, micro

    def net_options(self) -> dict:
        """The part that `Precond` takes as keyword options."""
        options = {}
        for field in dataclasses.fields(NetConfig):
            name = _NET_NAMES.get(field.name, field.name)
            if field.name not in _NOT_OF_THE_RUN:
                value = getattr(self, name)
                value = list(value) if isinstance(value, tuple) else value
                options[field.name] = (value or None) if name in _NONE_IF_0 else value
        return options

    def as_dict(self) -> dict:
        """Plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def refuse_changes(self, stored: dict) -> None:
        """Raises ValueError, naming each option, where a stored run has other ones."""
        refuse_changes(*self.changes(stored))

    def changes(self, stored: dict) -> tuple[dict, dict]:
        """What a stored run has otherwise and must not, as it was and as it is, by name.

        `duration` may grow, and `_FREE` may change. An option that the stored run does not know
        counts as its default.
        """
        mine, defaults = self.as_dict(), TrainOptions().as_dict()
        before = {name: stored.get(name, defaults[name]) for name in mine}
        fixed = [name for name in mine if name not in _FREE]
        changed = [name for name in fixed if mine[name] != before[name]]
        if mine["duration"] < before["duration"]:
            changed.append("duration")
        return {k: before[k] for k in changed}, {k: mine[k] for k in changed}


def options_of_net(config: dict) -> dict:
    """The options of a run for a net like one with these options (`Precond.config`).

    Raises:
        ValueError: a run cannot make such a net.
    """
    config = NetConfig(**config)
    for name, value in WEAKENING.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"train: {name} must be {value!r} for a net that is trained, got "
                f"{getattr(config, name)!r}; name the net itself, not a weakened one"
            )
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    found = {"labelled": config.label_dim > 0, "resolution": config.img_resolution}
    for name, value in vars(config).items():
        option = _NET_NAMES.get(name, name)
        if option in names:
            found[option] = (value or 0) if option in _NONE_IF_0 else value
    return found


def refuse_changes(
    before: dict,
    now: dict,
    what: str = "options",
    remedy: str = "repeat the first command with --resume",
) -> None:
    """Raises ValueError, naming each entry that differs, where a run is resumed with other ones."""
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        listed = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
        raise ValueError(
            f"train: {what} must stay as in the run that is resumed, got changes: {listed}; "
            f"{remedy}, or choose another --out"
        )
