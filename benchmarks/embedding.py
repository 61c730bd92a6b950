"""What share of a guided sampling the embedding takes in the CPU engine, its linear layers.

    python benchmarks/embedding.py [NET ...] [--batch N ...] [--rounds N]

An engine computes the modulations of all noise levels of a run at once, for each label of the
batch, in float32. A row is that time for the 63 evaluations of 32 steps, model and guide, against
the time of these evaluations in a type; both on one thread, by that thread's own time, of which the
least of several rounds counts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial

import pinning
from command_line import parsed

NETS, BATCHES, ROUNDS, LEVELS = ("digits", "16x16x3", "32x32x3", "edm2-xxs"), (1, 16), 3, 63


def least(run: Callable[[], object], rounds: int) -> float:
    """Seconds of this thread in the fastest of several runs, after one that does not count."""
    run()
    found = []
    for _ in range(rounds):
        before = time.thread_time()
        run()
        found.append(time.thread_time() - before)
    return min(found)


def measure(name: str, batch: int, rounds: int) -> None:
    """Print the rows of one pair."""
    import pairs
    import torch

    from autoguide_fast.engine.prepared import Arena, PreparedNet

    model, guide = pairs.pair(name)
    x, labels = pairs.inputs(model, batch)
    levels = torch.linspace(0.002, 80, LEVELS)
    for dtype in (torch.float32, torch.bfloat16):
        once, evaluation = 0.0, 0.0
        for net in (model, guide):
            prepared = PreparedNet(net, dtype, Arena())
            result = torch.empty_like(x)
            once += least(partial(prepared.modulations, levels, labels), rounds)
            rows = prepared.modulations(levels[:1], labels)[0]
            times = torch.zeros(len(prepared.lowered.plan), dtype=torch.float64)
            evaluation += least(partial(prepared.evaluate, x, 1.0, rows, result, times), rounds)
        kind = str(dtype).removeprefix("torch.")
        share = once / (once + LEVELS * evaluation)
        print(
            f"{name:<10}{batch:>3} {kind:<9}{1e3 * once:>10.2f}{1e3 * LEVELS * evaluation:>12.1f}"
            f"{share:>9.2%}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line names."""
    options = parsed(arguments, __doc__, NETS, ROUNDS, BATCHES)
    pinning.pin()
    import torch

    torch.set_num_threads(1)
    print(f"1 thread, {pinning.describe()}")
    print(f"{'net':<10}{'':>3} {'type':<9}{'once, ms':>10}{'63 x, ms':>12}{'share':>9}")
    with torch.inference_mode():
        for name, batch in itertools.product(options.nets, options.batch):
            measure(name, batch, options.rounds)


if __name__ == "__main__":
    main()
