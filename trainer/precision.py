"""`precision="auto"`: float32 or bfloat16, whichever trains a net faster where the run begins.

What was chosen is the run's from then on: its options hold the type itself, so that it goes on in
it wherever it is resumed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from autoguide_fast import cpu, kept_choices
from autoguide_fast.engine import choice
from autoguide_fast.ops.conv3x3_choice import choices_made

from .loss import loss_of
from .net import DTYPES, make_net
from .options import AUTO, TrainOptions
from .processes import Processes

# The first bears what only the first pass costs: better the one that must gain something.
RACED = ("bf16", "fp32")
# What bfloat16, which rounds more, has to gain over float32.
MARGIN = 0.05
# Of the race, after which nothing more is begun, and rounds at most.
SECONDS, ROUNDS = 1.0, 10
# Images by which it is known what more would cost.
_FEW = 4


def as_stored(options: TrainOptions, stored: dict) -> TrainOptions:
    """The options with the type that a run was begun in, where they leave it open.

    Args:
        options: of the run as it is asked for now.
        stored: those of the run that goes on, `TrainOptions.as_dict`; may be empty.
    """
    if options.precision != AUTO or "precision" not in stored:
        return options
    return dataclasses.replace(options, precision=stored["precision"])


def settled(
    options: TrainOptions,
    shape: Sequence[int],
    processes: Processes,
    device: torch.device,
) -> tuple[TrainOptions, str | None]:
    """The options with a type, and a sentence that says why that one; None where they had one.

    The first process decides for all, so all must ask.

    Args:
        options: of the run.
        shape: resolution, channels and classes of what the net sees.
        processes: that train together.
        device: where this one trains.
    """
    if options.precision != AUTO:
        return options, None
    found, why = processes.from_first(lambda: decide(options, shape, processes.count, device))
    return dataclasses.replace(options, precision=found), f"precision is {found}: {why}"


def decide(
    options: TrainOptions, shape: Sequence[int], count: int, device: torch.device
) -> tuple[str, str]:
    """The type that trains such a net faster on this machine, and why that one.

    Args:
        options, shape, device: as for `settled`.
        count: of the processes that share a batch.
    """
    if options.shard and count > 1:  # which no process need be able to hold as a whole
        return static_precision(device), "static rule, as nets in shards are not raced"
    if not kept_choices.enabled():
        return static_precision(device), kept_choices.OFF
    times, images = race(evaluations(options, shape, device), options.share(count)[1])
    least = {name: [min(each)] for name, each in times.items()}
    shown = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, (seconds,) in least.items())
    best = choice.fastest(least, "fp32", MARGIN)
    return best, f"measured, {shown} for a pass of {images} image{'s' * (images > 1)}"


def static_precision(device: torch.device) -> str:
    """The type to take without a race: bfloat16 where the device multiplies it."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu.has_bfloat16() else "fp32"


def race(
    passes: dict[str, Callable[[int], float]], most: int, seconds: float = SECONDS
) -> tuple[dict[str, list[float]], int]:
    """Times of each type in turn, round after round, and the images of a pass that they are for.

    As many images as leave time for two rounds. Where the first round, of one image, takes longer
    than all should, it is all there is.

    Args:
        passes: by type what runs a pass of so many images; returns its seconds.
        most: images of a pass at most.
        seconds: of the whole.
    """
    times: dict[str, list[float]] = {}
    images, last, spent = 1, 0.0, 0.0

    def run_round(count: int) -> None:
        nonlocal images, last, spent
        if count != images:
            images = count
            times.clear()
        for name, run in passes.items():
            times.setdefault(name, []).append(run(count))
        last = sum(each[-1] for each in times.values())
        spent += last

    # The first round of each size also warms up, and says nothing of others.
    run_round(1)
    if spent + last <= seconds:
        run_round(1)
    few, one = min(_FEW, most), last
    if few > 1 and spent + few * one <= seconds:
        run_round(few)
        if spent + last <= seconds:
            run_round(few)
        each = max(last - one, 0.0) / (few - 1)  # what one more image costs
        left = max((seconds - spent) / 2 - last, 0.0)
        more = most - few
        if each * more > left:
            more = int(left / each)
        if more:
            run_round(few + more)
    while len(times[RACED[0]]) < ROUNDS and spent + last <= seconds:
        run_round(images)
    return times, images


def evaluations(
    options: TrainOptions, shape: Sequence[int], device: torch.device
) -> dict[str, Callable[[int], float]]:
    """What runs a forward and a backward pass of a new net on noise, by its type."""
    net = make_net(options, shape).to(device)
    loss = loss_of(options)
    resolution, channels, classes = shape

    def run(name: str, images: int) -> float:
        net.run_dtype = DTYPES[name]
        generator = torch.Generator().manual_seed(0)
        size = images, channels, resolution, resolution
        x, noise = (torch.randn(size, generator=generator).to(device) for _ in range(2))
        x = x.contiguous(memory_format=torch.channels_last)
        sigma = torch.randn(images, 1, 1, 1, generator=generator).exp().to(device)
        labels = None
        if classes:
            labels = torch.zeros(images, classes, device=device)
            labels[:, 0] = 1
        guidance = torch.ones(images, device=device) if options.guidance_range else None
        asked = -1
        while asked != choices_made():  # again, if a convolution's way was measured meanwhile
            asked = choices_made()
            with torch.random.fork_rng(devices=[device] * (device.type == "cuda")):
                began = _now(device)
                values = loss(net, x, labels, sigma, noise, guidance=guidance)
                (values.sum() / options.batch).backward()
                ended = _now(device)
            net.zero_grad(set_to_none=True)
        return ended - began

    def runner(name: str) -> Callable[[int], float]:
        # As in training, whatever the caller has turned on or off.
        def timed(images: int) -> float:
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(device.type, enabled=False),
            ):
                return run(name, images)

        return timed

    return {name: runner(name) for name in RACED}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
