"""What the lines of `prediction.py measure` say: does the predicted gain order the measured one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from autoguide_fast.files import write_atomically
from autoguide_fast.plots import BLUE, GREY, ORANGE

Row = dict[str, Any]
FORMS = ("training x1", "training x2", "training x3", "heldout x2", "w=1.3")
UNITS = {"digits": "ln of the Frechet distance to training data", "toy": "nats of a true point"}


def _of(row: Row, data: str) -> tuple[np.ndarray, ...]:
    """Levels, and the model's squared error, <r, d> and |d|^2 at each, per sample."""
    return np.array(row["levels"]), *(np.array(row[data][k]) for k in ("error", "along", "gram"))


def error_removed(row: Row, data: str) -> float:
    """The mean over ln sigma of the share of squared error that the best weights remove."""
    _, error, along, gram = _of(row, data)
    return float(np.mean(along**2 / gram / error))


def signed_error_removed(row: Row, data: str) -> float:
    """The same, where the best weights guide backwards counted as negative."""
    _, error, along, gram = _of(row, data)
    return float(np.mean(np.sign(along) * along**2 / gram / error))


def likelihood(row: Row, data: str) -> float:
    """The squared error removed over sigma^2, averaged over ln sigma.

    The integral that bounds the divergence of the samples' distribution from the data's (Girsanov;
    arXiv 2101.09258, theorem 1).
    """
    sigma, _, along, gram = _of(row, data)
    return float(np.mean(along**2 / gram / sigma**2))


def mean_weight(row: Row, data: str) -> float:
    """The mean over ln sigma of w* - 1."""
    _, _, along, gram = _of(row, data)
    return float(np.mean(along / gram))


def slope(row: Row, data: str) -> float:
    """What the first step of guidance takes from squared error over sigma^2: `<r, d> / sigma^2`."""
    sigma, _, along, _ = _of(row, data)
    return float(np.mean(along / sigma**2))


def excess_removed(row: Row, data: str) -> float:
    """The error over sigma^2 that is removed, by the truth; of the toy alone."""
    if "truth" not in row or data != "training":
        return float("nan")
    sigma, _, _, gram = _of(row, "training")
    along = np.array(row["truth"]["along"])
    return float(np.mean(along**2 / gram / sigma**2))


PREDICTIONS: dict[str, Callable[[Row, str], float]] = {
    "share of error removed": error_removed,
    "the same, backwards negative": signed_error_removed,
    "error removed over sigma^2": likelihood,
    "mean w* - 1": mean_weight,
    "slope at w = 1": slope,
    "error removed over sigma^2, by the truth": excess_removed,
}


def log_distance(row: Row, setting: str) -> float:
    """How far samples are from the data: of digits ln of the distance, of the toy in nats."""
    value = row["distance"][setting]["train"]
    if value is None:  # guided out of all bounds
        return float("inf")
    return float(np.log(max(value, 1e-6))) if row["data"] == "digits" else float(value)


def constants(row: Row) -> list[str]:
    """The constant weights that were tried, 1 among them."""
    return [name for name in row["distance"] if name.startswith("w=")]


def best_constant(row: Row) -> float:
    """The distance of the best constant weight: the least of a parabola through the least three.

    Of those tried it is at the edge sometimes: then the least one.
    """
    tried = sorted(constants(row), key=lambda c: float(c[2:]))
    w = np.array([float(c[2:]) for c in tried])
    d = np.array([log_distance(row, c) for c in tried])
    i = int(np.argmin(d))
    if 0 < i < len(w) - 1 and np.isfinite(d[i - 1 : i + 2]).all():
        a, b, c = np.polyfit(w[i - 1 : i + 2], d[i - 1 : i + 2], 2)
        return float(c - b**2 / (4 * a))
    return float(d[i])


def measured(row: Row, what: str) -> float:
    """The measured gain over no guidance of a setting, or of the best constant weight."""
    unguided = log_distance(row, "w=1")
    if what == "best constant":
        return unguided - best_constant(row)
    return unguided - log_distance(row, what)


