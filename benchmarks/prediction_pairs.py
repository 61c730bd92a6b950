"""The pairs of `prediction.py`: a few short runs, whose snapshots make many mains and guides.

Of images (digits, MNIST, photos), and of the two-dimensional toy, whose true score is known.
Trained when they are first asked for (`prediction_nets.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moment:
    """A net: a run, how many images or steps (toy) it has seen, its average's width."""

    run: str
    time: int
    ema: float


@dataclass(frozen=True)
class Pair:
    """A main net and a guide.

    kind: what makes the guide worse, in words.
    """

    data: str
    kind: str
    main: Moment | str
    guide: Moment | str

    @property
    def name(self) -> str:
        """One that stands for this pair alone."""

        def text(net: Moment | str) -> str:
            return net if isinstance(net, str) else f"{net.run}@{net.time}/{net.ema:g}"

        return f"{self.data}: {text(self.main)} by {text(self.guide)}"


# Options of the runs on images, of each data set. Images seen are multiples of what a snapshot
# stands apart from the next. `data` says how the training images are altered.
_MNIST: dict[str, Any] = {
    "channels": 8,
    "channel_mult": (1, 2, 2),
    "attn_resolutions": (7,),
    "P_mean": -0.6,
    "P_std": 1.2,
    "batch": 32,
    "lr": 0.012,
    "decay": 800.0,
    "rampup": 8000.0,
    "duration": 12_800,
    "snapshots": 2,
}
_PHOTOS: dict[str, Any] = {
    "channels": 8,
    "channel_mult": (1, 2, 3),
    "channels_per_head": 24,
    "attn_resolutions": (8,),
    "P_mean": -0.5,
    "P_std": 1.2,
    "batch": 32,
    "lr": 0.015,
    "decay": 500.0,
    "rampup": 8000.0,
    "duration": 12_800,
    "snapshots": 2,
}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "main": {"seed": 0, "duration": 76_800, "snapshots": 12},
        "small": {
            "seed": 1,
            "duration": 38_400,
            "snapshots": 6,
            "channels": 8,
            "channels_per_head": 8,
        },
        "dropout": {"seed": 2, "duration": 38_400, "snapshots": 6, "dropout": 0.1},
        "fast": {"seed": 3, "duration": 38_400, "snapshots": 6, "batch": 64, "lr": 0.02},
        "half": {"seed": 4, "duration": 25_600, "snapshots": 4, "data": "half"},
        "noisy": {"seed": 5, "duration": 25_600, "snapshots": 4, "data": "noisy"},
    },
    "mnist": {
        "main": {**_MNIST, "seed": 0, "duration": 38_400, "snapshots": 6},
        "small": {**_MNIST, "seed": 1, "channels": 4, "channels_per_head": 8},
        "dropout": {**_MNIST, "seed": 2, "duration": 19_200, "snapshots": 3, "dropout": 0.1},
        "noisy": {**_MNIST, "seed": 4, "data": "noisy"},
    },
    "photos": {
        "main": {**_PHOTOS, "seed": 0, "duration": 25_600, "snapshots": 4},
        "small": {**_PHOTOS, "seed": 1, "channels": 4, "channels_per_head": 12},
    },
}
Rows = list[tuple[str, Moment | str, Moment | str]]


def _digits() -> Rows:
    best, own = "digits", Moment("main", 76_800, 0.05)  # the first is the bundled net
    fast, dropout = Moment("fast", 38_400, 0.05), Moment("dropout", 38_400, 0.05)
    early, small = Moment("main", 38_400, 0.05), Moment("small", 38_400, 0.05)
    return [
        ("time", best, "digits-guide"),
        *(("time, another run", best, Moment("main", t, 0.1)) for t in (25_600, 51_200, 76_800)),
        ("time and width", best, Moment("small", 19_200, 0.1)),
        ("time and width", best, Moment("small", 38_400, 0.1)),
        ("other: batch and rate", best, Moment("fast", 38_400, 0.1)),
        ("other: dropout", best, Moment("dropout", 38_400, 0.1)),
        ("other: half the data", best, Moment("half", 25_600, 0.1)),
        ("other: noisy data", best, Moment("noisy", 25_600, 0.1)),
        ("weakened", best, "no attention"),
        ("CFG", best, "digits-uncond"),
        *(("time", own, Moment("main", t, 0.1)) for t in (12_800, 25_600, 51_200)),
        ("EMA", own, Moment("main", 76_800, 0.25)),
        *(("time and width", own, Moment("small", t, 0.1)) for t in (12_800, 38_400)),
        ("other: dropout", own, Moment("dropout", 25_600, 0.1)),
        ("other: half the data", own, Moment("half", 19_200, 0.1)),
        ("other: noisy data", own, Moment("noisy", 25_600, 0.1)),
        *(("time", fast, Moment("fast", t, 0.1)) for t in (12_800, 25_600)),
        ("time and width", fast, Moment("small", 19_200, 0.1)),
        ("other: batch and rate", fast, Moment("main", 25_600, 0.1)),
        ("other: half the data", fast, Moment("half", 25_600, 0.1)),
        *(("time", dropout, Moment("dropout", t, 0.1)) for t in (12_800, 25_600)),
        ("other: no dropout", dropout, Moment("main", 12_800, 0.1)),
        ("time and width", dropout, Moment("small", 12_800, 0.1)),
        *(("time", early, Moment("main", t, 0.1)) for t in (12_800, 25_600)),
        ("width", early, Moment("small", 38_400, 0.05)),
        *(("time", small, Moment("small", t, 0.1)) for t in (12_800, 25_600)),
        ("other: noisy data", small, Moment("noisy", 25_600, 0.1)),
    ]


