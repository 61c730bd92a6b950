"""One net in training: its weights, optimiser, averages and position, and the step it takes."""

from __future__ import annotations

import contextlib
import itertools
import math

import torch

from autoguide_fast import encoders
from autoguide_fast.networks import Precond

from .data import Loader
from .draws import draw, stream
from .ema import PowerFunctionEMA
from .loss import EDM2Loss
from .options import TrainOptions
from .processes import Processes
from .schedule import learning_rate
from .sources import check_source, encode, image_channels, open_source

GRADIENT_LIMIT = 1e5  # what an infinite gradient becomes; far above any that training meets
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(
    net: torch.nn.Module, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
) -> torch.optim.Adam:
    """Adam (EDM2 table 6), fused: one pass over all parameters. The rate is set at each step.

    The fused kernel copies what is not contiguous, to and fro. A channels-last weight is therefore
    given to it as a contiguous view of the same memory, which `apply_gradients` knows of.
    """
    views = [_contiguous_view(p) for p in net.parameters()]
    return torch.optim.Adam(views, lr=0.0, betas=betas, eps=eps, fused=True)


def _contiguous_view(p: torch.nn.Parameter) -> torch.Tensor:
    if p.is_contiguous():
        return p
    view = p.detach().permute(0, 2, 3, 1)
    view.owner = p
    return view


def optimizer_step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, lr: float) -> bool:
    """One step on `loss.sum() / N`, with [N, ...] losses as `EDM2Loss` returns them.

    Returns:
        True where gradients had to be repaired; see `apply_gradients`.
    """
    optimizer.zero_grad(set_to_none=True)
    (loss.sum() / loss.shape[0]).backward()
    return not math.isfinite(apply_gradients(optimizer, lr))