def rank(x: Sequence[float], y: Sequence[float], repeats: int = 1000) -> tuple[float, float, float]:
    """Spearman's correlation, and the ends of its 95 % bootstrap interval over the pairs."""
    a, b = np.array(x), np.array(y)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(repeats):
        chosen = random.integers(0, len(a), len(a))
        if len(np.unique(chosen)) > 2:
            drawn.append(spearmanr(a[chosen], b[chosen]).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(spearmanr(a, b).statistic), float(low), float(high)


def correlations(rows: Sequence[Row], what: str) -> list[str]:
    """A table's lines: each prediction's rank correlation with the measured gain."""
    lines = []
    gains = [measured(row, what) for row in rows]
    for name, predict in PREDICTIONS.items():
        cells = []
        for data in ("training", "heldout"):
            values = [predict(row, data) for row in rows]
            if not np.isfinite(values).all():
                cells.append("-")
                continue
            at, low, high = rank(values, gains)
            cells.append(f"{at:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def against_constants(rows: Sequence[Row]) -> list[str]:
    """A table's lines: each form of schedule against the best constant weight of each pair.

    Distance in excess of that one's (below 0: nearer to the data), and of how many pairs it is at
    most 1 %, of the toy 0.01 nats, more.
    """
    lines = []
    for form in FORMS:
        excess = np.array([log_distance(row, form) - best_constant(row) for row in rows])
        within = int((excess <= 0.01).sum())
        lines.append(
            f"| {form} | {np.median(excess):+.3f} | {np.minimum(excess, 2).mean():+.3f} | "
            f"{np.max(excess):+.3f} | {within} of {len(rows)} |"
        )
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """All tables, as Markdown."""
    lines = []
    for data, unit in UNITS.items():
        chosen = [r for r in rows if r["data"] == data]
        if len(chosen) < 4:
            continue
        lines += [f"## {data}, {len(chosen)} pairs; gains in {unit}"]
        for what in ("training x1", "training x2", "best constant", "w=1.3"):
            lines += ["", f"rank correlation with the gain of {what}", ""]
            lines += ["| prediction | training data | held out |", "|---|---|---|"]
            lines += correlations(chosen, what)
        for half, some in {"first": chosen[::2], "second": chosen[1::2]}.items():
            lines += ["", f"{half} half: excess over each pair's best constant", ""]
            lines += ["| form | median | mean | worst | within 1 % |", "|---|---|---|---|---|"]
            lines += against_constants(some)
        lines += ["", "farthest from their rank:", "", *worst(chosen), ""]
    return "\n".join(lines)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: the measured gain over the predicted one, a point for each pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    shown = {
        "digits": ("share of error removed", "training x2"),
        "toy": ("error removed over sigma^2", "training x1"),
    }
    for axes, (data, (prediction, what)) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        chosen = [row for row in rows if row["data"] == data]
        x = [PREDICTIONS[prediction](row, "training") for row in chosen]
        axes.scatter(x, [measured(row, what) for row in chosen], c=BLUE, s=28, label=what)
        gains = [measured(row, "best constant") for row in chosen]
        axes.scatter(x, gains, c=ORANGE, marker="x", s=28, label="best constant weight")
        axes.axhline(0, color=GREY, lw=1, ls=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xlabel(f"predicted: {prediction}")
        axes.set_ylabel(f"measured: {UNITS[data]}", fontsize=9)
        axes.set_title(f"{data}, {len(chosen)} pairs")
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def worst(
    rows: Sequence[Row],
    prediction: str = "share of error removed",
    what: str = "training x2",
    count: int = 6,
) -> list[str]:
    """The pairs whose rank by prediction is farthest from that by measurement."""
    predicted = np.argsort(np.argsort([PREDICTIONS[prediction](r, "training") for r in rows]))
    gained = np.argsort(np.argsort([measured(r, what) for r in rows]))
    order = np.argsort(-np.abs(predicted - gained))[:count]
    return [
        f"- {rows[i]['pair']} ({rows[i]['kind']}): rank {predicted[i]} foretold, {gained[i]} "
        f"measured, of {len(rows)}"
        for i in order
    ]
