"""Says what a dataset holds, and what is wrong with it."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .convert import Report, show
from .datasets import BUNDLED, open_bundled
from .errors import BrokenFileError
from .pictures import decode
from .sources import open_source
from .spread import Spread, spread_of
from .threads import map_ahead

SHOWN_CLASSES = 20

Form = tuple[int, int, int, str]  # channels, height, width, encoder
_AT_ONCE = 1024  # images of a bundled dataset


class Found(NamedTuple):
    """How many files there are of each form, and how their numbers lie."""

    forms: collections.Counter[Form]
    spreads: dict[Form, Spread]


def describe(path: str | os.PathLike, workers: int = 1, progress: bool = False) -> dict:
    """Reads every file of a dataset once.

    Args:
        path: as `open_dataset` takes it.
        workers: threads, >= 1.
        progress: show a bar.

    Returns:
        source, kind: what it is. images: number of files. forms: [{channels, height, width,
        encoder, images}], more than one where files differ. classes: [{class, name, images}],
        empty without labels. mean, deviation: of all numbers of the commonest form as nets see
        them, [-1, 1] for pixels and scaled for latents; channel_means, channel_deviations: by
        channel. broken: [{file, reason}]. notes: what a user should be told.

    Raises:
        ValueError: it cannot be opened.
    """
    if path in BUNDLED:
        data = open_bundled(path, "all")
        form = data.channels, data.resolution, data.resolution, "pixels"
        spread = Spread()
        for start in range(0, len(data), _AT_ONCE):
            images, _ = data.batch(np.arange(start, min(start + _AT_ONCE, len(data))))
            spread.add(spread_of(images))
        found = Found(collections.Counter({form: len(data)}), {form: spread})
        return _described(
            path, "bundled", found, data.labels, data.num_classes, data.classes, [], []
        )
    source = open_source(path)

    def look(index: int) -> tuple[Form, Spread] | BrokenFileError:
        try:
            array = decode(source.read(index), source.where(index))
        except BrokenFileError as error:
            return error
        channels, height, width = array.shape
        form = channels, height, width, "pixels" if array.dtype == np.uint8 else "latents"
        return form, spread_of(array[None])

    report = Report(len(source.names))
    todo = list(range(report.total))
    results = map_ahead(look, todo, workers, ahead=8 * workers)
    found = Found(collections.Counter(), {})
    for _, (form, spread) in show(todo, results, report, progress, "info"):
        found.forms[form] += 1
        found.spreads.setdefault(form, Spread()).add(spread)
    return _described(
        path,
        source.kind,
        found,
        source.labels,
        source.num_classes,
        source.classes,
        report.broken,
        source.notes,
    )


def _described(
    path: str | os.PathLike,
    kind: str,
    found: Found,
    labels: np.ndarray | None,
    num_classes: int,
    names: Sequence[str] | None,
    broken: list[BrokenFileError],
    notes: Sequence[str],
) -> dict:
    counts = [] if labels is None else np.bincount(labels, minlength=num_classes).tolist()
    shown: Sequence[str | None] = names or [None] * len(counts)
    forms = found.forms
    common = max(forms, key=lambda form: forms[form], default=None)
    fields = ("channels", "height", "width", "encoder")
    return {
        "source": str(path),
        "kind": kind,
        "images": sum(forms.values()) + len(broken),
        "forms": [
            {**dict(zip(fields, form, strict=True)), "images": count}
            for form, count in sorted(forms.items(), key=lambda item: -item[1])
        ],
        **({} if common is None else found.spreads[common].summary()),
        "classes": [
            {"class": i, "name": name, "images": count}
            for i, (name, count) in enumerate(zip(shown, counts, strict=True))
        ],
        "broken": [{"file": error.where, "reason": error.reason} for error in broken],
        "notes": list(notes),
    }


def _numbers(info: dict) -> str:
    """Mean and deviation, in all and by channel, for people."""
    text = f"mean {info['mean']:.4f}, standard deviation {info['deviation']:.4f}"
    if len(info["channel_means"]) > 1:
        pairs = zip(info["channel_means"], info["channel_deviations"], strict=True)
        text += f" (by channel {', '.join(f'{mean:.3f} ± {spread:.3f}' for mean, spread in pairs)})"
    scale = "from -1 to 1" if info["forms"][0]["encoder"] == "pixels" else "scaled"
    return f"{text}, {scale} as nets see them; the deviation is --sigma-data"


def as_text(info: dict) -> str:
    """What `describe` returned, for people."""
    forms = [
        f"{f['width']}x{f['height']}, {f['channels']} channels, {f['encoder']}"
        + (f" ({f['images']} images)" if len(info["forms"]) > 1 else "")
        for f in info["forms"]
    ]
    classes = info["classes"]
    counts = [c["images"] for c in classes]
    shown = "none; for a net without labels"
    if classes:
        shown = f"{len(classes)}, of {min(counts)} to {max(counts)} images"
    lines = [
        f"{info['source']}: {info['kind']}",
        f"  images   {info['images']}",
        *(f"  form     {form}" for form in forms),
        f"  classes  {shown}",
    ]
    if "mean" in info:
        lines.insert(-1, f"  numbers  {_numbers(info)}")
    if len(classes) <= SHOWN_CLASSES:
        lines += [
            f"    {c['class']:3d}  {c['images']:8d}  {c['name'] or ''}".rstrip() for c in classes
        ]
    lines += [f"  broken   {len(info['broken'])}"]
    if len(forms) > 1:
        lines.append("  To train on it, make its files alike: autoguide-fast dataset convert")
    return "\n".join(lines)
