"""Each kind of input as a section: images, a training run, an evaluation, a diagnosis."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ... import plots
from ...checkpoints.run_folder import LOG, SAMPLES, is_run_folder, read_log, stored_options
from ...diagnosis import sets_of
from ..pictures import open_pictures
from ..sampling import manifest
from . import charts
from .blocks import Charts, Section, Table, Text, flat, picture, shown

_MOST_PIXELS = 4_000_000  # of images in a page, which is to be opened on a phone
_HEAD = ("option", "value")


def section(path: Path, count: int) -> Section:
    """What a report shows of a folder of images or a run, a ZIP file, an .npz, a JSON or PNG file.

    Args:
        path: what it is about.
        count: of images, at most.

    Raises:
        ValueError: it is none of these.
    """
    if is_run_folder(path) or (path / LOG).is_file():
        return _run(path)
    if path.suffix.lower() == ".json" and path.is_file():
        return _json(path)
    if path.suffix.lower() == ".png" and path.is_file():
        return _picture(path)
    return _images(path, count)


def _picture(path: Path) -> Section:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            described = str(image.info.get("Description") or f"The picture {path.name}, as it is.")
            figure = picture(image, described, described)
    except OSError as error:
        raise ValueError(
            f"report: a picture must be whole, got {path} ({error}); draw it again"
        ) from None
    return Section("Picture", str(path), [figure])


# --- images ---------------------------------------------------------------------------------


def _images(path: Path, count: int) -> Section:
    with open_pictures(path, "report") as pictures:
        total = len(pictures.names)
        _, height, width = pictures.pixels(0).shape
        count = max(1, min(count, total, _MOST_PIXELS // (height * width)))
        numbers = pictures.some(count)
        grid = plots.image_grid(pictures.stacked(numbers, "report"))
    made = Section(f"{total:,} images", str(path))
    about = f"{count:,} of {total:,} images of {width}x{height} pixels"
    drawn = ", drawn at random" if count < total else ""
    made.blocks.append(picture(grid, f"Grid of {about} from {path}.", f"{about}{drawn}"))
    found = manifest.of_folder(path) if path.is_dir() else manifest.of_file(path)
    if found is None:
        made.blocks.append(Text("No manifest is there: how they were made is not known."))
        return made
    made.blocks += _manifest(found)
    command = ["autoguide-fast", "sample", "--from-manifest", str(path), "--out", "again/"]
    if found.get("jobs"):
        made.blocks.append(Text("To sample them once more:"))
        made.blocks.append(Text(shlex.join(command), code=True))
    return made


def _manifest(found: dict[str, Any]) -> list[Table | Text]:
    settings = [
        (name, _net(value) if isinstance(value, dict) else shown(value))
        for name, value in found["settings"].items()
    ]
    blocks: list[Table | Text] = [Table("Nets and settings", _HEAD, settings)]
    jobs = found.get("jobs", [])
    if "images" in found:
        blocks.append(Table("Images", _HEAD, flat(found["images"]), folded=True))
    for job in jobs:
        rows = [(name, shown(value)) for name, value in job.items() if name != "made_with"]
        blocks.append(Table("Seeds and classes", _HEAD, rows))
        for made_with in job.get("made_with", []):
            blocks.append(Table("Made with", _HEAD, flat(made_with), folded=True))
    return blocks


def _net(value: dict[str, Any]) -> str:
    return f"{value.get('name')} (checksum {value.get('digest')})"


# --- a training run -------------------------------------------------------------------------


def _run(path: Path) -> Section:
    from PIL import Image

    made = Section("Training run", str(path))
    rows = read_log(path) if (path / LOG).is_file() else []
    # The main net first, though its guide was trained before it.
    nets = sorted(dict.fromkeys(row["net"] for row in rows), key=lambda net: net != "main")
    last = {net: [row for row in rows if row["net"] == net][-1] for net in nets}
    if last:
        names = [name for name in last[nets[0]] if name != "net"]
        made.blocks.append(
            Table(
                "Where it stands",
                ("", *nets),
                [(name, *(shown(last[net].get(name)) for net in nets)) for name in names],
            )
        )
        made.blocks.append(Charts(charts.training_curves(rows)))
    for net in nets or ["main"]:
        drawn = sorted((path / SAMPLES).glob(f"{net}-[0-9]*.png"))
        if drawn:
            images = int(drawn[-1].stem.partition("-")[2])
            with Image.open(drawn[-1]) as grid:
                made.blocks.append(
                    picture(
                        grid.convert(grid.mode),
                        f"Grids of samples of the net {net} after {images:,} images of training, "
                        "on the right with guidance if there are two.",
                        f"Samples of {net} after {images:,} images",
                    )
                )
    made.blocks.append(_options(path))
    return made


def _options(path: Path) -> Table:
    by_net = {"main": stored_options(path), "guide": stored_options(path / "guide")}
    there = {net: options for net, options in by_net.items() if options}
    names = list(dict.fromkeys(name for options in there.values() for name in options))
    rows = [(name, *(shown(options.get(name)) for options in there.values())) for name in names]
    return Table("Options", ("option", *there), rows, folded=True)


# --- JSON files -----------------------------------------------------------------------------


def _json(path: Path) -> Section:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise _unknown(path, f"one that cannot be read ({error})") from None
    try:
        if isinstance(found, dict) and isinstance(found.get("metrics"), dict):
            return _evaluation(path, found)
        if isinstance(found, dict) and {"sigmas", "guides"} <= found.keys():
            return _diagnosis(path, found)
        if isinstance(found, dict) and isinstance(found.get("settings"), dict):
            return Section("Manifest", str(path), [*_manifest(found)])
        if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
            return _rows(path, found)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise _unknown(path, f"one that is not whole ({type(error).__name__}: {error})") from None
    raise _unknown(path, "one of another form")


def _unknown(path: Path, got: str) -> ValueError:
    return ValueError(
        "report: a JSON file must be an evaluation (protocol, metrics), what `diagnose` or `judge` "
        f"wrote, or a manifest, got {got}, {path}; name one of these, a run or images"
    )


def _evaluation(path: Path, found: dict[str, Any]) -> Section:
    metrics = found["metrics"]
    repeated = any(len(each.get("values") or ()) > 1 for each in metrics.values())
    rows = [
        (name, _spread(each), *((shown(each.get("values") or []),) if repeated else ()))
        for name, each in metrics.items()
    ]
    head = ("metric", "mean ± standard deviation", "values") if repeated else ("metric", "value")
    protocol = Table("Protocol: how they were measured", _HEAD, flat(found.get("protocol") or {}))
    made = Section("Evaluation", str(path), [Table("Metrics", head, rows)])
    if by_class := found.get("per_class"):
        names = list(dict.fromkeys(name for each in by_class.values() for name in each))
        cells = [
            [label, *(_spread(each[name]) if name in each else "none" for name in names)]
            for label, each in by_class.items()
        ]
        made.blocks.append(Table("Metrics of each class", ("class", *names), cells, folded=True))
    made.blocks.append(protocol)
    return made


def _spread(metric: dict[str, Any]) -> str:
    mean, std = metric["mean"], metric.get("std")
    if std is None or len(metric.get("values") or ()) == 1:
        return shown(mean)
    return f"{shown(mean)} ± {std:.2g}"


def _diagnosis(path: Path, found: dict[str, Any]) -> Section:
    made = Section("Guidance weight over noise level", str(path))
    sets = sets_of(found)
    guides: Sequence[str] = found["guides"]
    made.blocks.append(
        Charts([charts.weights_over_sigma(found, guide) for guide in range(len(guides))])
    )
    head = ["sigma"]
    for name in sets:
        head += [f"w of {guide}, {name}" for guide in guides] + [f"error removed, {name}"]
    rows = []
    for i, sigma in enumerate(found["sigmas"]):
        row = [f"{sigma:.3g}"]
        for values in sets.values():
            row += [_interval(values, i, guide) for guide in range(len(guides))]
            row.append(f"{100 * values['gain'][i]:.3g} %")
        rows.append(row)
    counts = ", ".join(f"{values['images']:,} images ({name})" for name, values in sets.items())
    made.blocks.append(Table(f"Best weights with 95 % intervals, from {counts}", head, rows, True))
    return made


def _interval(values: dict[str, Any], level: int, guide: int) -> str:
    low, middle, high = (values[end][level][guide] for end in ("low", "weights", "high"))
    if middle is None:
        return "none"
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _rows(path: Path, found: list[dict[str, Any]]) -> Section:
    head = list(dict.fromkeys(name for row in found for name in row))
    rows = [[shown(row.get(name)) for name in head] for row in found]
    return Section("Measurements", str(path), [Table("Each measurement", head, rows)])
