"""Whether measured choices pay: engines by static rules against engines that raced.

    python benchmarks/choices.py [NET:BATCH ...]

For each pair of the benchmarks and each type: the least time of a guided evaluation on one thread,
by that thread's own time and so on a busy machine too, of engines that take turns; in how many
convolutions they differ; and which type "auto" chose. Races are run afresh, in a folder of their
own.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, cast

import pairs
import torch

from autoguide_fast import Engine
from autoguide_fast.engine.prepared import PreparedNet

TYPES = (torch.float32, torch.bfloat16, torch.int8)
DEFAULT = ("digits:1", "digits:16", "16x16x3:1", "16x16x3:16", "32x32x3:1", "32x32x3:16")


def made(net: str, dtype: Any, tuned: bool) -> tuple[Engine, float]:
    """Return an engine, and the seconds that making it took."""
    os.environ["AGF_AUTOTUNE"] = str(int(tuned))
    before = time.thread_time()
    model, guide = pairs.pair(net)
    engine = Engine(model, guide, dtype=dtype)
    return engine, time.thread_time() - before


def least(engines: list[Engine], batch: int, seconds: float = 2.0, fewest: int = 5) -> list[float]:
    """Return the least seconds of each engine's model and guide for a batch, taking turns."""
    x, labels = pairs.inputs(cast(PreparedNet, engines[0].model), batch)
    sigma, best = torch.tensor(0.7), [float("inf")] * len(engines)
    end, rounds = time.thread_time() + seconds, 0
    while rounds < fewest or time.thread_time() < end:
        for i, engine in list(enumerate(engines))[:: 1 if rounds % 2 else -1]:
            before = time.thread_time()
            for net in engine.by_role.values():
                net(x, sigma, labels)
            best[i] = min(best[i], time.thread_time() - before)
        rounds += 1
    return best


def algorithms(engine: Engine) -> list[tuple[str, str]]:
    """Return all convolutions of a pair with their algorithms."""
    return [
        (str(c), str(chosen.algorithm))
        for net in engine.by_role.values()
        for _, c, chosen in cast(PreparedNet, net).lowered.choices
    ]


def main(names: Sequence[str]) -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    os.environ["AGF_CACHE_DIR"] = tempfile.mkdtemp()
    print("| net, batch | type | static, ms | raced, ms | static / raced | other algorithms |")
    print("|---|---|---|---|---|---|")
    for name in names:
        net, batch = name.split(":")
        raced: dict[torch.dtype, Engine] = {}
        for dtype in TYPES:
            static, _ = made(net, dtype, tuned=False)
            raced[dtype], _ = made(net, dtype, tuned=True)
            a, b = least([static, raced[dtype]], int(batch))
            pairs_of = list(zip(algorithms(static), algorithms(raced[dtype]), strict=True))
            differ = sorted({f"{d[0]}: {d[1]}" for s, d in pairs_of if s != d})
            count = sum(s != d for s, d in pairs_of)
            short = str(dtype).removeprefix("torch.")
            print(
                f"| {net}, {batch} | {short} | {1e3 * a:.3g} | {1e3 * b:.3g} | {a / b:.2f} "
                f"| {count} of {len(pairs_of)}: {'; '.join(differ[:3])} |",
                flush=True,
            )
        auto, seconds = made(net, "auto", tuned=True)
        short = [torch.float32, torch.bfloat16]
        times = least([raced[t] for t in short], int(batch))
        best = short[times.index(min(times))]
        loss = times[short.index(auto.dtype)] / min(times) - 1
        print(
            f"| {net}, {batch} | auto: {str(auto.dtype).removeprefix('torch.')} | | | "
            f"{loss:.1%} slower than the best, {str(best).removeprefix('torch.')} "
            f"| made in {seconds:.2f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:] or DEFAULT)
