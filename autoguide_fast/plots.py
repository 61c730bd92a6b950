"""Pictures: grids of samples, and the demo's comparison of guidance methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image, ImageFont

# Grids enlarge small images until a side has at least this many pixels, so that a person can see.
_MIN_SIDE = 48
_LABEL_SIZE = 14  # pixels

# Okabe and Ito's palette, told apart by people with any colour vision and in print.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#555555"
_COLOURS = (BLUE, ORANGE, "#007A5A", "#8F4A78", GREY)  # dark enough to be read on white


def to_image(image: ArrayLike) -> Image.Image:
    """Turn one uint8 image `[C, H, W]`, C = 1 or 3, into a `PIL.Image` of the same pixels.

    Raises:
        ValueError, TypeError: wrong type or shape.
    """
    from PIL import Image

    pixels = _check_images(np.asarray(image)[None], "to_image")[0]
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())


def image_grid(
    images: ArrayLike, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """Arrange images in a grid, row by row, enlarged without smoothing.

    Args:
        images: uint8 `[N, C, H, W]`, N >= 1, C = 1 (grey) or 3 (RGB), array or CPU tensor.
        columns: images in a row; default: the smallest number that gives no more rows than columns.
        scale: pixels on a side that one pixel becomes; default: as few as make images of at least
            48 pixels.
        gap: width of the lines between images and around them, in pixels of the result.

    Returns:
        A `PIL.Image` in mode L or RGB.

    Raises:
        ValueError, TypeError: wrong type or shape, columns or scale below 1, gap below 0.
    """
    from PIL import Image

    images = _check_images(images, "image_grid")
    count, channels, height, width = images.shape
    columns = min(count, math.ceil(math.sqrt(count))) if columns is None else columns
    scale = max(1, math.ceil(_MIN_SIDE / min(height, width))) if scale is None else scale
    for name, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"image_grid: {name} must be >= {least}, got {value!r}; pass a whole number"
            )
    rows = math.ceil(count / columns)
    pitch_y, pitch_x = height * scale + gap, width * scale + gap
    canvas = np.full((rows * pitch_y + gap, columns * pitch_x + gap, channels), 128, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = gap + row * pitch_y, gap + column * pitch_x
        large = image.transpose(1, 2, 0).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[top : top + height * scale, left : left + width * scale] = large
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


# What a line of a run's log has, and what it is called.
CURVES = {
    "loss": "loss",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradients",
    "images_per_s": "images per second",
}


def training_curve(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draw one of `CURVES` over the images that a net has seen, for each net of a run.

    Args:
        axes: where to.
        rows: lines of the run's log: `net`, `nimg`, and the curve's value, which may be None.
        name: which curve.
    """
    colours = {"main": BLUE, "guide": ORANGE}
    for net in dict.fromkeys(row["net"] for row in rows):
        points = [
            (row["nimg"], row[name])
            for row in rows
            if row["net"] == net and row.get(name) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), label=net, color=colours.get(net), lw=1.2)
    axes.set_xlabel("images")
    axes.set_ylabel(CURVES[name])
    if name == "gradient_norm":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def weights_over_sigma(
    axes: Axes, sigmas: Sequence[float], sets: Mapping[str, Any], guide: int = 0
) -> None:
    """Draw the best weight of one guide over the noise level, with its bootstrap interval.

    Args:
        axes: where to.
        sigmas: noise levels.
        sets: by the name of a set of samples `weights`, `low` and `high`, `[levels][guides]`, with
            None where there is no weight, as `Diagnosis.as_dict` has them.
        guide: which of the guides.
    """
    axes.axhline(1, color=GREY, lw=1, ls=(0, (4, 3)))
    for (label, values), colour in zip(sets.items(), _COLOURS * len(sets), strict=False):
        low, middle, high = (
            [float("nan") if row[guide] is None else row[guide] for row in values[end]]
            for end in ("low", "weights", "high")
        )
        axes.plot(sigmas, middle, "-o", color=colour, ms=4, lw=1.6, label=label)
        axes.fill_between(sigmas, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xscale("log")
    axes.set_xlabel("noise level σ")  # noqa: RUF001
    axes.set_ylabel("best guidance weight w")
    axes.grid(alpha=0.3)
    axes.legend()


def diagnosis_picture(path: Path | str, found: Mapping[str, Any], sets: Mapping[str, Any]) -> None:
    """Write a PNG of a diagnosis: for each guide, the best weight over the noise level.

    Args:
        path: the file.
        found: what `Diagnosis.as_dict` returns.
        sets: its sets of samples, of which each is a line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    guides = found["guides"]
    figure = Figure(figsize=(5.2 * len(guides), 3.8), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    for i, axes in enumerate(figure.subplots(1, len(guides), squeeze=False)[0]):
        weights_over_sigma(axes, found["sigmas"], sets, i)
        axes.set_title(f"guide {guides[i]}, with 95 % intervals", fontsize=11)
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def labelled_grid(
    images: ArrayLike,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    scale: int | None = None,
) -> Image.Image:
    """Arrange images in a grid whose rows and columns have labels, enlarged without smoothing.

    Args:
        images: uint8 `[N, C, H, W]`, C = 1 (grey) or 3 (RGB), row by row; the last row may be
            shorter.
        row_labels: one for each row, left of it.
        column_labels: one for each column, above it; there is no room for them if all are empty.
        scale: pixels on a side that one pixel becomes; default: as few as make images of at least
            96 pixels, and as wide as the labels above them.

    Returns:
        A `PIL.Image` in mode RGB, labels in black on white.

    Raises:
        ValueError, TypeError: wrong type or shape, or labels for another number of images.
    """
    from PIL import Image, ImageDraw

    images = _check_images(images, "labelled_grid")
    count, _, height, width = images.shape
    rows, columns = len(row_labels), len(column_labels)
    if not columns or math.ceil(count / columns) != rows:
        raise ValueError(
            f"labelled_grid: images must fill {rows} rows of {columns}, got {count}; pass a label "
            "for each row and each column"
        )
    font = _font(_LABEL_SIZE)
    widest = max((font.getlength(label) for label in column_labels), default=0)
    if scale is None:
        scale = max(math.ceil(2 * _MIN_SIDE / min(height, width)), math.ceil(widest / width))
    gap = 4
    grid = image_grid(images, columns, scale, gap)
    left = math.ceil(max(font.getlength(label) for label in row_labels)) + 2 * gap
    top = 2 * _LABEL_SIZE if any(column_labels) else 0
    canvas = Image.new("RGB", (left + grid.width, top + grid.height), "white")
    canvas.paste(grid, (left, top))
    # The grid's lines are grey; between labels and images, and in a last row, paper is better.
    draw = ImageDraw.Draw(canvas)
    pitch_x, pitch_y = width * scale + gap, height * scale + gap
    if used := count % columns:
        draw.rectangle(
            (left + used * pitch_x + gap, canvas.height - pitch_y, canvas.width, canvas.height),
            "white",
        )
    for i, label in enumerate(column_labels):
        middle = left + gap + i * pitch_x + width * scale / 2
        draw.text((middle, top / 2), label, "black", font, anchor="mm")
    for i, label in enumerate(row_labels):
        middle = top + gap + i * pitch_y + height * scale / 2
        draw.text((left - gap, middle), label, "black", font, anchor="rm")
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that Matplotlib brings along."""
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)


