"""Races steps of training in float32, in bfloat16, and in what `--precision auto` takes.

    python benchmarks/training_types.py [NET ...] [--rounds N]

A row is a step of a net of `bench_train.py`, data, Adam and averages included: each round takes
one in every type, figures are medians over rounds. "auto" is one of the two others: its row says
which, how long it took to find out, and by what times. Where 3x3 convolutions in bfloat16 are
raced, as with AMX, what was chosen for each shape follows. `instruction_sets.py` ends with this.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pinning
from command_line import parsed

NETS, ROUNDS = ("digits", "pixel-32", "edm2-xxs"), 15


def choices() -> dict[str, dict]:
    """What was measured for convolutions in training so far."""
    files = Path(os.environ["AGF_CACHE_DIR"]).glob("choices-*.json")
    found = [json.loads(path.read_text())["choices"] for path in files]
    return {k: v for each in found for k, v in each.items() if k.startswith("training ")}


def race(name: str, rounds: int) -> None:
    """Print the rows of one net."""
    import bench_train
    import torch

    from autoguide_fast.trainer import precision

    trainers = {dtype: bench_train.trainer_of(name, dtype) for dtype in bench_train.DTYPES}
    seconds: dict[str, list[float]] = {dtype: [] for dtype in trainers}
    options = trainers["float32"].options
    with torch.enable_grad():
        for trainer in trainers.values():
            trainer.step()
        start = time.perf_counter()
        auto, why = precision.decide(options, bench_train.NETS[name][1], 1, torch.device("cpu"))
        decided = time.perf_counter() - start
        for _ in range(rounds):
            for dtype, trainer in trainers.items():
                start = time.perf_counter()
                trainer.step()
                seconds[dtype].append(time.perf_counter() - start)
    for trainer in trainers.values():
        trainer.close()
    names = {v: k for k, v in bench_train.PRECISIONS.items()}
    rates = {dtype: options.batch / statistics.median(each) for dtype, each in seconds.items()}
    for dtype, rate in rates.items():
        print(f"{name:<10}{options.batch:>4} {dtype:<9}{rate:>10.2f}")
    rate = rates[names[auto]]
    print(
        f"{name:<10}{options.batch:>4} {'auto':<9}{rate:>10.2f}  {names[auto]}, in {decided:.1f} s"
    )
    print(f"{'':<15}{why}", flush=True)


def rows(nets: Sequence[str], rounds: int) -> None:
    """Print all rows, whatever was measured on this machine before."""
    print(f"{'net':<10}{'':>4} {'type':<9}{'images/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        environment = {"AGF_AUTOTUNE": "1", "AGF_CACHE_DIR": folder}
        with mock.patch.dict(os.environ, environment):
            for name in nets:
                race(name, rounds)
            for key, entry in sorted(choices().items()):
                times = ", ".join(f"{k} {1e3 * v[0]:.3g} ms" for k, v in entry["times"].items())
                print(f"{key}: {entry['choice']} ({times})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Race what the command line names."""
    options = parsed(arguments, __doc__, NETS, ROUNDS)
    pinning.pin()
    import torch

    print(f"{torch.get_num_threads()} threads, {pinning.describe()}")
    rows(options.nets, options.rounds)


if __name__ == "__main__":
    main()
