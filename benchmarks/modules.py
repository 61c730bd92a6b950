"""Races an `Engine` of a diffusers UNet against that library's own sampling, at 15 evaluations.

    python benchmarks/modules.py [BATCH ...]

Both sample by classifier-free guidance, by prompts' embeddings, from a `UNet2DConditionModel` with
random weights, on 32x32x4 latents. Ours takes 8 steps of Heun's method, theirs 15 of
`DDIMScheduler`, in a loop as of its `StableDiffusionPipeline`: in each step the net is called with
twice the batch, then the scheduler. Each as it is and under `torch.compile`; medians of interleaved
rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from importlib import import_module
from typing import Any

import torch
from pinning import pin
from torch import Tensor

from autoguide_fast import Engine, sample
from autoguide_fast.adapters import from_diffusers

diffusers: Any = import_module("diffusers")  # whose names mypy cannot see

ROUNDS, STEPS, WEIGHT, SIDE = 7, 8, 2.0, 32


def unet() -> Any:
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=8,
    )
    return net.eval().requires_grad_(False)


def theirs(net: Any, text: Tensor, none: Tensor, noise: Tensor) -> Tensor:
    """Their loop, by their scheduler."""
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(2 * STEPS - 1)
    x, both = noise * scheduler.init_noise_sigma, torch.cat([none, text])
    for step in scheduler.timesteps:
        twice = scheduler.scale_model_input(torch.cat([x, x]), step)
        out = net(twice, step, encoder_hidden_states=both, return_dict=False)[0]
        unguided, prompted = out.chunk(2)
        guided = unguided + WEIGHT * (prompted - unguided)
        x = scheduler.step(guided, step, x, return_dict=False)[0]
    return x


def race(batch: int) -> None:
    net = unet()
    compiled = torch.compile(net)
    noise = torch.randn(batch, 4, SIDE, SIDE)
    text, none = torch.randn(batch, 77, 64), torch.zeros(batch, 77, 64)
    model = from_diffusers(net, diffusers.DDIMScheduler(), cond={"encoder_hidden_states": text})
    model.check, model.cond = False, {}
    engine = Engine(model, model)
    options: dict[str, Any] = {
        "guidance": WEIGHT,
        "noise": noise,
        "num_steps": STEPS,
        "cond": {"encoder_hidden_states": text},
        "guide_cond": {"encoder_hidden_states": none},
    }
    contestants = {
        "Engine": lambda: engine.sample(**options),
        "sample, no engine": lambda: sample(model, model, **options),
        "diffusers, eager": lambda: theirs(net, text, none, noise),
        "diffusers, compile": lambda: theirs(compiled, text, none, noise),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for number in range(ROUNDS + 1):
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                if number:  # the first compiles
                    times[name].append(time.perf_counter() - start)
    ours = times["Engine"]
    for name, values in times.items():
        ratio = statistics.median(b / a for a, b in zip(ours, values, strict=True))
        print(f"batch {batch}  {name:<20}{statistics.median(values):8.3f} s  {ratio:6.2f} x Engine")


if __name__ == "__main__":
    pin()
    for size in map(int, sys.argv[1:] or ["1", "4"]):
        race(size)
