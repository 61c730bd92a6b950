"""What a run will cost, without running it: parameters, arithmetic, memory, time."""

from __future__ import annotations

import functools
import json
import math
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from autoguide_fast.networks import Precond
from autoguide_fast.textbook import TextbookPrecond

from .options import TrainOptions

# A step runs the net forward, and backward with respect to activations and to weights.
PASSES = 3


@dataclass(frozen=True)
class Estimate:
    """What training one net takes.

    parameters: count; macs: multiply-accumulates of one evaluation on one image; images: of the
    run; state_bytes: weights, gradients, Adam's moments and averages of one process;
    activation_bytes: what one pass keeps for its backward pass, of one process; micro: the images
    of a pass.
    """

    parameters: int
    macs: int
    images: int
    state_bytes: int
    activation_bytes: int
    micro: int

    @property
    def training_macs(self) -> float:
        """Multiply-accumulates of the whole run."""
        return float(PASSES * self.macs * self.images)


def estimate(
    options: TrainOptions, resolution: int, channels: int, label_dim: int, processes: int = 1
) -> Estimate:
    """Counts what a run takes, on nets without storage: as fast for the largest as the smallest.

    Args:
        options: of the run.
        resolution, channels, label_dim: of what the net sees.
        processes: that share a batch.
    """
    micro = options.share(processes)[1]
    with torch.device("meta"):
        net = Precond(resolution, channels, label_dim, **options.net_options()).train()

        def images(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
            return _arguments(count, channels, resolution, label_dim)

        if options.precision != "fp32":
            net.run_dtype = torch.bfloat16
        # Less what does not grow with the batch: weights as they are prepared.
        kept = _kept_bytes(net, images(2)) - _kept_bytes(net, images(1))
    macs = evaluation_macs(options, resolution, channels, label_dim)
    if net.unet.head_conv is not None:  # which samples do not need
        macs += net.unet.head_conv.weight.numel() * resolution**2
    parameters = sum(p.numel() for p in net.parameters())
    tensors = 1 + 1 + 2 + len(options.ema)
    holders = processes if options.shard else 1
    return Estimate(
        parameters,
        macs,
        options.duration,
        4 * parameters * tensors // holders,
        kept * micro,
        micro,
    )


def evaluation_macs(options: TrainOptions, resolution: int, channels: int, label_dim: int) -> int:
    """Multiply-accumulates of one evaluation on one image, counted on a net without storage.

    Raises:
        ValueError: there is no such net.
    """
    shaping = options.net_options() | {"dropout": 0.0}  # which multiplies nothing
    return _macs(resolution, channels, label_dim, json.dumps(shaping, sort_keys=True))


@functools.lru_cache(maxsize=64)
def _macs(resolution: int, channels: int, label_dim: int, net_options: str) -> int:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        net = Precond(resolution, channels, label_dim, **json.loads(net_options))
        with counter:
            TextbookPrecond(net).eval()(*_arguments(1, channels, resolution, label_dim))
    return counter.get_total_flops() // 2


def _arguments(
    count: int, channels: int, resolution: int, label_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images, noise levels and labels of a net without storage."""
    x = torch.empty(count, channels, resolution, resolution)
    return x, torch.empty(count), torch.empty(count, label_dim) if label_dim else None


def _kept_bytes(net: Precond, arguments: tuple) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters apart."""
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(*arguments, return_logvar=True, return_head=net.unet.head_conv is not None)
    del out
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def convolution_speed(seconds: float = 0.5) -> float:
    """Multiply-accumulates per second of a large 3x3 convolution in float32, measured here."""
    x = torch.randn(4, 128, 64, 64).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3)
    macs = x.numel() * weight[0].numel()
    best, end = math.inf, time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.nn.functional.conv2d(x, weight, padding=1)
            best = min(best, time.perf_counter() - start)
    return macs / best


def report(estimates: dict[str, Estimate], processes: int, speed: float) -> str:
    """The estimates as text, with the guide's share of the cost.

    Args:
        estimates: by name of the net, 'main' among them.
        processes: that share the work.
        speed: multiply-accumulates per second of one process at best.
    """
    lines = []
    for name, p in estimates.items():
        seconds = p.training_macs / (speed * processes)
        lines += [
            f"{name}:",
            f"  parameters         {p.parameters / 1e6:.2f} M",
            f"  one evaluation     {_count(p.macs)}MAC on one image = {_count(2 * p.macs)}FLOP "
            "(1 MAC = 2 FLOP; the papers' Gflops are MAC)",
            f"  training           {p.images:,} images, {_count(p.training_macs)}MAC = "
            f"{_count(2 * p.training_macs)}FLOP",
            f"  memory             {_bytes(p.state_bytes)} for weights, gradients, Adam and "
            f"averages + about {_bytes(p.activation_bytes)} for the activations of a pass of "
            f"{p.micro} image{'s' * (p.micro > 1)} (--microbatch N: of N), in each process",
            f"  time               at least {_duration(seconds)} on {processes} process"
            f"{'es' * (processes > 1)} like this one, at the {_count(2 * speed)}FLOP/s of a large "
            "convolution here",
        ]
    if len(estimates) > 1:
        others = sum(p.training_macs for name, p in estimates.items() if name != "main")
        lines.append(
            f"the guide adds {100 * others / estimates['main'].training_macs:.1f} % to the "
            "main net's training, counted in MAC"
        )
    return "\n".join(lines)


def _count(value: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if value < 1000 or unit == "E":
            return f"{value:.4g} {unit}"
        value /= 1000
    raise AssertionError


def _bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
