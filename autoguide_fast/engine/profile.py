"""Where an engine's time goes, instruction by instruction."""

import json
from collections import defaultdict
from dataclasses import dataclass


class Label(str):
    """The name of what is measured: a layer's, or a block's and its part's.

    Attributes:
        part (str): The last of the two alone; a profile adds up what has it in common.
    """

    part: str

    def __new__(cls, part, block=""):
        label = super().__new__(cls, f"{block} {part}" if block else part)
        label.part = part
        return label


@dataclass(frozen=True)
class Profile:
    """Mean times of one evaluation of each net of an engine; `str()` is a table.

    Attributes:
        rows (list of (role, name, seconds, flop)): In the order in which they run; names are
            `Label`s; `flop` counts multiplications and additions of the textbook's convolution or
            attention for the batch.
        batch (int)
        where (str): What it was measured on.
    """

    rows: list
    batch: int
    where: str

    def __str__(self):
        total = sum(seconds for _, _, seconds, _ in self.rows)
        by_part = defaultdict(lambda: [0.0, 0.0, 0])
        for role, name, seconds, flop in self.rows:
            entry = by_part[role, name.part]
            entry[0] += seconds
            entry[1] += flop
            entry[2] += 1
        lines = [
            f"batch {self.batch}, {self.where}: {1e3 * total:.3f} ms an evaluation",
            f"{'net':<7}{'instruction':<13}{'count':>6}{'ms':>10}{'share':>8}{'GFLOP/s':>10}",
        ]
        for (role, part), (seconds, flop, count) in sorted(
            by_part.items(), key=lambda item: -item[1][0]
        ):
            rate = f"{flop / seconds / 1e9:.0f}" if flop and seconds else ""
            time = f"{1e3 * seconds:>10.3f}{seconds / total:>8.1%}"
            lines.append(f"{role:<7}{part:<13}{count:>6}{time}{rate:>10}")
        return "\n".join(lines)

    def save_trace(self, path):
        """Write a Chrome trace (chrome://tracing, Perfetto) of one evaluation to `path`."""
        events, start = [], 0.0
        for role, name, seconds, flop in self.rows:
            events.append(
                {
                    "name": name,
                    "cat": role,
                    "ph": "X",
                    "pid": 0,
                    "tid": 0,
                    "ts": 1e6 * start,
                    "dur": 1e6 * seconds,
                    "args": {"GFLOP/s": round(flop / seconds / 1e9, 1) if seconds else 0},
                }
            )
            start += seconds
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
