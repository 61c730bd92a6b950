"""Kinds of command-line values: ranges of seeds and classes, numbers with bounds."""

from __future__ import annotations

import argparse
import math


def integer_ranges(text: str) -> list[int]:
    """Parse `0-3,7` to `[0, 1, 2, 3, 7]`: integers >= 0 and ranges that include both ends.

    Raises:
        argparse.ArgumentTypeError: anything else, or a range that runs downwards.
    """
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(
                f"must be integers >= 0 and ranges such as 0-63 or 0,5,9-12, got {text!r}"
            )
        if dash and int(last) < int(first):
            raise argparse.ArgumentTypeError(f"must have ranges that run upwards, got {part!r}")
        values.extend(range(int(first), int(last if dash else first) + 1))
    return values


def positive_integer(text: str) -> int:
    """Parse an integer >= 1.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def guidance_weights(text: str) -> tuple[float, ...]:
    """Parse `1.25,1.5,2` to guidance weights above 1, sorted, each once.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        weights = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        weights = ()
    if not weights or not all(1 < weight < math.inf for weight in weights):
        raise argparse.ArgumentTypeError(
            f"must be numbers above 1, separated by commas, such as 1.25,1.5,2, got {text!r}"
        )
    return weights
