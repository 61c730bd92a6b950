"""The command line that scripts share which measure nets by name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parsed(
    arguments: Sequence[str] | None,
    description: str | None,
    nets: Sequence[str],
    rounds: int,
    batches: Sequence[int] = (),
) -> argparse.Namespace:
    """`nets`, `rounds` and, for a script that has any, `batch`; by default those given here."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", default=nets)
    if batches:
        parser.add_argument("--batch", type=int, nargs="+", default=batches)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args(arguments)
