"""What the toy's figures say: a table, and the paper's claims, each held against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .measures import RARE, REACHED, Figures, Spread, spreads
from .methods import METHODS

TRUTH = "true points"

# Column of the table -> figure, factor and decimals.
_COLUMNS = {
    "off the tree, %": ("off_tree", 100.0, 2),
    "outside, %": ("outside", 100.0, 2),
    "branches reached, %": ("branches", 100.0, 1),
    "overlap, %": ("overlap", 100.0, 1),
    "energy distance x 1000": ("energy", 1000.0, 2),
}
NOTE = (
    f"Off the tree: share of points farther from every branch than {100 * (1 - RARE):g} % of true "
    f"points. Outside: where the true density is lower than at {100 * (1 - RARE):g} % of true "
    "points, which is stricter at the thin tips. Branches reached: share of the tree's 127 "
    f"branches that get at least {100 * REACHED:g} % of the points that they should. Overlap: the "
    "smaller of what a branch gets and should get, summed over all. Energy distance: to true "
    "points; it scatters around 0 for these. ±: standard deviation over trainings and seeds."
)

Summary = Mapping[str, Mapping[str, Spread]]


def summary(rows: Sequence[Mapping]) -> Summary:
    """Each figure's spread by method; `rows` hold `method` and the fields of `Figures`."""
    names = list(Figures.__dataclass_fields__)

    def of(method: str) -> list[Figures]:
        mine = (row for row in rows if row["method"] == method)
        return [Figures(**{name: row[name] for name in names}) for row in mine]

    return {method: spreads(of(method)) for method in (TRUTH, *METHODS)}


def table(found: Summary) -> str:
    """The figures as a Markdown table."""
    lines = [f"| method | {' | '.join(_COLUMNS)} |", "|---|" + "---|" * len(_COLUMNS)]
    for method, figures in found.items():
        label = METHODS[method].label if method in METHODS else method
        cells = [figures[name].text(scale, digits) for name, scale, digits in _COLUMNS.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(found: Summary) -> list[str]:
    """The paper's claims, each with yes or no and the figures that say so.

    A difference counts if it is more than twice what the two figures scatter by together.
    """
    truth, none, cfg, auto = (found[m] for m in (TRUTH, "none", "CFG", "autoguidance"))

    def off(figures: Mapping[str, Spread]) -> str:
        return f"{figures['off_tree'].text(100)} %"

    def branches(figures: Mapping[str, Spread]) -> str:
        return f"{figures['branches'].text(100, 1)} %"

    def energy(figures: Mapping[str, Spread]) -> str:
        return figures["energy"].text(1000)

    claims = [
        (
            none["off_tree"].above(truth["off_tree"]),
            "without guidance, more points lie off the tree than true ones do",
            f"{off(none)}, true ones {off(truth)}",
        ),
        (
            none["off_tree"].above(cfg["off_tree"]),
            "CFG leaves fewer off the tree",
            f"{off(none)} -> {off(cfg)}",
        ),
        (
            none["branches"].above(cfg["branches"]),
            "CFG loses branches",
            f"reached {branches(none)} -> {branches(cfg)}",
        ),
        (
            none["off_tree"].above(auto["off_tree"]),
            "autoguidance leaves fewer off the tree",
            f"{off(none)} -> {off(auto)}",
        ),
        (
            not none["branches"].above(auto["branches"]),
            "autoguidance loses no branches",
            f"reached {branches(none)} -> {branches(auto)}",
        ),
        (
            auto["branches"].above(cfg["branches"]),
            "autoguidance keeps more branches than CFG",
            f"{branches(auto)} and {branches(cfg)}",
        ),
        (
            cfg["energy"].above(auto["energy"]),
            "autoguidance ends nearer to the true distribution than CFG",
            f"energy distance x 1000: {energy(auto)} and {energy(cfg)}",
        ),
    ]
    return [f"{'yes' if holds else 'no':3} {claim} ({why})" for holds, claim, why in claims]
