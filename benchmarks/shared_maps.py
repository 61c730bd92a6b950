"""What guides of the model's own weights cost, when the CPU engine runs what both share once.

    python benchmarks/shared_maps.py

A row is a weakened guide: the share of its multiplications that the model does as well, and the CPU
time of a guided evaluation, on one thread, against that of two nets and against the model alone;
medians of rounds in which all three take turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from autoguide_fast import load
from autoguide_fast.engine.cpu_engine import CpuEngine
from autoguide_fast.engine.joint import common_plan
from autoguide_fast.guidance import weakened
from autoguide_fast.networks import Precond
from autoguide_fast.textbook import draw_gains

NETS = {
    "digits": lambda: load("digits"),
    "32x32x3, 64 channels": lambda: draw_gains(
        Precond(32, 3, 10, model_channels=64, channel_mult=[1, 2, 2], num_blocks=2).eval()
    ),
}


def weakenings(net: Precond) -> dict[str, dict]:
    """Typical ones: attention, and a block of the encoder, of the middle and of the decoder."""
    blocks = [f"enc.{name}" for name in net.unet.enc if "block" in name]
    decoder = [f"dec.{name}" for name in net.unet.dec]
    chosen = (blocks[0], blocks[-1], decoder[0], decoder[len(decoder) // 2], decoder[-2])
    rows: dict[str, dict] = {f"left out: {name}": {"left_out": [name]} for name in chosen}
    return {"attention the identity": {"attn_temperature": 0.0}, **rows}


def seconds(engine: CpuEngine, x: torch.Tensor, roles: list[str]) -> float:
    """CPU time of one evaluation of these nets."""
    nets = engine.nets(None, [1.0], None)
    sigma = torch.tensor(1.0, dtype=torch.float64)
    nets.outputs(x, sigma, None, roles)
    begun = time.process_time()
    for _ in range(3):
        nets.outputs(x, sigma, None, roles)
    return (time.process_time() - begun) / 3


def main() -> None:
    """Print a row for each net and weakening."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in NETS.items():
        net = make()
        x = torch.randn(arguments.batch, net.img_channels, *[net.img_resolution] * 2)
        for way, options in weakenings(net).items():
            guide = weakened(net, **options)
            joint, apart = CpuEngine(net, guide), CpuEngine(net, copy.deepcopy(guide))
            common = common_plan(joint.model.lowered, joint.guides[0].lowered)
            assert common is not None and joint.joint and not apart.joint
            both = ["model", "guide"]
            runs = [(joint, both), (apart, both), (apart, ["model"])]
            times: list[list[float]] = [[], [], []]
            for _ in range(arguments.rounds):
                for taken, (engine, roles) in zip(times, runs, strict=True):
                    taken.append(seconds(engine, x, roles))
            shared, two, alone = map(statistics.median, times)
            print(
                f"| {name} | {way} | {common[1]:.0%} | {shared / two:.2f} | {shared / alone:.2f} | "
                f"{two / alone:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
