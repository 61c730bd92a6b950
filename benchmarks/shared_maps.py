"""What guides of the model's own weights cost, when the CPU engine runs what both share once.

    python benchmarks/shared_maps.py

A row is a weakened guide, or the head of a net that has one: the share of its multiplications that
the model does as well, and the CPU time of a guided evaluation, on one thread, against that of two
nets and against the model alone; medians of rounds in which all three take turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator

import torch

from autoguide_fast import load
from autoguide_fast.engine.cpu_engine import CpuEngine
from autoguide_fast.engine.joint import common_plan
from autoguide_fast.guidance import intermediate_head, weakened
from autoguide_fast.networks import Precond
from autoguide_fast.textbook import draw_gains

NETS = {
    "digits": lambda: load("digits"),
    "32x32x3, 64 channels": lambda: draw_gains(
        Precond(32, 3, 10, model_channels=64, channel_mult=[1, 2, 2], num_blocks=2).eval()
    ),
}


def guides(net: Precond) -> Iterator[tuple[str, Precond, Precond]]:
    """A model and its guide: attention or a block left out, in all parts of the net; heads."""
    blocks = [f"enc.{name}" for name in net.unet.enc if "block" in name]
    decoder = [f"dec.{name}" for name in net.unet.dec]
    chosen = (blocks[0], blocks[-1], decoder[0], decoder[len(decoder) // 2], decoder[-2])
    yield "attention the identity", net, weakened(net, attn_temperature=0.0)
    for name in chosen:
        yield f"left out: {name}", net, weakened(net, left_out=[name])
    size = f"{net.img_resolution}x{net.img_resolution}_"
    for name in [name for name in decoder if size in name][:-1]:
        model = draw_gains(Precond(**{**net.config, "head_after": name}).eval())
        model.load_state_dict(net.state_dict(), strict=False)
        yield f"head after: {name}", model, intermediate_head(model)


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
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in NETS.items():
        net = make()
        x = torch.randn(arguments.batch, net.img_channels, *[net.img_resolution] * 2)
        for way, model, guide in guides(net):
            if arguments.only not in way:
                continue
            joint, apart = CpuEngine(model, guide), CpuEngine(model, copy.deepcopy(guide))
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
