"""Says what a dataset holds, and what is wrong with it."""

from __future__ import annotations

import collections
import os
from collections.abc import Mapping, Sequence

import numpy as np

from .convert import Report, show
from .datasets import BUNDLED, open_bundled
from .errors import BrokenFileError
from .pictures import decode
from .sources import open_source
from .threads import map_ahead

SHOWN_CLASSES = 20

Form = tuple[int, int, int, str]  # channels, height, width, encoder


def describe(path: str | os.PathLike, workers: int = 1, progress: bool = False) -> dict:
    """Reads every file of a dataset once.

    Args:
        path: as `open_dataset` takes it.
        workers: threads, >= 1.
        progress: show a bar.

    Returns:
        source, kind: what it is. images: number of files. forms: [{channels, height, width,
        encoder, images}], more than one where files differ. classes: [{class, name, images}],
        empty without labels. broken: [{file, reason}]. notes: what a user should be told.

    Raises:
        ValueError: it cannot be opened.
    """
    if path in BUNDLED:
        data = open_bundled(path, "all")
        whole = {(data.channels, data.resolution, data.resolution, "pixels"): len(data)}
        return _described(
            path, "bundled", whole, data.labels, data.num_classes, data.classes, [], []
        )
    source = open_source(path)

    def form(index: int) -> Form | BrokenFileError:
        try:
            array = decode(source.read(index), source.where(index))
        except BrokenFileError as error:
            return error
        channels, height, width = array.shape
        return channels, height, width, "pixels" if array.dtype == np.uint8 else "latents"

    report = Report(len(source.names))
    todo = list(range(report.total))
    results = map_ahead(form, todo, workers, ahead=8 * workers)
    forms = collections.Counter(f for _, f in show(todo, results, report, progress, "info"))
    return _described(
        path,
        source.kind,
        forms,
        source.labels,
        source.num_classes,
        source.classes,
        report.broken,
        source.notes,
    )


def _described(
    path: str | os.PathLike,
    kind: str,
    forms: Mapping[Form, int],
    labels: np.ndarray | None,
    num_classes: int,
    names: Sequence[str] | None,
    broken: list[BrokenFileError],
    notes: Sequence[str],
) -> dict:
    counts = [] if labels is None else np.bincount(labels, minlength=num_classes).tolist()
    shown: Sequence[str | None] = names or [None] * len(counts)
    fields = ("channels", "height", "width", "encoder")
    return {
        "source": str(path),
        "kind": kind,
        "images": sum(forms.values()) + len(broken),
        "forms": [
            {**dict(zip(fields, form, strict=True)), "images": count}
            for form, count in sorted(forms.items(), key=lambda item: -item[1])
        ],
        "classes": [
            {"class": i, "name": name, "images": count}
            for i, (name, count) in enumerate(zip(shown, counts, strict=True))
        ],
        "broken": [{"file": error.where, "reason": error.reason} for error in broken],
        "notes": list(notes),
    }


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
    if len(classes) <= SHOWN_CLASSES:
        lines += [
            f"    {c['class']:3d}  {c['images']:8d}  {c['name'] or ''}".rstrip() for c in classes
        ]
    lines += [f"  broken   {len(info['broken'])}"]
    if len(forms) > 1:
        lines.append("  To train on it, make its files alike: autoguide-fast dataset convert")
    return "\n".join(lines)
