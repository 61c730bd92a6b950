"""What the lines of `prediction.py measure` say: does the predicted gain order the measured one?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from autoguide_fast.files import write_atomically
from autoguide_fast.plots import BLUE, GREY, ORANGE

Row = dict[str, Any]
BEST = "best constant"
FORMS = ("training x1", "training x2", "training x3", "heldout x2", "w=1.3")
UNITS = {
    "digits": "ln of the Frechet distance to training data",
    "mnist": "ln of the Frechet distance of learned features",
    "photos": "ln of the kernel distance to training data",
    "toy": "nats of a true point",
}
SHARE, LIKELIHOOD = "share of error removed", "error removed over sigma^2"
PICTURED = {  # the prediction and the gain of each data set
    "digits": (SHARE, "training x2"),
    "mnist": (SHARE, "training x2"),
    "photos": (SHARE, "training x2"),
    "toy": (LIKELIHOOD, "training x1"),
}


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
    SHARE: error_removed,
    "the same, backwards negative": signed_error_removed,
    LIKELIHOOD: likelihood,
    "mean w* - 1": mean_weight,
    "slope at w = 1": slope,
    "error removed over sigma^2, by the truth": excess_removed,
}


def log_distance(row: Row, setting: str, by: str = "train") -> float:
    """How far samples are from the data: of images ln of a distance, of the toy in nats."""
    value = row["distance"][setting].get(by)
    if value is None:  # guided out of all bounds
        return float("inf")
    return float(value) if row["data"] == "toy" else float(np.log(max(value, 1e-6)))


def constants(row: Row) -> list[str]:
    """The constant weights that were tried, 1 among them."""
    return [name for name in row["distance"] if name.startswith("w=")]


def best_constant(row: Row, by: str = "train") -> float:
    """The distance of the best constant weight: the least of a parabola through the least three.

    Of those tried it is at the edge sometimes: then the least one.
    """
    tried = sorted(constants(row), key=lambda c: float(c[2:]))
    w = np.array([float(c[2:]) for c in tried])
    d = np.array([log_distance(row, c, by) for c in tried])
    i = int(np.argmin(d))
    if 0 < i < len(w) - 1 and np.isfinite(d[i - 1 : i + 2]).all():
        a, b, c = np.polyfit(w[i - 1 : i + 2], d[i - 1 : i + 2], 2)
        return float(c - b**2 / (4 * a))
    return float(d[i])


def measured(row: Row, what: str, by: str = "train") -> float:
    """The measured gain over no guidance of a setting, or of the best constant weight."""
    unguided = log_distance(row, "w=1", by)
    if what == BEST:
        return unguided - best_constant(row, by)
    return unguided - log_distance(row, what, by)


def rank(x: Sequence[float], y: Sequence[float], repeats: int = 1000) -> tuple[float, float, float]:
    """Spearman's correlation, and the ends of its 95 % bootstrap interval over the pairs."""
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(x), len(x)) for _ in range(repeats)]
    chosen = np.array([d for d in drawn if len(np.unique(d)) > 2])
    low, high = np.nanquantile(_spearman(np.array(x)[chosen], np.array(y)[chosen]), [0.025, 0.975])
    return float(_spearman(np.array([x]), np.array([y]))[0]), float(low), float(high)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each row; NaN where one side is constant."""
    x, y = (
        ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(x, axis=1), rankdata(y, axis=1))
    )
    with np.errstate(invalid="ignore"):
        return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))


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


def by_distance(rows: Sequence[Row]) -> list[str]:
    """A table's lines: median gains by each distance that was taken, and where which c is best.

    An unbiased distance that is below 0 for some samples has no logarithm, and no line.
    """
    lines = []
    for by in rows[0]["distance"]["w=1"]:
        values = [value.get(by) for row in rows for value in row["distance"].values()]
        if rows[0]["data"] != "toy" and min(v for v in values if v is not None) <= 0:
            continue
        forms = ("training x1", "training x2", "training x3")
        gains = np.array([[measured(row, what, by) for what in (*forms, BEST)] for row in rows])
        cells = " | ".join(f"{gain:+.3f}" for gain in np.median(gains, axis=0))
        best = np.bincount(gains[:, :3].argmax(axis=1), minlength=3)
        at, low, high = rank(
            [PREDICTIONS[SHARE](row, "training") for row in rows], gains[:, 1].tolist()
        )
        lines.append(
            f"| {by} | {cells} | {', '.join(map(str, best))} | {at:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return lines


def by_kind(rows: Sequence[Row], what: str) -> list[str]:
    """A table's lines: what is foretold of each kind of guide, and measured; medians."""
    lines = []
    for kind in sorted({row["kind"] for row in rows}):
        some = [row for row in rows if row["kind"] == kind]
        share, gain, best = np.median(
            [[error_removed(r, "training"), measured(r, what), measured(r, BEST)] for r in some], 0
        )
        lines.append(f"| {kind} | {len(some)} | {share:.3%} | {gain:+.3f} | {best:+.3f} |")
    return lines


