"""The table of `train --guide auto`, `guide.json`, in words."""

from __future__ import annotations

from collections.abc import Sequence

HEAD = f"{'net':>14}{'images':>14}{'EMA':>8}{'cost':>9}"


def report(table: dict) -> str:
    """The candidates by their scores, best first, and the finalists by what was measured."""
    rows: Sequence[dict] = table["candidates"]
    score, distance = table["score"], table["distance"]
    lines = [
        "candidates for a guide by the share of the main net's squared error that they remove, "
        f"less what they remove by weights below 1, on {score['images']} {score['of']} images",
        f"{HEAD}{'score':>12}",
    ]
    for row in sorted(rows, key=lambda row: (-row["gain"], row["cost"])):
        lines.append(f"{_net(row)}{100 * row['gain']:10.3f} %")
    lines += [
        f"the best of each run by {distance['name']} of {distance['images']} samples, on the same "
        f"seeds, to {distance['training_images']} training images",
        f"{HEAD}{'distance':>12}  nearer than without a guide",
        f"{'none':>14}{'':31}{table['unguided']:12.5g}",
    ]
    for final in sorted(table["finalists"], key=_order):
        kept = "  kept" * (final["candidate"] == table["chosen"])
        measured = "   not finite"
        if final["distance"] is not None:
            measured = f"{final['distance']:12.5g}  {final['nearer']:.3g} ± {final['error']:.2g}"
        lines.append(_net(rows[final["candidate"]]) + measured + kept)
    lines += table["why"]
    chosen, choosing = rows[table["chosen"]], table["choosing"]
    costs = ", ".join(f"{name} {_percent(share)}" for name, share in choosing.items())
    lines.append(
        f"the guide's training cost {100 * chosen['cost']:.1f} % of the main net's, that of all "
        f"candidates {100 * table['spent']:.1f} %, choosing among them "
        f"{_percent(sum(choosing.values()))} ({costs}), counted in MAC; the paper's guides cost "
        f"{100 * table['published']:.1f} %"
    )
    return "\n".join(lines)


def _percent(share: float) -> str:
    """A share that may be tiny, or of a tiny training more than all."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:,.0f} %"


def _net(row: dict) -> str:
    return f"{row['net']:>14}{row['images']:14,}{row['ema']:8.3g}{100 * row['cost']:7.2f} %"


def _order(final: dict) -> tuple[bool, float]:
    """The nearest first, and those that were not finite last."""
    return final["distance"] is None, final["distance"] or 0.0
