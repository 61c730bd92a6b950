"""Kinds of command-line values: ranges of seeds and classes, numbers with bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ..arguments import MOST_IMAGES


def integer_ranges(text: str) -> list[int]:
    """Parse `0-3,7` to `[0, 1, 2, 3, 7]`: integers >= 0 and ranges that include both ends.

    Raises:
        argparse.ArgumentTypeError: anything else, a range that runs downwards, or more integers
            than images can be sampled at a time.
    """
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not _is_number(first) or not _is_number(last):
            raise argparse.ArgumentTypeError(
                f"must be integers >= 0 and ranges such as 0-63 or 0,5,9-12, got {text!r}"
            )
        if int(last) < int(first):
            raise argparse.ArgumentTypeError(f"must have ranges that run upwards, got {part!r}")
        if int(last) - int(first) >= MOST_IMAGES - len(values):
            raise argparse.ArgumentTypeError(
                f"must be at most {MOST_IMAGES} integers, got {text!r}; run the command in parts"
            )
        values.extend(range(int(first), int(last) + 1))
    return values


def shown_ranges(values: Sequence[int]) -> str:
    """What `integer_ranges` parses to these values: `0-3,7`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 20  # Python refuses thousands of digits


def positive_integer(text: str) -> int:
    """Parse an integer >= 1.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    if not _is_number(text) or int(text) < 1:
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


def check_output_file(path: Path | None, command: str, option: str = "--out") -> None:
    """Raise ValueError where an option is no file in a folder that is there; None is no file."""
    if path is not None and (not path.parent.is_dir() or path.is_dir()):
        raise ValueError(
            f"{command}: {option} must be a file in an existing folder, got {path}; make the "
            "folder first, and name the file"
        )


def check_image_count(images: int | None, least: int, command: str, reason: str) -> None:
    """Raise ValueError where `--images` is below `least` or more than can be sampled at a time."""
    if images is not None and not least <= images <= MOST_IMAGES:
        raise ValueError(
            f"{command}: --images must be >= {least} and <= {MOST_IMAGES}, got {images}; {reason}"
        )


def weight_or_file(text: str) -> float | str:
    """A guidance weight as a number, or "auto" or the name of a file that `diagnose` wrote."""
    try:
        return float(text)
    except ValueError:
        return text