def apply_gradients(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """One step with the gradients that are there.

    A gradient element that is not finite counts as 0 (NaN) or +-1e5 (infinite), so that one bad
    batch cannot end a run.

    Returns:
        The norm of the gradients before any repair; not finite where there was one.
    """
    gradients = _gradients(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = lr
    norm = _norm(gradients)
    if not math.isfinite(norm):
        for g in gradients:
            torch.nan_to_num(g, nan=0.0, posinf=GRADIENT_LIMIT, neginf=-GRADIENT_LIMIT, out=g)
    optimizer.step()
    return norm


def _gradients(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The gradients that are there, those of views taken from the parameters that own them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        owner = getattr(p, "owner", None)
        if owner is not None:
            p.grad = None if owner.grad is None else owner.grad.permute(0, 2, 3, 1)
    return [p.grad for p in parameters if p.grad is not None]


def _norm(tensors: list[torch.Tensor]) -> float:
    return torch.stack(torch._foreach_norm(tensors)).norm().item()


class LossScale:
    """Keeps float16 gradients in range: the loss is multiplied, the gradients divided.

    Steps whose gradients overflow are left out and halve the scale; 2000 good ones in a row
    double it. With other types the scale is 1 and nothing is ever left out.
    """

    GROWTH_STEPS = 2000

    def __init__(self, precision: str, start: float) -> None:
        self.dynamic = precision == "fp16"
        self.value = start if self.dynamic else 1.0
        self.good_steps = 0

    def unscale(self, gradients: list[torch.Tensor]) -> bool:
        """Divides the gradients; returns whether the step is to be taken."""
        if not self.dynamic:
            return True
        torch._foreach_mul_(gradients, 1 / self.value)
        if not math.isfinite(_norm(gradients)):
            self.value, self.good_steps = max(self.value / 2, 1.0), 0
            return False
        self.good_steps += 1
        if self.good_steps == self.GROWTH_STEPS:
            self.value, self.good_steps = self.value * 2, 0
        return True


class Trainer:
    """One net in training.

    The state after a step depends on the options alone: the net's first weights on `seed`, and
    the data order, noise and dropout of a step on `seed` and the images seen before it. Nothing
    random needs storing, so a resumed run is bit for bit the run that was never interrupted.

    With several processes each takes its share of every batch. What an image meets (noise level,
    noise, mirroring) does not depend on how many there are; only dropout masks do, and the order
    in which gradients are summed.

    Args:
        options: what to train.
        source: the dataset; default: what the options name.
        processes: those that train together; default: this one alone.

    Raises:
        ValueError: options, data and number of processes do not fit together.
    """

    def __init__(
        self, options: TrainOptions, source=None, processes: Processes | None = None
    ) -> None:
        self.options = options
        self.processes = processes if processes is not None else Processes()
        self._share, self._micro = options.share(self.processes.count)
        if source is None:
            source = open_source(options)
        else:
            check_source(source, options)
        self.source = source
        self.label_dim = source.num_classes if options.labelled else 0
        self.net = make_net(options, source)
        self.model = self.processes.wrap(self.net)
        self.loss = EDM2Loss(options.P_mean, options.P_std, options.sigma_data)
        self.optimizer = make_optimizer(self.net, options.betas, options.eps)
        self.ema = PowerFunctionEMA(self.net, options.ema)
        self.scale = LossScale(options.precision, options.loss_scale)
        self._loader: Loader | None = None
        self.nimg = 0
        self.seconds = 0.0  # of training, over all sittings
        self.repaired_steps = self.skipped_steps = 0
        self.gradient_norm = math.nan

    def step(self) -> float:
        """One optimiser step; returns the mean loss over all elements of the batch."""
        o = self.options
        offset = self.processes.rank * self._share
        if self._loader is None:
            ranges = (
                (start + offset, self._share) for start in itertools.count(self.nimg, o.batch)
            )
            self._loader = Loader(self.source, ranges, o.seed, o.flip)
        _, images, classes = next(self._loader)
        self.net.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, self._share, self._micro):
            part = slice(start, start + self._micro)
            last = part.stop == self._share
            with contextlib.nullcontext() if last or self.processes.count == 1 \
                    else self.model.no_sync():  # fmt: skip
                loss = self._losses(
                    images[part], None if classes is None else classes[part], offset + start
                )
                # The processes' gradients are averaged, so each share counts `count` times.
                factor = self.scale.value * self.processes.count / o.batch
                (loss.sum() * factor).backward()
            total += loss.detach().mean().item() * self._micro
        lr = learning_rate(self.nimg, o.batch, o.lr, o.decay, o.rampup)
        if self.scale.unscale(_gradients(self.optimizer)):
            self.gradient_norm = apply_gradients(self.optimizer, lr)
            self.repaired_steps += not math.isfinite(self.gradient_norm)
        else:
            self.skipped_steps += 1
        self.nimg += o.batch
        self.ema.update(self.nimg, o.batch)
        return self.processes.sum(total)[0] / o.batch

    def _losses(self, images, classes, offset: int) -> torch.Tensor:
        """Losses of some images of the step, those from `offset` of the whole batch on."""
        o, net = self.options, self.net
        shape = (net.img_channels, net.img_resolution, net.img_resolution)
        latents = self.source.encoder_name == "latents"
        drawn = draw(o.seed, self.nimg, offset, len(images), shape, latents)
        images = encode(self.source, images, drawn.latent)
        labels = None
        if self.label_dim:
            labels = torch.nn.functional.one_hot(classes, self.label_dim).to(torch.float32)
        sigma = (drawn.level * o.P_std + o.P_mean).exp()
        with torch.random.fork_rng(devices=[]):
            if o.dropout:
                torch.manual_seed(stream(o.seed, self.nimg + offset, 1))
            images = images.contiguous(memory_format=torch.channels_last)
            return self.loss(self.model, images, labels, sigma=sigma, noise=drawn.noise)

    def close(self) -> None:
        """Lets go of the threads that read ahead."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def release(self) -> None:
        """Lets go of what only further steps need: gradients and the optimiser's moments."""
        self.close()
        self.net.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain values and tensors."""
        return {
            "options": self.options.as_dict(),
            "nimg": self.nimg,
            "seconds": self.seconds,
            "repaired_steps": self.repaired_steps,
            "skipped_steps": self.skipped_steps,
            "loss_scale": [self.scale.value, self.scale.good_steps],
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores `state_dict()`.

        Raises:
            ValueError: the state belongs to a run with other options, each of which is named.
        """
        self.options.refuse_changes(state["options"])
        self.close()
        self.nimg, self.seconds = state["nimg"], state["seconds"]
        self.repaired_steps = state["repaired_steps"]
        self.skipped_steps = state["skipped_steps"]
        self.scale.value, self.scale.good_steps = state["loss_scale"]
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])


def make_net(options: TrainOptions, source) -> Precond:
    """The untrained net of a run, its weights drawn from the run's seed."""
    label_dim = source.num_classes if options.labelled else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(options.seed, 0))
        net = Precond(source.resolution, image_channels(source), label_dim, **options.net_options())
    net.encoder = encoders.encoder(source.encoder_name)
    net.run_dtype = _DTYPES[options.precision]
    # As the images are: convolutions then take weights, and give their gradients, without a copy.
    for p in net.parameters():
        if p.ndim == 4 and p.shape[-1] > 1:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return net.train()
