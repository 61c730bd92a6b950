"""The toy's two figures: where the points of each method end, and why."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autoguide_fast.files import write_atomically
from autoguide_fast.plots import BLUE, GREY, ORANGE
from autoguide_fast.toy import ToyModel, fractal

from .measures import Judge
from .methods import FIRST_SEED, METHODS, NUM_STEPS, sampled
from .report import TRUTH, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from autoguide_fast.generate import StepInfo

_SHOWN = 8192  # points in each panel
_WINDOW = (-0.75, 1.55, -0.85, 1.7)  # left, right, bottom, top: all of class A
_CLOSE = (0.3, 1.15, 0.0, 0.85)
_MIDDLE = 0.08  # the noise level at which the densities are shown
_PATHS = 24
_GRID = 200


def points_picture(
    path: Path, nets: Mapping[str, ToyModel], found: Summary, judge: Judge, footnote: str
) -> None:
    """Write where points end: true ones, then those of each method, outliers in another colour.

    Args:
        path: of the PNG.
        nets: by role, whose points are shown.
        found: figures for the captions.
        judge: tells which points lie off the tree.
        footnote: how the figures were measured.
    """
    width, height = 15.4, 4.85  # inches; panels of 2.95 with 0.1 between them
    figure = _figure(width, height)
    seeds = range(FIRST_SEED, FIRST_SEED + _SHOWN)
    panels = {TRUTH: judge.data.sample(_SHOWN, torch.Generator().manual_seed(1))}
    panels |= {name: sampled(nets, method, seeds) for name, method in METHODS.items()}
    others = _other_class()
    for index, (name, points) in enumerate(panels.items()):
        left = (0.15 + 3.05 * index) / width
        axes = figure.add_axes((left, 1.4 / height, 2.95 / width, 3.1 / height))
        off = judge.off_tree(points).numpy()
        x, y = points.numpy().T
        axes.scatter(others[:, 0], others[:, 1], s=0.5, color="#dddddd", lw=0)
        axes.scatter(x[~off], y[~off], s=1.2, color=BLUE, lw=0)
        axes.scatter(x[off], y[off], s=7, color=ORANGE, lw=0)
        _window(axes, _WINDOW)
        title = METHODS[name].title if name in METHODS else "Ground truth"
        axes.set_title(title, fontsize=13, fontweight="bold", color=GREY)
        figures = found[name]
        setting = METHODS[name].setting if name in METHODS else "drawn from the distribution"
        axes.set_xlabel(
            f"{setting}\noff the tree {figures['off_tree'].text(100)} %\n"
            f"branches reached {figures['branches'].text(100, 1)} %\n"
            f"1000 x energy distance {figures['energy'].text(1000)}",
            fontsize=10,
            linespacing=1.4,
        )
    figure.text(0.15 / width, 0.1 / height, footnote, fontsize=9, color=GREY)
    _write(figure, path)


def _other_class() -> np.ndarray:
    """Points of class B, to show where it lies."""
    return fractal("B").sample(_SHOWN, torch.Generator().manual_seed(0)).numpy()


def densities_picture(path: Path, nets: Mapping[str, ToyModel]) -> None:
    """Write why they end there: for CFG and autoguidance, at a middle noise level, the densities
    that model and guide learned, their ratio, whose slope guidance adds, and paths of points.
    """
    import matplotlib

    figure = _figure(14, 7.4)
    figure.set_layout_engine("constrained", rect=(0.01, 0.035, 0.98, 0.955))
    x, y, grid = _grid(_CLOSE)
    main = nets["main"].log_density(grid, _MIDDLE)
    truth = fractal("A").log_density(grid, _MIDDLE)
    rows = figure.subplots(2, 4)
    arrows = slice(_GRID // 20, None, _GRID // 10)
    for row, name, first in ((rows[0], "CFG", truth), (rows[1], "autoguidance", main)):
        method = METHODS[name]
        assert method.guide is not None
        guide = nets[method.guide].log_density(grid, _MIDDLE)
        titles = (
            "true density (its root)" if first is truth else "the model's density $p_1$",
            f"{'unconditional' if name == 'CFG' else 'worse'} guide's density $p_0$",
            r"ratio $\log\, p_1/p_0$ and its slope",
            "paths without (grey) and with guidance",
        )
        for axes, title in zip(row, titles, strict=True):
            axes.set_title(title, fontsize=11)
            _window(axes, _CLOSE)
        for axes, values in zip(row, (first, guide), strict=False):
            # The root shows thin branches beside the trunk.
            density = ((values - values.max()) / 2).exp().reshape(_GRID, _GRID)
            axes.pcolormesh(x, y, density, cmap="Blues", shading="gouraud", rasterized=True)
        ratio = (main - guide).reshape(_GRID, _GRID)
        near = (main - main.max()).reshape(_GRID, _GRID) > -6
        ratio = (ratio - ratio[near].mean()).numpy()
        bound = float(np.quantile(np.abs(ratio[near]), 0.98))
        row[2].pcolormesh(
            x, y, ratio, cmap="RdBu", vmin=-bound, vmax=bound, shading="gouraud", rasterized=True
        )
        slope = nets["main"].score(grid, _MIDDLE) - nets[method.guide].score(grid, _MIDDLE)
        u, v = (part.reshape(_GRID, _GRID).numpy()[arrows, arrows] for part in slope.unbind(1))
        row[2].quiver(x[arrows], y[arrows], u, v, color="black", width=0.006)
        _paths(row[3], nets, name, matplotlib.colormaps["Greys"](0.6))
        row[0].set_ylabel(method.label, fontsize=12, fontweight="bold", color=GREY)
    figure.text(
        0.01,
        0.01,
        f"Densities at the noise level {_MIDDLE:g}; paths of {_PATHS} seeds in {NUM_STEPS} steps, "
        "dots where they end, over true points. Ratio: blue where the model is denser than its "
        "guide.",
        fontsize=9,
        color=GREY,
    )
    _write(figure, path)


def _paths(axes: Axes, nets: Mapping[str, ToyModel], name: str, grey: tuple) -> None:
    """Paths of the first seeds that end in the window, without guidance and with it."""
    truth = fractal("A").sample(_SHOWN, torch.Generator().manual_seed(0)).numpy()
    axes.scatter(truth[:, 0], truth[:, 1], s=0.5, color="#cfe3f2", lw=0, rasterized=True)
    seeds = range(FIRST_SEED, FIRST_SEED + 10 * _PATHS)
    left, right, bottom, top = _CLOSE
    chosen: np.ndarray | None = None
    for way, color in (("none", grey), (name, ORANGE)):
        states: list[Tensor] = []
        sampled(nets, METHODS[way], seeds, functools.partial(_keep, states))
        paths = torch.stack(states, dim=1).numpy()  # [N, steps, 2]
        if chosen is None:
            x, y = paths[:, -1].T
            inside = (left < x) & (x < right) & (bottom < y) & (y < top)
            chosen = np.flatnonzero(inside)[:_PATHS]
        for path in paths[chosen]:
            axes.plot(*path.T, color=color, lw=0.9)
            axes.plot(*path[-1], "o", color=color, ms=2.5)


def _keep(states: list[Tensor], info: StepInfo) -> None:
    states.append(info.x)


def _grid(window: tuple[float, float, float, float]) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Coordinates along the axes, and the points of a grid, row by row, `[_GRID^2, 2]`."""
    left, right, bottom, top = window
    x, y = torch.linspace(left, right, _GRID), torch.linspace(bottom, top, _GRID)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    return x.numpy(), y.numpy(), points.reshape(-1, 2)


def _window(axes: Axes, window: tuple[float, float, float, float]) -> None:
    left, right, bottom, top = window
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_color("#cccccc")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
