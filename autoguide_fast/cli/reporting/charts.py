"""Curves as SVG, so narrow that their words can be read on a phone."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...diagnosis import sets_of
from ...plots import CURVES, training_curve
from ...plots import weights_over_sigma as draw_weights_over_sigma
from .blocks import Figure, data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = 4.6, 3.3  # inches
_STYLE: Any = {"svg.hashsalt": "autoguide_fast", "font.size": 11, "font.family": "DejaVu Sans"}


def chart(draw: Callable[[Axes], object], alt: str, caption: str) -> Figure:
    """A figure of what `draw` puts into its axes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=_SIZE, layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.subplots()
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        data = io.BytesIO()
        canvas.savefig(data, format="svg", metadata={"Date": None})
    return Figure(data_uri(data.getvalue(), "image/svg+xml"), alt, caption)


def training_curves(rows: Sequence[dict]) -> list[Figure]:
    """Loss, learning rate, norm of the gradients and speed of a run, of its log's lines."""
    figures = []
    for name, label in CURVES.items():
        known = [row for row in rows if row.get(name) is not None]
        if not known:
            continue
        ends = ", ".join(
            f"{net} from {mine[0][name]:.4g} to {mine[-1][name]:.4g}"
            for net in dict.fromkeys(row["net"] for row in known)
            for mine in ([row for row in known if row["net"] == net],)
        )
        alt = f"Line chart of the {label} over the images seen: {ends}."
        draw = functools.partial(training_curve, rows=rows, name=name)
        figures.append(chart(draw, alt, label.capitalize()))
    return figures


def weights_over_sigma(found: dict[str, Any], guide: int) -> Figure:
    """The best weight of one guide over the noise level, of a diagnosis as `diagnose` saves it."""
    name, sets = found["guides"][guide], sets_of(found)
    draw = functools.partial(
        draw_weights_over_sigma, sigmas=found["sigmas"], sets=sets, guide=guide
    )
    peaks = [
        f"{label} at most {max(known):.3g}"
        for label, values in sets.items()
        if (known := [row[guide] for row in values["weights"] if row[guide] is not None])
    ]
    alt = (
        f"Line chart of the best guidance weight for the guide {name} over the noise level, with "
        f"its 95 % interval: {', '.join(peaks)}."
    )
    return chart(draw, alt, f"Guide {name}: weight over noise level, with 95 % intervals")
