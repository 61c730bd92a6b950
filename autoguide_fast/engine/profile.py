"""Where an engine's time goes, instruction by instruction."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any


class Label(str):
    """The name of what is measured: a layer's, or a block's and its part's.

    Attributes:
        part: the last of the two alone; a profile adds up what has it in common.
    """

    part: str

    def __new__(cls, part: str, block: str = "") -> Label:
        label = super().__new__(cls, f"{block} {part}" if block else part)
        label.part = part
        return label


Row = tuple[str, Label, float, float]  # role, name, seconds, flop


@dataclass(frozen=True)
class Profile:
    """Mean times of one evaluation of each net of an engine; `str()` is a table.

    Attributes:
        rows: (role, name, seconds, flop) of each, in the order in which they run; flop counts
            multiplications and additions of the textbook's convolution or attention for the batch.
        batch: images at a time.
        where: what it was measured on.
    """

    rows: list[Row]
    batch: int
    where: str

    def __str__(self) -> str:
        total = sum(seconds for _, _, seconds, _ in self.rows)
        by_part: dict[tuple[str, str], tuple[float, float, int]] = {}
        for role, name, seconds, flop in self.rows:
            before = by_part.get((role, name.part), (0.0, 0.0, 0))
            by_part[role, name.part] = before[0] + seconds, before[1] + flop, before[2] + 1
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

    def save_trace(self, path: str | os.PathLike) -> None:
        """Write a Chrome trace (chrome://tracing, Perfetto) of one evaluation to `path`."""
        events: list[dict[str, Any]] = []
        start = 0.0
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