@dataclass(frozen=True)
class Panel:
    """One grid of the comparison: `images` uint8 `[rows * columns, 1, H, W]`, row by row."""

    title: str
    caption: str
    images: np.ndarray
    color: str = GREY


@dataclass(frozen=True)
class Curve:
    """Frechet distance `values` over guidance weights `weights`; `chosen` is ringed."""

    label: str
    weights: Sequence[float]
    values: Sequence[float]
    chosen: float
    color: str = GREY


def comparison_picture(
    path: str | Path,
    panels: Sequence[Panel],
    curves: Sequence[Curve],
    columns: int,
    distance_label: str,
    footnote: str,
) -> None:
    """Write the demo's picture: grids side by side, and beside them the distance over the weight.

    The same place in every grid must hold the same seed and class, so that a person can compare.

    Args:
        path: where to write the PNG.
        panels: the grids, from left to right, all with as many images.
        curves: lines in the plot on the right; all begin at weight 1, which is no guidance.
        columns: images in a row; column `i` shows class `i` and is labelled so.
        distance_label: label of the vertical axis, with its unit.
        footnote: how the figures were measured: number of images, steps, seeds.

    Raises:
        ValueError: panels of different sizes or of sizes that are no multiple of `columns`.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = {len(panel.images) for panel in panels}
    if len(sizes) != 1 or sizes.pop() % columns:
        raise ValueError(
            f"comparison_picture: panels must all hold the same multiple of {columns} images, got "
            f"{[len(panel.images) for panel in panels]}; sample the same seeds for each"
        )
    figure = Figure(figsize=(14, 4.8), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    # In inches, then as shares of the figure: grids of 3 x 3 with 0.3 between them, and the plot
    # further right, since it has tick labels where the grids have none.
    for index, panel in enumerate(panels):
        axes = figure.add_axes(((0.25 + 3.25 * index) / 14, 1.35 / 4.8, 3 / 14, 3 / 4.8))
        _draw_panel(axes, panel, columns)
    left = 0.25 + 3.25 * len(panels) + 0.6
    axes = figure.add_axes((left / 14, 1.35 / 4.8, (13.85 - left) / 14, 3 / 4.8))
    _draw_curves(axes, curves, distance_label)
    figure.text(
        0.25 / 14, 0.12 / 4.8, footnote, fontsize=10, color=GREY, va="bottom", linespacing=1.4
    )
    write_atomically(Path(path), lambda temporary: figure.savefig(temporary, format="png"))


def _draw_panel(axes: Axes, panel: Panel, columns: int) -> None:
    """Draw one grid with its title above and the classes and measured figures below."""
    import matplotlib

    images = _check_images(panel.images, "comparison_picture")
    count, _, height, width = images.shape
    rows = count // columns
    # Ink on paper: 255 is drawn black. Lines of NaN between and around the images are drawn grey.
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    for index in range(count):
        row, column = divmod(index, columns)
        top, left = 1 + row * (height + 1), 1 + column * (width + 1)
        canvas[top : top + height, left : left + width] = images[index, 0]
    colors = matplotlib.colormaps["gray_r"].with_extremes(bad="#d4d4d4")
    axes.imshow(canvas, cmap=colors, vmin=0, vmax=255, interpolation="nearest", aspect="equal")
    axes.set_anchor("N")
    axes.set_title(panel.title, fontsize=14, color=panel.color, fontweight="bold", pad=8)
    axes.set_xticks([1 + column * (width + 1) + (width - 1) / 2 for column in range(columns)])
    axes.set_xticklabels([str(column) for column in range(columns)], fontsize=10, color=GREY)
    axes.set_yticks([])
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(panel.caption, fontsize=11.5, color="black", labelpad=6, linespacing=1.45)


def _draw_curves(axes: Axes, curves: Sequence[Curve], distance_label: str) -> None:
    """Draw distance over guidance weight, each line named at its end."""
    for curve in curves:
        weights, values = np.asarray(curve.weights), np.asarray(curve.values)
        axes.plot(weights, values, "-o", color=curve.color, lw=2, ms=5, zorder=3, label=curve.label)
        here = int(np.argmin(np.abs(weights - curve.chosen)))
        axes.plot(
            weights[here], values[here], "o", ms=13, mfc="none", mec=curve.color, mew=2, zorder=4
        )
    unguided = curves[0].values[0]
    axes.axhline(unguided, color=GREY, lw=1.2, ls=(0, (4, 3)), zorder=1, label="no guidance")
    axes.legend(fontsize=11, frameon=False, labelcolor="linecolor", loc="best")
    axes.set_title("Distance to the data (lower is better)", fontsize=12.5, pad=8)
    axes.set_xlabel("guidance weight $w$  ($w = 1$: no guidance)", fontsize=11)
    axes.set_ylabel(distance_label, fontsize=11)
    # A weight far too large must not flatten the rest: its line then leaves through the top.
    highest = max(max(curve.values) for curve in curves)
    axes.set_ylim(0, min(1.08 * highest, 3 * unguided))
    axes.grid(axis="y", color="#e5e5e5", lw=0.8, zorder=0)
    axes.tick_params(labelsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _check_images(images: ArrayLike, function: str) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(
            f"{function}: images must be uint8, got {images.dtype}; decode them to 0..255 first"
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{function}: images must have shape [N, C, H, W] with N >= 1 and C = 1 or 3, got "
            f"{list(images.shape)}; see image_grid"
        )
    return images