def together(rows: Sequence[Row]) -> list[str]:
    """Lines about the pairs of all images, whose predictions are shares and gains logarithms.

    Their distances differ, so that besides the values the places within each data set are ranked.
    """
    chosen = [row for row in rows if row["data"] != "toy"]
    lines = []
    for what in ("training x2", BEST):
        values = np.array([[error_removed(r, "training"), measured(r, what)] for r in chosen])
        places = np.zeros_like(values)
        for data in {row["data"] for row in chosen}:
            mine = np.array([row["data"] == data for row in chosen])
            places[mine] = (values[mine].argsort(0).argsort(0) + 0.5) / mine.sum()
        for name, pairs in (("values", values), ("places within each data set", places)):
            at, low, high = rank(pairs[:, 0].tolist(), pairs[:, 1].tolist())
            lines.append(f"| {what}, {name} | {at:.2f} ({low:.2f} to {high:.2f}) |")
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """All tables, as Markdown."""
    lines = []
    for data, unit in UNITS.items():
        chosen = [r for r in rows if r["data"] == data]
        if len(chosen) < 4:
            continue
        lines += [f"## {data}, {len(chosen)} pairs; gains in {unit}"]
        for what in ("training x1", "training x2", BEST, "w=1.3"):
            lines += ["", f"rank correlation with the gain of {what}", ""]
            lines += ["| prediction | training data | held out |", "|---|---|---|"]
            lines += correlations(chosen, what)
        halves = {"all pairs": chosen, "first half": chosen[::2], "second half": chosen[1::2]}
        for part, some in halves.items():
            lines += ["", f"{part}: excess over each pair's best constant", ""]
            lines += ["| form | median | mean | worst | within 1 % |", "|---|---|---|---|---|"]
            lines += against_constants(some)
        lines += ["", "median gains by distance; of how many pairs c = 1, 2, 3 is best", ""]
        lines += ["| distance | c = 1 | c = 2 | c = 3 | best constant | best c | rank, c = 2 |"]
        lines += ["|---|---|---|---|---|---|---|", *by_distance(chosen)]
        what = PICTURED[data][1]
        lines += ["", f"by kind of guide, medians: {SHARE}, gains", ""]
        lines += [f"| kind | pairs | foretold | {what} | {BEST} |", "|---|---|---|---|---|"]
        lines += by_kind(chosen, what)
        lines += ["", "farthest from their rank:", "", *worst(chosen), ""]
    if len({row["data"] for row in rows} - {"toy"}) > 1:
        lines += [f"## all images: rank correlation of the {SHARE}", ""]
        lines += ["| with the gain of | rank correlation |", "|---|---|", *together(rows), ""]
    return "\n".join(lines)


def picture(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: the measured gain over the predicted one, a point for each pair."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {data: PICTURED[data] for data in PICTURED if any(r["data"] == data for r in rows)}
    lines = -(-len(shown) // 2)
    figure = Figure(figsize=(9.6, 3.9 * lines), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, 2, squeeze=False).flat
    for axes, (data, (prediction, what)) in zip(panels, shown.items(), strict=False):
        chosen = [row for row in rows if row["data"] == data]
        x = [PREDICTIONS[prediction](row, "training") for row in chosen]
        axes.scatter(x, [measured(row, what) for row in chosen], c=BLUE, s=28, label=what)
        gains = [measured(row, BEST) for row in chosen]
        axes.scatter(x, gains, c=ORANGE, marker="x", s=28, label="best constant weight")
        axes.axhline(0, color=GREY, lw=1, ls=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_xlabel(f"predicted: {prediction}")
        axes.set_ylabel(f"measured: {UNITS[data]}", fontsize=8)
        axes.set_title(f"{data}, {len(chosen)} pairs")
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def worst(
    rows: Sequence[Row],
    prediction: str = SHARE,
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