def _mnist() -> Rows:
    best, own = "mnist", Moment("main", 38_400, 0.05)  # the first is the bundled net
    early, dropout = Moment("main", 19_200, 0.05), Moment("dropout", 19_200, 0.05)
    small = Moment("small", 12_800, 0.05)
    return [
        ("time", best, "mnist-guide"),
        ("time and width", best, Moment("main", 38_400, 0.1)),
        ("time and width", best, Moment("small", 12_800, 0.1)),
        ("weakened", best, "no attention"),
        *(("time", own, Moment("main", t, 0.1)) for t in (6_400, 12_800, 25_600)),
        ("EMA", own, Moment("main", 38_400, 0.25)),
        *(("time and width", own, Moment("small", t, 0.1)) for t in (6_400, 12_800)),
        ("other: dropout", own, Moment("dropout", 12_800, 0.1)),
        ("other: noisy data", own, Moment("noisy", 12_800, 0.1)),
        ("time", dropout, Moment("dropout", 6_400, 0.1)),
        ("other: no dropout", dropout, Moment("main", 6_400, 0.1)),
        ("time", early, Moment("main", 6_400, 0.1)),
        ("width", Moment("main", 12_800, 0.05), small),
        ("time", small, Moment("small", 6_400, 0.1)),
    ]


def _photos() -> Rows:
    best, own = "photos", Moment("main", 25_600, 0.05)  # the first is the bundled net
    early, small = Moment("main", 12_800, 0.05), Moment("small", 12_800, 0.05)
    return [
        ("time and width", best, "photos-guide"),
        ("time and width", best, Moment("main", 25_600, 0.1)),
        ("weakened", best, "no attention"),
        *(("time", own, Moment("main", t, 0.1)) for t in (6_400, 12_800)),
        ("EMA", own, Moment("main", 25_600, 0.25)),
        ("time and width", own, Moment("small", 12_800, 0.1)),
        ("time", early, Moment("main", 6_400, 0.1)),
        ("width", early, small),
        ("time", small, Moment("small", 6_400, 0.1)),
    ]


# The toy. Time is steps of 512 points; "few" is trained on 400 points, the others on new ones.
TOY_RUNS: dict[str, tuple[str, int, int, int]] = {  # classes, width, steps, points (0: new ones)
    "wide": ("A", 64, 800, 0),
    "narrow": ("A", 32, 800, 0),
    "thin": ("A", 16, 800, 0),
    "both": ("AB", 32, 400, 0),
    "few": ("A", 64, 800, 400),
}
TOY_TIMES = (50, 100, 200, 400, 800)
TOY_EMA = (0.01, 0.1)
TOY_BATCH = 512


def _toy() -> Rows:
    def at(run: str, time: int, ema: float = 0.01) -> Moment:
        return Moment(run, time, ema)

    wide, early = at("wide", 800), at("wide", 400)
    narrow, few = at("narrow", 800), at("few", 800)
    return [
        *(("time", wide, at("wide", t)) for t in (50, 100, 200, 400)),
        ("EMA", wide, at("wide", 800, 0.1)),
        *(("time and width", wide, at("narrow", t)) for t in (100, 200, 400)),
        ("width", wide, at("narrow", 800)),
        ("time and width", wide, at("thin", 200)),
        ("width", wide, at("thin", 800)),
        *(("other: few points", wide, at("few", t)) for t in (200, 800)),
        ("CFG", wide, at("both", 400)),
        *(("time", early, at("wide", t)) for t in (50, 100, 200)),
        *(("time and width", early, at("narrow", t)) for t in (200, 400)),
        ("width", early, at("thin", 400)),
        ("CFG", early, at("both", 200)),
        *(("time", few, at("few", t)) for t in (100, 200, 400)),
        *(("other: new points", few, at("wide", t)) for t in (200, 800)),
        ("other: new points", few, at("narrow", 200)),
        *(("time", narrow, at("narrow", t)) for t in (100, 200, 400)),
        *(("time and width", narrow, at("thin", t)) for t in (200, 400)),
        ("width", narrow, at("thin", 800)),
        ("other: wider", narrow, at("wide", 100)),
    ]


PAIRS = {"digits": _digits, "toy": _toy, "mnist": _mnist, "photos": _photos}


def all_pairs() -> list[Pair]:
    """All pairs: digits and toy, then MNIST and photos, the beginning of each a fair draw of it."""
    ordered = []
    for names in (("digits", "toy"), ("mnist", "photos")):
        pairs = [Pair(data, *row) for data in names for row in PAIRS[data]()]
        ordered += [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]
    return ordered
