"""Training's 3x3 convolutions in bfloat16 where AMX multiplies: ours, or oneDNN's through PyTorch.

oneDNN multiplies on tiles, many times as fast as the vector instructions on which Winograd's
algorithm saves 20 products of 36; which of the two wins at a shape is measured, once, and kept
(`kept_choices`). Nothing else here or elsewhere is measured in training.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kept_choices
from ..kept_choices import Entry
from ..modes import transformed, watching

LIBRARY, OURS = "library", "ours"
# What ours has to gain: less may be noise.
MARGIN = 0.05
# Pixels of the images that are raced, whatever the batch, so that it changes no algorithm.
PIXELS = 4096
# Rounds, and seconds after which no more are begun than the fewest, by the thread's own time.
ROUNDS, SECONDS, FEWEST = 10, 0.1, 3


def ours_is_faster(shape: Sequence[int], outputs: int, convolve: Callable[..., Tensor]) -> bool:
    """Whether `convolve(x, weight)` is trained faster than the library's, for such images.

    Args:
        shape: of the images, `[N, C, H, W]`; N does not matter.
        outputs: channels of the result.
        convolve: ours.

    The library's is taken where nothing can be measured: with `AGF_AUTOTUNE=0`, without a folder to
    keep choices in, under `torch.compile` and the transforms of `torch.func`.
    """
    if torch.compiler.is_compiling() or transformed() or watching() or not kept_choices.enabled():
        return False
    return _chosen(*shape[1:], outputs, convolve) == OURS


def choices_made() -> int:
    """How many shapes this process has asked for: a pass in which they grow is no measure."""
    return _chosen.cache_info().misses


@functools.cache
def _chosen(
    inputs: int, height: int, width: int, outputs: int, convolve: Callable[..., Tensor]
) -> str:
    key = f"training bf16 3x3 {inputs} -> {outputs} at {height}x{width}"

    def measure(missing: Sequence[str]) -> dict[str, Entry]:
        times = race(inputs, height, width, outputs, convolve)
        wins = min(times[OURS]) < (1 - MARGIN) * min(times[LIBRARY])
        return {key: {"choice": OURS if wins else LIBRARY, "times": times}}

    entries, _ = kept_choices.decide({key: [LIBRARY, OURS]}, measure)
    return entries[key]["choice"] if key in entries else LIBRARY


def race(
    inputs: int, height: int, width: int, outputs: int, convolve: Callable[..., Tensor]
) -> dict[str, list[float]]:
    """The least seconds of a forward and a backward pass, in turn, on one thread."""
    images = max(1, PIXELS // (height * width))
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        t = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return t.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)

    ways: dict[str, Callable[..., Tensor]] = {
        LIBRARY: functools.partial(F.conv2d, padding=1),
        OURS: convolve,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
        ):
            x, weight = (
                t.requires_grad_()
                for t in (drawn(images, inputs, height, width), drawn(outputs, inputs, 3, 3))
            )
            grad = drawn(images, outputs, height, width)
            began = time.thread_time()
            for number in range(ROUNDS):
                if number >= FEWEST and time.thread_time() - began > SECONDS:
                    break
                for name, way in ways.items():
                    before = time.thread_time()
                    torch.autograd.grad(way(x, weight), (x, weight), grad)
                    times[name].append(time.thread_time() - before)
    finally:
        torch.set_num_threads(threads)
    return {name: [min(each)] for name, each in times.items()}
