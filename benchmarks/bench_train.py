"""A step of training, data, noise, averages and all, against the textbook's loop.

    pytest --benchmark benchmarks/bench_train.py
    python benchmarks/bench_train.py ours digits float32

The second form prints the bytes by which the resident memory of steady state exceeds that of the
process before it had a net; `--benchmark-memory` runs it for every contestant of a row.
"""

import copy
import dataclasses
import importlib
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from ceilings import arithmetic
from pinning import unpinned
from racing import race

from autoguide_fast import ema
from autoguide_fast.textbook import TextbookPrecond
from autoguide_fast.trainer import estimate
from autoguide_fast.trainer.loss import EDM2Loss
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.presets import preset
from autoguide_fast.trainer.schedule import learning_rate
from autoguide_fast.trainer.trainer import Trainer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
# How far the loss of one batch may lie from the textbook's, relative.
TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}

_XXS = {k: v for k, v in preset("edm2-img512-xxs").items() if k not in ("duration", "batch")}
# Options, then resolution, channels and classes of the images.
NETS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "digits": ({"batch": 256}, (8, 1, 10)),
    "pixel-32": (
        {
            "batch": 8,
            "channels": 64,
            "channel_mult": (1, 2, 2),
            "num_blocks": 2,
            "attn_resolutions": (16, 8),
            "channels_per_head": 64,
        },
        (32, 3, 10),
    ),
    "edm2-xxs": ({"batch": 2, **_XXS}, (64, 4, 1000)),
}


class RandomImages:
    """As many random images as there are places in two batches, in the trainer's protocol."""

    name, encoder_name = "random", "pixels"

    def __init__(self, shape, count):
        self.resolution, self.channels, self.num_classes = shape
        random = np.random.default_rng(0)
        size = [count, self.channels, self.resolution, self.resolution]
        self.images = random.integers(0, 256, size, dtype=np.uint8)
        self.classes = random.integers(0, self.num_classes, count)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], self.classes[indices]


def options_of(net_name, dtype):
    """Return the options of a run of that net in that type."""
    options = NETS[net_name][0]
    return TrainOptions(**options, duration=1000 * options["batch"], precision=PRECISIONS[dtype])


def trainer_of(net_name, dtype):
    """Return our trainer of that net."""
    options = options_of(net_name, dtype)
    return Trainer(options, RandomImages(NETS[net_name][1], 2 * options.batch))


class TextbookLoop:
    """The training loop as the papers' equations suggest it: one parameter after the other.

    Args:
        net: the `Precond` to train, a copy of whose weights is taken.
        source: images; drawn in order.
        options: of the run; Adam, averages and gradients are looped over.
        dtype: "bfloat16" runs the net under autocast.
        wrap: makes of the net what is called.
    """

    def __init__(self, net, source, options, dtype, wrap=TextbookPrecond):
        self.net, self.source, self.options, self.dtype = net, source, options, dtype
        self.model = wrap(net)
        self.loss = EDM2Loss(options.P_mean, options.P_std, options.sigma_data)
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=0.0, betas=options.betas, eps=options.eps, foreach=False
        )
        self.averages = [copy.deepcopy(net).eval().requires_grad_(False) for _ in options.ema]
        self.nimg = 0

    def losses(self, images, labels, sigma=None, noise=None):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
            return self.loss(self.model, images, labels, sigma, noise)

    def step(self):
        o = self.options
        images, classes = self.source.batch(
            np.arange(self.nimg, self.nimg + o.batch) % len(self.source)
        )
        images = torch.from_numpy(images).float() / 127.5 - 1
        labels = torch.nn.functional.one_hot(torch.from_numpy(classes), self.source.num_classes)
        return self.train_on(images, labels.float())

    def train_on(self, images, labels, sigma=None, noise=None):
        """One step on a batch; returns its mean loss."""
        o = self.options
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.losses(images, labels, sigma, noise)
        (loss.sum() / o.batch).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.nimg, o.batch, o.lr, o.decay, o.rampup)
        for p in self.net.parameters():
            torch.nan_to_num(p.grad, nan=0.0, posinf=1e5, neginf=-1e5, out=p.grad)
        self.optimizer.step()
        self.nimg += o.batch
        with torch.no_grad():
            for sigma_rel, average in zip(o.ema, self.averages, strict=True):
                beta = ema.power_function_beta(sigma_rel, self.nimg, o.batch)
                for p, q in zip(self.net.parameters(), average.parameters(), strict=True):
                    q.lerp_(p, 1 - beta)
        return float(loss.detach().mean())


def _compiled(net):
    # With it Inductor computes wrong gradients on CPUs; see autoguide_fast.textbook.
    torch._inductor.config.layout_optimization = False
    with unpinned():
        return torch.compile(TextbookPrecond(net), fullgraph=True, dynamic=False)


