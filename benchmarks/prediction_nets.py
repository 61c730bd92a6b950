"""The nets of `prediction_pairs.py`: loaded, or trained when they are first asked for and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from prediction_pairs import RUNS, TOY_BATCH, TOY_EMA, TOY_RUNS, TOY_TIMES, Moment, Pair

import autoguide_fast
from autoguide_fast import checkpoints, guidance
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.toy import ToyModel, fractal
from autoguide_fast.trainer.ema import PowerFunctionEMA
from autoguide_fast.trainer.optimizer import make_optimizer, set_rate
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.pair import train_pair
from autoguide_fast.trainer.schedule import learning_rate
from autoguide_fast.trainer.toy.training import Batch, Recipe, draw, loss
from autoguide_fast.trainer.yardstick import yardstick


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
        run, options = self.folder / data / net.run, {"data": data, **RUNS[data][net.run]}
        if options["data"] != data:
            options["data"] = str(_altered(data, options["data"], self.folder / data / "data"))
        asked = TrainOptions(device="cpu", **options)
        train_pair(asked, None, run, resume=(run / "options.json").exists(), progress=False)
        return Snapshots(run).net(net.time, net.ema)


def _altered(data: str, what: str, folder: Path) -> Path:
    """The training images, every second one or with noise on them, as pictures in `folder`."""
    images, labels = yardstick(data).load("train")
    assert labels is not None
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
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels[..., 0] if len(image) == 1 else pixels).save(path)
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
