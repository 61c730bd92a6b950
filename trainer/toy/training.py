"""Trains the toy's nets by exact score matching; a training that was stopped goes on."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoguide_fast.checkpoints import load, save
from autoguide_fast.files import write_atomically
from autoguide_fast.toy import Fractal, ToyModel, fractal

from ..ema import PowerFunctionEMA
from ..optimizer import make_optimizer, set_rate
from ..schedule import learning_rate

SAVE_SECONDS = 20.0  # between two saved states of a training under way


@dataclass(frozen=True)
class Recipe:
    """How a net is trained; the defaults are the paper's (its appendix on the toy).

    Attributes:
        classes: whose points it learns: "A", or "AB", both without their labels.
        hidden_dim: its width.
        iterations: optimiser steps.
        batch: points of each, all of them new.
        P_mean, P_std: of ln sigma, which is normally distributed.
        lr, decay: the rate, and after how many steps it falls as 1/sqrt(t).
        sigma_rel: width of the average of the weights that is kept.
    """

    classes: str
    hidden_dim: int
    iterations: int
    batch: int = 4096
    P_mean: float = -2.3
    P_std: float = 1.5
    lr: float = 0.01
    decay: float = 512.0
    sigma_rel: float = 0.010


RECIPES = {
    "main": Recipe("A", hidden_dim=64, iterations=4096),
    "guide": Recipe("A", hidden_dim=32, iterations=512),
    "uncond": Recipe("AB", hidden_dim=32, iterations=512),
}
_ROLES = tuple(RECIPES)


@dataclass(frozen=True)
class Batch:
    """Noisy points `x [N, 2]`, their noise levels `sigma [N]`, the true scores `[N, 2]`."""

    x: Tensor
    sigma: Tensor
    score: Tensor


def draw(data: Fractal, recipe: Recipe, stream: int, iteration: int) -> Batch:
    """The batch of an iteration, the same whenever it is drawn; `stream` tells trainings apart."""
    generator = torch.Generator().manual_seed((stream << 20) + iteration)
    clean = data.sample(recipe.batch, generator)
    normal = torch.randn(recipe.batch, 3, generator=generator)
    sigma = (recipe.P_mean + recipe.P_std * normal[:, 0]).exp()
    x = clean + sigma[:, None] * normal[:, 1:]
    return Batch(x, sigma, data.score(x, sigma))


def loss(net: ToyModel, batch: Batch) -> Tensor:
    """Exact score matching: the mean of `sigma^2 |score - true score|^2`."""
    x = batch.x.clone().requires_grad_()
    (score,) = torch.autograd.grad(net.log_density(x, batch.sigma).sum(), x, create_graph=True)
    return (batch.sigma[:, None] ** 2 * (score - batch.score) ** 2).sum(dim=1).mean()


class Training:
    """A training under way: the net, its average and Adam, after `iteration` steps."""

    def __init__(self, recipe: Recipe, stream: int) -> None:
        self.recipe, self.stream, self.iteration = recipe, stream, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream)
            self.net = ToyModel(recipe.hidden_dim)
        self.ema = PowerFunctionEMA(self.net, [recipe.sigma_rel])
        self.optimizer = make_optimizer(self.net)

    def step(self, batch: Batch) -> float:
        """One step of Adam; returns the loss before it."""
        size, recipe = self.recipe.batch, self.recipe
        nimg = self.iteration * size
        set_rate(self.optimizer, learning_rate(nimg, size, recipe.lr, recipe.decay, 0))
        self.optimizer.zero_grad()
        value = loss(self.net, batch)
        value.backward()
        self.optimizer.step()
        self.iteration += 1
        self.ema.update(nimg + size, size)
        return value.item()

    def state_dict(self) -> dict:
        """All that the rest of the training depends on."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "ema", "optimizer")}
        about = dataclasses.asdict(self.recipe), self.stream
        return {"about": about, "iteration": self.iteration, **parts}

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict()`; ValueError where that is of another training."""
        if state["about"] != (dataclasses.asdict(self.recipe), self.stream):
            raise ValueError("another training's state")
        for name in ("net", "ema", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration = state["iteration"]


def train(
    training: Training,
    progress: Callable[[float], object] = lambda loss: None,
    stopped: Callable[[], bool] = lambda: False,
    keep: Callable[[Training], object] = lambda training: None,
) -> ToyModel | None:
    """Trains to the end; returns the average of the weights, or None if it was stopped.

    A second thread draws the next batch meanwhile, whose true scores take as long as a step.

    Args:
        training: to go on with.
        progress: called with the loss of each step.
        stopped: asked after each step.
        keep: called now and then, and when it was stopped, to save the state.
    """
    recipe, data = training.recipe, fractal(training.recipe.classes)
    saved = time.monotonic()
    training.net.train()
    with ThreadPoolExecutor(1) as ahead:

        def batch(iteration: int) -> Batch:
            return draw(data, recipe, training.stream, iteration)

        following = ahead.submit(batch, training.iteration)
        while training.iteration < recipe.iterations:
            current = following.result()
            following = ahead.submit(batch, training.iteration + 1)
            progress(training.step(current))
            if stopped():
                keep(training)
                return None
            if time.monotonic() - saved > SAVE_SECONDS:
                keep(training)
                saved = time.monotonic()
    (net,) = training.ema.emas
    assert isinstance(net, ToyModel)
    return net


def trained(
    folder: Path,
    role: str,
    recipe: Recipe,
    seed: int,
    progress: Callable[[int, float | None], object] = lambda iteration, loss: None,
    stopped: Callable[[], bool] = lambda: False,
) -> ToyModel | None:
    """The net of a role, from the folder where it was kept, or trained and kept there.

    Args:
        folder: of the nets; made if missing.
        role: "main", "guide" or "uncond".
        recipe: how to train it.
        seed: of first weights and batches.
        progress: called with the steps done and the loss, which is None for steps done before.
        stopped: asked after each step whether to save and stop.

    Returns:
        The net, or None if it was stopped: called again it goes on, with the same result as if it
        had not been.

    Raises:
        OSError: the folder cannot be written.
    """
    path, partial = folder / f"{role}-{seed}.safetensors", folder / f"{role}-{seed}.partial.pt"
    about: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "seed": seed}
    if path.exists() and (net := _kept(path, about)):
        progress(recipe.iterations, None)
        return net
    folder.mkdir(parents=True, exist_ok=True)
    training = _begun(recipe, len(_ROLES) * seed + _ROLES.index(role), partial)
    progress(training.iteration, None)

    def keep(training: Training) -> None:
        write_atomically(partial, lambda path: torch.save(training.state_dict(), path))

    net = train(training, lambda loss: progress(training.iteration, loss), stopped, keep)
    if net is None:
        return None
    save(net, path, **about)
    partial.unlink(missing_ok=True)
    return _kept(path, about)


def _kept(path: Path, about: dict) -> ToyModel | None:
    """The net in a file; None, with a line, where that is damaged, or of another recipe."""
    try:
        net: Any = load(path)
    except ValueError as error:
        print(f"toy: {error}; training it anew", file=sys.stderr)
        return None
    if isinstance(net, ToyModel) and net.info == about:
        return net
    print(f"toy: {path} was trained otherwise; training it anew", file=sys.stderr)
    return None


def _begun(recipe: Recipe, stream: int, partial: Path) -> Training:
    """A training, from its saved state where there is one of use."""
    if partial.exists():
        training = Training(recipe, stream)
        try:
            training.load_state_dict(torch.load(partial, weights_only=True))
            return training
        except Exception:  # torch.load raises many kinds
            print(f"toy: {partial} is damaged or another's; training it anew", file=sys.stderr)
    return Training(recipe, stream)
