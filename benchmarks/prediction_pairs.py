"""The pairs of `prediction.py`: a few short runs, whose snapshots make many mains and guides.

Of the digits, and of the two-dimensional toy, whose true score is known. Trained when they are
first asked for, and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import autoguide_fast
from autoguide_fast import checkpoints, guidance
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.digits import load_digits
from autoguide_fast.toy import ToyModel, fractal
from autoguide_fast.trainer.ema import PowerFunctionEMA
from autoguide_fast.trainer.optimizer import make_optimizer, set_rate
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.pair import train_pair
from autoguide_fast.trainer.schedule import learning_rate
from autoguide_fast.trainer.toy.training import Batch, Recipe, draw, loss


@dataclass(frozen=True)
class Moment:
    """A net: a run, how many images (digits) or steps (toy) it has seen, its average's width."""

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


# Digits. Images seen are multiples of what a snapshot stands apart from the next.
RUNS: dict[str, dict[str, Any]] = {
    "main": {"duration": 76_800, "snapshots": 12},
    "small": {"duration": 38_400, "snapshots": 6, "channels": 8, "channels_per_head": 8},
    "dropout": {"duration": 38_400, "snapshots": 6, "dropout": 0.1},
    "fast": {"duration": 38_400, "snapshots": 6, "batch": 64, "lr": 0.02},
    "half": {"duration": 25_600, "snapshots": 4, "data": "half"},
    "noisy": {"duration": 25_600, "snapshots": 4, "data": "noisy"},
}


def _digits() -> list[Pair]:
    best, own = "digits", Moment("main", 76_800, 0.05)  # the first is the bundled net
    fast, dropout = Moment("fast", 38_400, 0.05), Moment("dropout", 38_400, 0.05)
    early, small = Moment("main", 38_400, 0.05), Moment("small", 38_400, 0.05)
    rows: list[tuple[str, Moment | str, Moment | str]] = [
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
    return [Pair("digits", *row) for row in rows]


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


def _toy() -> list[Pair]:
    def at(run: str, time: int, ema: float = 0.01) -> Moment:
        return Moment(run, time, ema)

    wide, early = at("wide", 800), at("wide", 400)
    narrow, few = at("narrow", 800), at("few", 800)
    rows = [
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
    return [Pair("toy", *row) for row in rows]


def all_pairs() -> list[Pair]:
    """All pairs in an order whose beginning is a fair draw of the whole."""
    pairs = _digits() + _toy()
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


class Nets:
    """The nets of all pairs, kept in a folder.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.get: Callable[[str, Moment | str], Any] = functools.lru_cache(maxsize=16)(self._get)

    def pair(self, pair: Pair) -> tuple[Any, Any]:
        """The main net and its guide."""
        main = self.get(pair.data, pair.main)
        if pair.guide == "no attention":
            return main, guidance.weakened(main, attn_temperature=0.0)
        return main, self.get(pair.data, pair.guide)

    def _get(self, data: str, net: Moment | str) -> Any:
        if isinstance(net, str):
            return autoguide_fast.load(net)
        if data == "toy":
            path = self.folder / "toy" / f"{net.run}-{net.time}-{net.ema:g}.safetensors"
            if not path.exists():
                _train_toy(net.run, path.parent)
            return checkpoints.load(path)
        run = self.folder / net.run
        options = dict(RUNS[net.run])
        if "data" in options:
            options["data"] = str(_altered(options["data"], self.folder / "data"))
        seed = list(RUNS).index(net.run)
        asked = TrainOptions(seed=seed, device="cpu", **options)
        train_pair(asked, None, run, resume=(run / "options.json").exists(), progress=False)
        return Snapshots(run).net(net.time, net.ema)


def _altered(what: str, folder: Path) -> Path:
    """The training digits, every second one or with noise on them, as pictures in `folder`."""
    images, labels = load_digits("train")
    if what == "half":
        images, labels = images[::2], labels[::2]
    else:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        images = (images + 40 * noise).clamp(0, 255).to(torch.uint8)
    out = folder / what
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = out / str(int(label)) / f"{i:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    return out


def toy_points(run: str) -> torch.Tensor | None:
    """The points that a run of the toy was trained on, or None where they were always new."""
    count = TOY_RUNS[run][3]
    generator = torch.Generator().manual_seed(77)
    return fractal(TOY_RUNS[run][0]).sample(count, generator) if count else None


def _train_toy(run: str, folder: Path) -> None:
    """Trains a run of the toy and keeps its averages at `TOY_TIMES`."""
    classes, width, steps, _ = TOY_RUNS[run]
    recipe = Recipe(classes, width, steps, batch=TOY_BATCH)
    stream = 1000 + list(TOY_RUNS).index(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream)
        net = ToyModel(width)
    data, points = fractal(classes), toy_points(run)
    ema, optimizer = PowerFunctionEMA(net, TOY_EMA), make_optimizer(net)
    folder.mkdir(parents=True, exist_ok=True)
    net.train()
    for step in range(steps):
        batch = draw(data, recipe, stream, step) if points is None else _of(points, recipe, step)
        set_rate(optimizer, learning_rate(step * TOY_BATCH, TOY_BATCH, recipe.lr, recipe.decay, 0))
        optimizer.zero_grad()
        loss(net, batch).backward()
        optimizer.step()
        ema.update((step + 1) * TOY_BATCH, TOY_BATCH)
        if step + 1 in TOY_TIMES:
            for length, average in zip(TOY_EMA, ema.emas, strict=True):
                checkpoints.save(average, folder / f"{run}-{step + 1}-{length:g}.safetensors")


def _of(points: torch.Tensor, recipe: Recipe, step: int) -> Batch:
    """A batch of these points: the score that is learned is that of the noise, -n / sigma."""
    generator = torch.Generator().manual_seed((99 << 20) + step)
    clean = points[torch.randint(len(points), (recipe.batch,), generator=generator)]
    normal = torch.randn(recipe.batch, 3, generator=generator)
    sigma = (recipe.P_mean + recipe.P_std * normal[:, 0]).exp()
    return Batch(clean + sigma[:, None] * normal[:, 1:], sigma, -normal[:, 1:] / sigma[:, None])