def rival_of(name, trainer, dtype, path=None):
    """Return the loop of a rival over a copy of the trainer's net; all but one in its type."""
    if name == "eager-float32":
        dtype = "float32"
    if name == "ours_compiled":
        options = dataclasses.replace(trainer.options, compile=True)
        with unpinned():
            return Trainer(options, trainer.dataset)
    net = copy.deepcopy(trainer.net)
    net.run_dtype = None
    wrap = {"compile": _compiled}.get(name, TextbookPrecond)
    if name == "reference":
        if os.path.abspath(path) not in sys.path:
            sys.path.insert(0, os.path.abspath(path))
        theirs = importlib.import_module("training.networks_edm2").Precond(**net.config)
        theirs.load_state_dict(net.state_dict())
        net, wrap = theirs.train(), lambda net: net
    return TextbookLoop(net, trainer.dataset, trainer.options, dtype, wrap)


def check(trainer, rivals, dtype):
    """Raise where the loss of one batch is not the textbook's."""
    images, classes = trainer.dataset.batch(np.arange(trainer.options.batch))
    images = torch.from_numpy(images).float() / 127.5 - 1
    labels = torch.nn.functional.one_hot(torch.from_numpy(classes), trainer.label_dim).float()
    generator = torch.Generator().manual_seed(0)
    sigma = torch.randn([len(images), 1, 1, 1], generator=generator).exp()
    noise = torch.randn(images.shape, generator=generator)
    expected = rivals["eager"].losses(images, labels, sigma, noise).mean().item()
    layout = images.contiguous(memory_format=torch.channels_last)
    found = {"ours": trainer.loss(trainer.net, layout, labels, sigma, noise)}
    rivals = {k: r for k, r in rivals.items() if k != "ours_compiled"}  # which a test compares
    found |= {k: r.losses(images, labels, sigma, noise) for k, r in rivals.items()}
    for name, loss in found.items():
        if not math.isclose(loss.mean().item(), expected, rel_tol=TOLERANCES[dtype]):
            raise AssertionError(f"{name}: loss {loss.mean().item()}, the textbook's {expected}")


def _rows():
    for net_name in NETS:
        for dtype in DTYPES:
            marks = () if net_name == "digits" else pytest.mark.long
            yield pytest.param(net_name, dtype, marks=marks, id=f"{net_name}-{dtype}")


@pytest.mark.parametrize("net_name, dtype", list(_rows()))
def bench_train(net_name, dtype, benchmark, request):
    """Race a step of one net in one type."""
    path = request.config.getoption("--reference")
    # Compiling the backward pass of the larger nets takes longer than all else here.
    compiles = net_name == "digits" and not request.config.getoption("--benchmark-eager")
    names = [
        "eager",
        *(["eager-float32"] if dtype != "float32" else []),
        *(["compile", "ours_compiled"] if compiles else []),
        *(["reference"] if path else []),
    ]
    info = benchmark.extra_info
    with torch.enable_grad():
        trainer = trainer_of(net_name, dtype)
        try:
            rivals = {name: rival_of(name, trainer, dtype, path) for name in names}
            check(trainer, rivals, dtype)
            batch = trainer.options.batch
            macs = estimate.estimate(trainer.options, *NETS[net_name][1]).macs
            benchmark.group = "train"
            steps = {name: rival.step for name, rival in rivals.items()}
            race(benchmark, trainer.step, steps, arithmetic(DTYPES[dtype]), 6 * macs * batch / 1e9)
        finally:
            trainer.close()
    for name in ("ours", *names):
        info[f"{name}_images_per_s"] = batch / info[f"{name}_median_s"]
        if request.config.getoption("--benchmark-memory"):
            info[f"{name}_bytes"] = _measured(name, net_name, dtype, path)
    print(
        " ".join(f"{name} {info[f'{name}_images_per_s']:.1f} images/s" for name in ("ours", *names))
    )


def _measured(*arguments):
    command = [sys.executable, __file__, *(a for a in arguments if a)]
    with unpinned():
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"bench_train: {' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return int(run.stdout.split()[-1])


def main(name, net_name, dtype, path=None):
    """Print the peak memory of one contestant."""
    import memory

    torch.set_num_threads(1)
    trainer_of("digits", dtype).close()  # what is imported late is not the step's
    baseline = memory._status("VmRSS")
    trainer = trainer_of(net_name, dtype)
    contestant = trainer
    if name != "ours":
        contestant = rival_of(name, trainer, dtype, path)
        source, trainer = trainer.dataset, None  # the rival keeps a copy of what it needs
        contestant.source = source
    contestant.step()
    memory._forget_peak()
    contestant.step()
    if trainer is not None:
        trainer.close()
    print(memory._status("VmHWM") - baseline)


if __name__ == "__main__":
    main(*sys.argv[1:])
