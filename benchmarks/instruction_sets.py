"""Races the CPU engine's ways to convolve in bfloat16 and int8: direct, Winograd's, and on AMX.

Training in float32, bfloat16 and what `--precision auto` takes follows, by `training_types.py`: all
that a machine with AMX has to tell.

    python benchmarks/instruction_sets.py [NET ...] [--batch N ...] [--rounds N]

A row is one evaluation of a net of `pairs.py`: its time, and the speed of its convolutions alone,
counted as direct ones, beside the ceiling of that type in the same rounds. Each round takes every
way once; figures are medians over rounds, shares of the ceiling medians of the ratios within them.
"As planned" takes Winograd's way wherever the engine would on that instruction set. Ways that this
processor lacks are left out.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pinning
from command_line import parsed

if TYPE_CHECKING:  # loaded by main(), once threads are pinned
    import torch
    from ceilings import Ceiling

    from autoguide_fast.networks import Precond

NETS, BATCHES, ROUNDS = ("digits", "16x16x3", "32x32x3", "edm2-xxs"), (1, 16), 15
# What `bench_train.py` calls those of them that it trains.
TRAINED = {"digits": "digits", "32x32x3": "pixel-32", "edm2-xxs": "edm2-xxs"}
PORTABLE = "amx_portable"  # plans made for it are those made for AMX


class Way:
    """A net's plan made for one instruction set, that runs on one, maybe another."""

    def __init__(
        self, name: str, net: Precond, dtype: torch.dtype, made_for: str, runs_on: str, batch: int
    ) -> None:
        import pairs
        import torch

        from autoguide_fast import cpu
        from autoguide_fast._C import Convolve
        from autoguide_fast.engine.prepared import Arena, PreparedNet

        self.name, self.runs_on = name, runs_on
        self.seconds: list[float] = []
        self.rates: list[float] = []
        cpu.set_isa(made_for)
        self.net = PreparedNet(net, dtype, Arena())
        x, labels = pairs.inputs(net, batch)
        rows = self.net.modulations(torch.ones(1), labels)[0]
        self.result = torch.empty_like(x)
        self.arguments = x, 1.0, rows, self.result
        lowered = self.net.lowered
        self.times = torch.zeros(len(lowered.plan), dtype=torch.float64)
        self.convolutions = torch.tensor(
            [isinstance(i, Convolve) for i in lowered.plan.instructions]
        )
        self.work = batch * torch.tensor(lowered.flops)[self.convolutions].sum().item() / 1e9

    def run(self, repeats: int) -> None:
        """Take one sample, of that many evaluations."""
        from autoguide_fast import cpu

        cpu.set_isa(self.runs_on)
        self.times.zero_()
        for _ in range(repeats):
            self.net.evaluate(*self.arguments, self.times)
        self.seconds.append(self.times.sum().item() / repeats)
        spent = self.times[self.convolutions].sum().item() / repeats
        self.rates.append(self.work / spent)


def ways(net: Precond, dtype: torch.dtype, batch: int, available: list[str]) -> Iterator[Way]:
    """All ways of this machine; the first two are on the last instruction set before AMX."""
    last = [isa for isa in available if isa != "amx"][-1]
    yield Way(f"direct, {last}", net, dtype, PORTABLE, last, batch)
    yield Way(f"as planned, {last}", net, dtype, last, last, batch)
    if "amx" in available:
        yield Way("direct, amx", net, dtype, PORTABLE, "amx", batch)


def seconds(ceiling: Ceiling) -> float:
    """How long its work takes, once."""
    start = time.perf_counter()
    ceiling.run()
    return time.perf_counter() - start


def race(name: str, batch: int, dtype: torch.dtype, rounds: int) -> None:
    """Print the rows of one net."""
    import ceilings
    import pairs

    from autoguide_fast import cpu
    from autoguide_fast._extension import build_info

    # As the static rules say: what is measured is kept for one instruction set alone.
    os.environ["AGF_AUTOTUNE"] = "0"
    before = cpu.isa()
    try:
        contestants = list(ways(pairs.pair(name)[0], dtype, batch, build_info()["isa_available"]))
        for way in contestants:
            way.run(1)
        for way in contestants[1:]:  # each rounds once more or less than another
            error = (way.result - contestants[0].result).abs().max()
            assert error < 0.3 * contestants[0].result.abs().max(), (way.name, error)
        repeats = max(1, round(0.02 / contestants[0].seconds[0]))
        for way in contestants:
            way.seconds.clear()
            way.rates.clear()
        ceiling, tops = ceilings.arithmetic(dtype), []
        for _ in range(rounds):
            for way in contestants:
                way.run(repeats)
            tops.append(seconds(ceiling) / ceiling.work if ceiling else float("nan"))
    finally:
        cpu.set_isa(before)
    kind = str(dtype).removeprefix("torch.")
    for way in contestants:
        share = statistics.median(rate * top for rate, top in zip(way.rates, tops, strict=True))
        spent, rate = (statistics.median(values) for values in (way.seconds, way.rates))
        print(
            f"{name:<10}{batch:>3} {kind:<9}{way.name:<24}{1e3 * spent:>9.2f}{rate:>9.0f}"
            f"{share:>8.0%}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Race what the command line names."""
    options = parsed(arguments, __doc__, NETS, ROUNDS, BATCHES)
    pinning.pin()
    import torch

    from autoguide_fast._extension import build_info

    print(f"{torch.get_num_threads()} threads, {pinning.describe()}; AMX: {build_info()['amx']}")
    print(f"{'net':<10}{'':>3} {'type':<9}{'way':<24}{'ms':>9}{'GFLOP/s':>9}{'ceiling':>8}")
    for name, batch in itertools.product(options.nets, options.batch):
        for dtype in (torch.bfloat16, torch.int8):
            race(name, batch, dtype, options.rounds)
    if trained := [TRAINED[name] for name in options.nets if name in TRAINED]:
        import training_types

        print()
        training_types.rows(trained, options.rounds)


if __name__ == "__main__":
    main()
