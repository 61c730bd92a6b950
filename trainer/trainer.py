"""One net in training: its weights, optimiser, averages and position, and the step it takes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autoguide_fast import encoders
from autoguide_fast.networks import Precond

from . import sharding
from .capture import CudaStepRecorder, Recorded, StepRecorder
from .data import Dataset, Loader, dropped_labels
from .devices import choose_device, compile_net
from .distillation import Distillation
from .draws import draw, draw_uniform, stream
from .ema import PowerFunctionEMA
from .loss import loss_of
from .net import make_net
from .optimizer import (
    LossScale,
    Update,
    gradients_of,
    load_moments,
    make_optimizer,
    moments,
    norm_of,
    set_rate,
)
from .options import TrainOptions, refuse_changes
from .precision import settled
from .processes import Processes
from .schedule import learning_rate
from .training_data import check_training_data, encode, identity, image_channels, open_training_data

FORMAT = 2  # of `Trainer.state_dict`; to be raised when an older one cannot be read any more


@dataclass
class Inputs:
    """What one pass is computed from, on the device.

    images: clean, float32 [n, C, H, W], channels-last; labels: one-hot float32 [n, label_dim], or
    None; sigma: float32 [n, 1, 1, 1]; noise: standard normal, shaped as the images; guidance:
    weights, float32 [n], of a net that takes them, or None.
    """

    images: torch.Tensor
    labels: torch.Tensor | None
    sigma: torch.Tensor
    noise: torch.Tensor
    guidance: torch.Tensor | None = None

    def copy_(self, other: Inputs) -> None:
        """Takes over the values of others, in place."""
        for mine, new in zip(vars(self).values(), vars(other).values(), strict=True):
            if mine is not None:
                mine.copy_(new)


class Trainer:
    """One net in training.

    The state after a step depends on the options alone: the net's first weights on `seed`, and
    the data order, noise and dropout of a step on `seed` and the images seen before it. Nothing
    random needs storing, so on a CPU a resumed run is bit for bit the run that was never
    interrupted. On a GPU it is so only where the libraries' algorithms are deterministic and
    chosen alike; else it agrees to rounding.

    With several processes each takes its share of every batch. What an image meets (noise level,
    noise, mirroring) does not depend on how many there are; only dropout masks do, and the order
    in which gradients are summed.

    With `options.graph` a pass and the update that ends a step are each recorded once as a CUDA
    graph and then replayed; nothing in them reads the device, which is done once, after the step.
    Several processes average their gradients between the two.

    Args:
        options: what to train; "auto" as the precision is decided here, see `precision_note`.
        dataset: the dataset; default: what the options name.
        processes: those that train together; default: this one alone.
        recorder: what records a step instead of CUDA graphs.

    Raises:
        ValueError: options, data, device and number of processes do not fit together.
    """

    _static: Inputs | None  # what the recorded pass reads
    _recorded_pass: Recorded | None
    _run_update: Callable[[], None]

    # Gradients are on in here, whatever the caller has turned off.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def __init__(
        self,
        options: TrainOptions,
        dataset: Dataset | None = None,
        processes: Processes | None = None,
        recorder: StepRecorder | None = None,
    ) -> None:
        self.processes = processes if processes is not None else Processes()
        self._share, self._micro = options.share(self.processes.count)
        self.device = choose_device(options, self.processes)
        self._recorder = recorder
        if options.graph and recorder is None:
            self._recorder = CudaStepRecorder(self.device)
        if dataset is None:
            dataset = open_training_data(options)
        else:
            check_training_data(dataset, options)
        self.dataset = dataset
        self._data: dict | None = None  # what it holds, once asked
        self.label_dim = dataset.num_classes if options.labelled else 0
        self.sharded = options.shard and self.processes.count > 1
        shape = dataset.resolution, image_channels(dataset), self.label_dim
        options, self.precision_note = settled(options, shape, self.processes, self.device)
        self.options = options  # with a type, where it was open
        self.net = make_net(options, shape, channels_last=not self.sharded)
        self.net.encoder = encoders.encoder(dataset.encoder_name)
        self.teacher: Distillation | None = None
        if options.teacher:
            self.teacher = Distillation(options, self.device)
            self.teacher.start(self.net)
        if self.sharded:
            sharding.shard(self.net, self.device, self.processes.count)
        else:
            self.net.to(self.device)
        self.optimizer = make_optimizer(
            self.net, options.betas, options.eps, capturable=self._recorder is not None
        )
        self.ema = PowerFunctionEMA(self.net, options.ema)
        if options.compile:
            compile_net(self.net)
        # The exchange that DDP weaves into the backward pass cannot be recorded with it.
        alone = self.sharded or self._recorder is not None
        self.model = self.net if alone else self.processes.wrap(self.net)
        self.loss = loss_of(options)
        self.scale = LossScale(options.precision, options.loss_scale, self.device)
        self._total = torch.zeros((), dtype=torch.float64, device=self.device)
        norm = functools.partial(sharding.sharded_norm, rank=self.processes.rank)
        self._update = Update(
            self.optimizer,
            self.scale,
            norm if self.sharded else norm_of,
            reads=self._recorder is None,
        )
        self._record_anew()
        self._loader: Loader | None = None
        self.nimg = 0
        self.seconds = 0.0  # of training, over all sittings
        self.repaired_steps = self.skipped_steps = 0
        self.gradient_norm = self.lr = math.nan

    @torch.inference_mode(False)
    @torch.enable_grad()
    def step(self) -> float:
        """One optimiser step; returns the mean loss over all elements of the batch."""
        o = self.options
        images, classes = self._read()
        self._clear_gradients()
        for start in range(0, self._share, self._micro):
            part = slice(start, start + self._micro)
            labels = None if classes is None else classes[part]
            offset = self.processes.rank * self._share + start
            inputs = self._inputs(images[part], labels, offset)
            if self.sharded:
                sharding.normalize(self.net)
            with self._accumulating(part.stop < self._share), self._dropout(offset):
                self._run_pass(inputs)
        if self.sharded:
            sharding.mean_gains(self.net, self.processes.count)
        if self._recorder is not None:
            self.processes.average(gradients_of(self.optimizer))
        self.lr = learning_rate(self.nimg, o.batch, o.lr, o.decay, o.rampup)
        set_rate(self.optimizer, self.lr)
        self._run_update()
        self.nimg += o.batch
        self.ema.update(self.nimg, o.batch)
        total, norm = torch.stack([self._total, self._update.norm]).tolist()
        if self.scale.dynamic and not math.isfinite(norm):
            self.skipped_steps += 1
        else:
            self.gradient_norm = norm
            self.repaired_steps += not math.isfinite(norm)
        return self.processes.sum(total)[0] / o.batch

    def know_data(self, known: dict | None = None) -> dict:
        """Finds out what the data hold, see `sources.identity`; all processes must ask."""
        held = self.processes.from_first(lambda: identity(self.dataset, known))
        self._data = held
        return held

    def _read(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """This process's images of the step and their classes, as stored, on the CPU."""
        o = self.options
        if self._loader is None:
            first = self.nimg + self.processes.rank * self._share
            ranges = ((start, self._share) for start in itertools.count(first, o.batch))
            pin = self.device.type == "cuda"
            self._loader = Loader(self.dataset, ranges, o.seed, o.flip, pin=pin)
        _, images, classes = next(self._loader)
        return images, classes

    def _inputs(self, images: torch.Tensor, classes: torch.Tensor | None, offset: int) -> Inputs:
        """What the pass over some images needs, those from `offset` of the whole batch on."""
        o, net = self.options, self.net
        shape = (net.img_channels, net.img_resolution, net.img_resolution)
        latents = self.dataset.encoder_name == "latents"
        drawn = draw(o.seed, self.nimg, offset, len(images), shape, latents)
        normal = None if drawn.latent is None else self._put(drawn.latent)
        images = encode(self.dataset, self._put(images), normal)
        labels = None
        if self.label_dim:
            assert classes is not None  # a dataset with classes gives them
            labels = torch.nn.functional.one_hot(classes, self.label_dim).to(torch.float32)
            if o.label_dropout:  # no label is all zeros, as nets take None
                labels[torch.from_numpy(self.dropped(self.nimg + offset, len(images)))] = 0
            labels = self._put(labels)
        images = images.contiguous(memory_format=torch.channels_last)
        sigma = (drawn.level * o.P_std + o.P_mean).exp()
        guidance = None
        if self.teacher is not None:
            uniform = draw_uniform(o.seed, self.nimg, offset, len(images))
            guidance = self._put(self.teacher.weights(uniform))
        return Inputs(images, labels, self._put(sigma), self._put(drawn.noise), guidance)

    def dropped(self, start: int, count: int) -> np.ndarray:
        """Which images of the stream are shown without their label, bool [count]."""
        return dropped_labels(self.options.seed, start, count, self.options.label_dropout)

    def _put(self, t: torch.Tensor) -> torch.Tensor:
        """A tensor on the device; copied, from page-locked memory, while the host goes on."""
        if self.device.type == "cpu":
            return t
        return t.pin_memory().to(self.device, non_blocking=True)

    def _clear_gradients(self) -> None:
        self._total.zero_()
        if self._recorder is None:
            self._drop_gradients()
            return
        gradients = []
        for p in self.net.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad)
        torch._foreach_zero_(gradients)

    def _drop_gradients(self) -> None:
        """Frees them: those of the parameters, and what the optimiser's views hold of the same."""
        self.net.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)

    def _accumulating(self, more: bool) -> AbstractContextManager[None]:
        """Holds back the exchange of gradients where more passes of the step follow."""
        if more and isinstance(self.model, torch.nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _dropout(self, offset: int) -> Iterator[None]:
        """Lets dropout draw from the stream of a position."""
        o = self.options
        if not o.dropout:
            yield
            return
        with torch.random.fork_rng(devices=[self.device] * (self.device.type == "cuda")):
            torch.manual_seed(stream(o.seed, self.nimg + offset, 1))
            yield

    def _run_pass(self, inputs: Inputs) -> None:
        if self._recorder is None:
            self._pass(inputs)
            return
        if self._static is None or self._recorded_pass is None:
            self._static = inputs
            self._recorded_pass = Recorded(lambda: self._pass(inputs), self._recorder)
        else:
            self._static.copy_(inputs)
        self._recorded_pass()

    def _pass(self, inputs: Inputs) -> None:
        """Forward and backward pass over some images; adds to gradients and to the sum of losses.

        Nothing of the device is read, so that it can be recorded. The types are the run's own,
        under autocast too, which would change those of products in the backward pass.
        """
        told: dict[str, Any] = {"sigma": inputs.sigma, "noise": inputs.noise}
        if self.teacher is not None:
            told |= {"guidance": inputs.guidance, "teacher": self.teacher}
        with torch.autocast(self.device.type, enabled=False):
            loss = self.loss(self.model, inputs.images, inputs.labels, **told)
            # The processes' gradients are averaged, so each share counts `count` times.
            factor = self.processes.count / self.options.batch
            if self.scale.dynamic:
                factor = self.scale.value * factor
            (loss.sum() * factor).backward()
        self._total.add_(loss.detach().mean(), alpha=len(inputs.images))

    def _record_anew(self) -> None:
        """Forgets what was recorded, whose memory is no longer that of the state."""
        self._static = self._recorded_pass = None
        self._run_update = self._update
        if self._recorder is not None:
            self._run_update = Recorded(self._update, self._recorder)

    def average(self, index: int) -> Precond | None:
        """One of the averages as a net with all its weights, in the first process; None elsewhere.

        All processes must ask.
        """
        with self.processes.together():
            average = self.ema.emas[index]
            assert isinstance(average, Precond)  # a copy of `net`
            return sharding.whole(average, self.processes.first, self.device)

    def close(self) -> None:
        """Lets go of the threads that read ahead."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def release(self) -> None:
        """Lets go of what only further steps need: gradients and the optimiser's moments."""
        self.close()
        self._record_anew()
        self._drop_gradients()
        self.optimizer.state.clear()

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain values and tensors.

        Of a sharded net all processes must ask, and the first gets it.
        """
        if self._data is None:
            self._data = identity(self.dataset)
        state = {
            "format": FORMAT,
            "options": self.options.as_dict(),
            "data": self._data,
            "nimg": self.nimg,
            "seconds": self.seconds,
            "repaired_steps": self.repaired_steps,
            "skipped_steps": self.skipped_steps,
            "loss_scale": self.scale.state(),
            "net": self.net.state_dict(),
            "optimizer": moments(self.optimizer),
            "ema": self.ema.state_dict(),
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.identity()
        with self.processes.together():
            return sharding.gather(state, self.processes.first)

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict()`, by whatever number of processes it was written.

        Raises:
            ValueError: the state belongs to a run with other options or other data, and each
                difference is named, or was written by a version of this package that wrote it
                otherwise.
        """
        form = state.get("format", 1)
        if form != FORMAT:
            raise ValueError(
                f"train: a checkpoint must have format {FORMAT}, got {form}, that of another "
                "version of autoguide_fast; finish the run with that version, or choose another "
                "--out and start again"
            )
        self.options.refuse_changes(state["options"])
        if "data" in state:
            now = {k: v for k, v in self.know_data(state["data"]).items() if k != "stamp"}
            refuse_changes(
                state["data"],
                now,
                "data",
                "bring them back as they were, and name them with --data if they have moved",
            )
        else:  # of a version that did not look into the data
            refuse_changes({"data": state["options"]["data"]}, {"data": self.options.data})
            if getattr(self.dataset, "renumbered", False):
                raise ValueError(
                    "train: data must have the classes that the run began with, got folders named "
                    "by numbers, which the version that began it took in the order 0, 1, 10, 11, "
                    "2; add a dataset.json with those classes, or choose another --out"
                )
        if self.teacher is not None:
            refuse_changes(
                {"teacher": state.get("teacher")},
                {"teacher": self.teacher.identity()},
                "the nets of the teacher",
                "name those that the run began with, wherever they lie now",
            )
        self.close()
        self._record_anew()
        self.nimg, self.seconds = state["nimg"], state["seconds"]
        self.repaired_steps = state["repaired_steps"]
        self.skipped_steps = state["skipped_steps"]
        self.scale.load(state["loss_scale"])
        self.net.load_state_dict(sharding.scatter(state["net"], self.net))
        load_moments(self.optimizer, state["optimizer"])
        self.ema.load_state_dict(state["ema"])
