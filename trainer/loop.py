"""The training loop: steps, averages, snapshots, checkpoints, interruption and resumption."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from autoguide_fast import checkpoints
from autoguide_fast.encoders import PixelEncoder
from autoguide_fast.networks import Precond

from .digits import DigitsData
from .ema import PowerFunctionEMA
from .loss import EDM2Loss
from .options import TrainOptions
from .schedule import learning_rate

CHECKPOINT = "checkpoint.pt"
OPTIONS = "options.json"
LOG = "log.jsonl"
SNAPSHOTS = "snapshots"
GRADIENT_LIMIT = 1e5  # what an infinite gradient becomes; far above any that training meets


def make_optimizer(net: torch.nn.Module) -> torch.optim.Adam:
    """Adam with betas (0.9, 0.99) and eps 1e-8 (EDM2 table 6); the rate is set at each step."""
    return torch.optim.Adam(net.parameters(), lr=0.0, betas=(0.9, 0.99), eps=1e-8)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, lr: float) -> bool:
    """One step on `loss.sum() / N`, with [N, ...] losses as `EDM2Loss` returns them.

    A gradient element that is not finite counts as 0 (NaN) or +-1e5 (infinite), so that one bad
    batch cannot end a run.

    Returns:
        True where gradients had to be repaired.
    """
    optimizer.zero_grad(set_to_none=True)
    (loss.sum() / loss.shape[0]).backward()
    gradients = []
    for group in optimizer.param_groups:
        group["lr"] = lr
        gradients += [p.grad for p in group["params"] if p.grad is not None]
    repaired = not math.isfinite(sum(torch.stack(torch._foreach_norm(gradients)).tolist()))
    if repaired:
        for g in gradients:
            torch.nan_to_num(g, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=g)
    optimizer.step()
    return repaired


class Trainer:
    """One net in training: its weights, optimiser, averages and position.

    The state after a step depends on the options alone: the net's first weights on `seed`, and
    the data order, noise and dropout of a step on `seed` and the images seen before it. Nothing
    random needs storing, so a resumed run is bit for bit the run that was never interrupted.

    Args:
        options: what to train.
        data: serves `batch(position, batch_size, seed)`; default: the digits.
    """

    def __init__(self, options: TrainOptions, data: DigitsData | None = None) -> None:
        self.options = options
        self.data = data if data is not None else DigitsData(options.split, options.labelled)
        self.encoder = PixelEncoder()
        channels, resolution = self.data.images.shape[1:3]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_stream(options.seed, 0))
            net = Precond(resolution, channels, self.data.label_dim, **options.net_options())
        net.encoder = self.encoder
        # Convolutions this small run two to three times faster on channels-last tensors.
        self.net = net.to(memory_format=torch.channels_last).train()
        self.loss = EDM2Loss(options.P_mean, options.P_std, options.sigma_data)
        self.optimizer = make_optimizer(self.net)
        self.ema = PowerFunctionEMA(self.net, options.ema)
        self.nimg = 0
        self.repaired_steps = 0

    def step(self) -> float:
        """One optimiser step; returns the mean loss over all elements."""
        o = self.options
        images, labels = self.data.batch(self.nimg, o.batch, o.seed)
        images = self.encoder.encode(images).contiguous(memory_format=torch.channels_last)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_stream(o.seed, 1 + self.nimg))
            loss = self.loss(self.net, images, labels)
        lr = learning_rate(self.nimg, o.batch, o.lr, o.decay, o.rampup)
        self.repaired_steps += optimizer_step(self.optimizer, loss, lr)
        self.nimg += o.batch
        self.ema.update(self.nimg, o.batch)
        return float(loss.detach().mean())

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain values and tensors."""
        return {
            "options": self.options.as_dict(),
            "nimg": self.nimg,
            "repaired_steps": self.repaired_steps,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict()`.

        Raises:
            ValueError: the state belongs to a run with other options, each of which is named.
        """
        changed = self.options.changed_from(state["options"])
        if changed:
            mine = self.options.as_dict()
            listed = ", ".join(f"{k} was {state['options'].get(k)}, is {mine[k]}" for k in changed)
            raise ValueError(
                f"train: options must stay as in the run that is resumed, got changes: {listed}; "
                "repeat the first command with --resume, or choose another --out"
            )
        self.nimg = state["nimg"]
        self.repaired_steps = state["repaired_steps"]
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])


def train(
    options: TrainOptions,
    out: str | os.PathLike,
    resume: bool = False,
    progress: bool = True,
    stop: Callable[[int], bool] | None = None,
) -> Trainer:
    """Trains to `options.duration`, leaving snapshots and a checkpoint in the folder `out`.

    Written there: `options.json`, `log.jsonl` (one line per snapshot: images, loss, rate, speed),
    `checkpoint.pt` and `snapshots/NIMG-SIGMA_REL.safetensors`. Each file is written whole under
    another name and then renamed, so that whatever happens the last one stays readable. Ctrl-C
    (or SIGTERM) ends the run after the step in progress and saves it; a second Ctrl-C ends it
    at once.

    Args:
        options: what to train.
        out: folder, made if missing.
        resume: continue the run in `out`.
        progress: show a bar with loss and images per second.
        stop: asked after every step with the images seen; True ends the run as Ctrl-C does.

    Returns:
        The trainer in its last state; `trainer.nimg < options.duration` if it was interrupted.

    Raises:
        ValueError: `out` holds a run and `resume` is False, holds none and `resume` is True, or
            holds one with other options.
        FloatingPointError: the loss is no longer finite.
    """
    out = Path(out)
    trainer = Trainer(options)
    _open_run(trainer, out, resume)
    marks = _snapshot_marks(options)
    bar = _progress_bar(options, trainer.nimg, progress)
    losses: list[float] = []
    started = time.perf_counter()
    with _interruption() as interrupted, bar:
        while trainer.nimg < options.duration:
            losses.append(trainer.step())
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"train: loss must stay finite, got {losses[-1]} after {trainer.nimg} images; "
                    f"lower --lr and resume from {out / CHECKPOINT} or start again"
                )
            speed = len(losses) * options.batch / (time.perf_counter() - started)
            bar.update(options.batch)
            bar.set_postfix(loss=f"{losses[-1]:.4f}", images_per_s=f"{speed:.0f}", refresh=False)
            stopping = interrupted() or (stop is not None and stop(trainer.nimg))
            if trainer.nimg in marks:
                save_snapshots(trainer, out)
                recent = losses[-max(1, options.steps // options.snapshots) :]
                _log(out, nimg=trainer.nimg, loss=float(np.mean(recent)), images_per_s=speed,
                     lr=trainer.optimizer.param_groups[0]["lr"])  # fmt: skip
            if stopping or trainer.nimg in marks or trainer.nimg >= options.duration:
                save_checkpoint(trainer, out)
            if stopping:
                break
    return trainer


def stored_options(out: str | os.PathLike) -> dict:
    """Options of the run in the folder `out`, or {} if it holds none."""
    path = Path(out) / OPTIONS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def save_snapshots(trainer: Trainer, out: Path) -> None:
    """Writes every tracked average as it stands, to `snapshots/NIMG-SIGMA_REL.safetensors`."""
    for sigma_rel, net in zip(trainer.ema.sigma_rels, trainer.ema.emas, strict=True):
        path = out / SNAPSHOTS / f"{trainer.nimg:09d}-{sigma_rel:.3f}.safetensors"
        info = {"nimg": trainer.nimg, "sigma_rel": sigma_rel}
        _atomically(path, lambda p, net=net, info=info: checkpoints.save(net, p, **info))


def save_checkpoint(trainer: Trainer, out: Path) -> None:
    """Writes the state to resume from, to `checkpoint.pt`."""
    _atomically(out / CHECKPOINT, lambda path: torch.save(trainer.state_dict(), path))


def _open_run(trainer: Trainer, out: Path, resume: bool) -> None:
    """Prepares the folder, or takes up the run in it."""
    checkpoint = out / CHECKPOINT
    if resume:
        if not checkpoint.is_file():
            raise ValueError(
                f"train: out must hold {CHECKPOINT} to resume from, got {out} without one; "
                "leave out --resume to start there"
            )
        trainer.load_state_dict(torch.load(checkpoint, weights_only=True))
    elif (out / OPTIONS).exists():
        raise ValueError(
            f"train: out must be a folder without a run, got {out}; add --resume to go on with "
            "that run, or choose another folder"
        )
    (out / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    text = json.dumps(trainer.options.as_dict(), indent=1) + "\n"
    _atomically(out / OPTIONS, lambda path: path.write_text(text))


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Has `write` make a file beside `path`, brings it to the disk, and renames it to `path`."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _stream(seed: int, position: int) -> int:
    """Seed of the random stream used at one position of one run."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1, np.uint64)[0] >> 1)


def _snapshot_marks(options: TrainOptions) -> set[int]:
    """Image counts at which snapshots are taken: evenly spread steps, the last one included."""
    count = min(options.snapshots, options.steps)
    return {round(options.steps * (k + 1) / count) * options.batch for k in range(count)}


def _log(out: Path, **row: float) -> None:
    with open(out / LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _progress_bar(options: TrainOptions, nimg: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=options.duration, initial=nimg, unit="img", unit_scale=True, desc="train",
                disable=not progress, file=sys.stderr, mininterval=0.5)  # fmt: skip


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; a second one acts as usual."""
    received = []
    previous = {}

    def handle(number, frame):
        received.append(number)
        signal.signal(number, previous[number])

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
