"""Over hundreds of steps the loss falls as the textbook's does, as near as rounding lets it."""

from __future__ import annotations

import copy

import numpy as np
import torch
from tolerances import assert_as_exact

from autoguide_fast.ema import power_function_beta
from autoguide_fast.textbook import TextbookPrecond
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.schedule import learning_rate
from autoguide_fast.trainer.trainer import Trainer

STEPS, WINDOW = 200, 20
OPTIONS = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 320.0, "decay": 50.0}


def trained(seed):
    """Train; return the trainer, its losses, and what each of them was computed from."""
    trainer = Trainer(TrainOptions(**OPTIONS, seed=seed))
    start, loss, seen = copy.deepcopy(trainer.net), trainer.loss, []

    def listening(net, images, labels, **drawn):
        seen.append((images, labels, drawn))
        return loss(net, images, labels, **drawn)

    trainer.loss = listening
    losses = np.array([trainer.step() for _ in range(STEPS)])
    trainer.close()
    trainer.loss = loss
    return trainer, losses, start, seen


def textbook(trainer, net, seen, dtype=torch.float32):
    """Train as the equations say, one parameter after the other; return average and losses."""
    net = copy.deepcopy(net).to(dtype)
    o, model, losses = trainer.options, TextbookPrecond(net), []
    optimizer = torch.optim.Adam(net.parameters(), betas=o.betas, eps=o.eps, foreach=False)
    average = copy.deepcopy(net)
    for i, (images, labels, drawn) in enumerate(seen):
        nimg = i * o.batch
        optimizer.param_groups[0]["lr"] = learning_rate(nimg, o.batch, o.lr, o.decay, o.rampup)
        optimizer.zero_grad()
        drawn = {name: value.to(dtype) for name, value in drawn.items()}
        loss = trainer.loss(model, images.to(dtype), labels, **drawn)
        (loss.sum() / o.batch).backward()
        optimizer.step()
        losses.append(loss.detach().mean().item())
        beta = power_function_beta(o.ema[0], nimg + o.batch, o.batch)
        with torch.no_grad():
            for p, q in zip(average.parameters(), net.parameters(), strict=True):
                p.copy_(beta * p + (1 - beta) * q)
    return average, np.array(losses)


def windows(losses):
    return losses.reshape(-1, WINDOW).mean(1)


def test_the_loss_falls_as_the_textbooks():
    trainer, ours, start, seen = trained(seed=3)
    average, theirs = textbook(trainer, start, seen)
    _, exact = textbook(trainer, start, seen[:WINDOW], torch.float64)
    _, other, _, _ = trained(seed=4)
    noise = abs(windows(other) / windows(ours) - 1).mean()
    # Two orders of summation drift apart as training amplifies them; two seeds differ by far more.
    assert_as_exact(*map(torch.from_numpy, (ours[:WINDOW], theirs[:WINDOW].astype("f"), exact)))
    assert abs(windows(theirs) / windows(ours) - 1).max() < 0.1 * noise
    assert windows(ours)[-1] < 0.6 * windows(ours)[0]
    for (name, p), q in zip(
        average.named_parameters(), trainer.ema.emas[0].parameters(), strict=True
    ):
        assert (p - q).norm() <= 0.05 * (p.norm() + 1e-3), name
