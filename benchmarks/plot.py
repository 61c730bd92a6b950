"""Draws races as bars: how many times faster than each rival, and the share of the ceiling.

    python benchmarks/plot.py results.json out.png

takes what `pytest --benchmark --benchmark-json=results.json` wrote.
"""

import argparse
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {
    "ratio_to_eager": "times faster than eager",
    "ratio_to_compile": "times faster than torch.compile",
    "ratio_to_reference": "times faster than the reference",
    "share_of_ceiling": "share of the ceiling",
}
COLOURS = {"float32": "#3b6fb6", "bfloat16": "#3a9a6b", "int8": "#d98032"}
TASKS = {
    "op": "one operator",
    "denoiser": "one evaluation of the model",
    "step": "one guided step",
    "sampling": "guided sampling, 32 steps",
}
ROW_INCHES = 0.22


def draw(rows, path):
    """Draw `rows`, dicts with `name`, `group` and `extra_info` as in the JSON, into `path`."""
    groups = [g for g in TASKS if any(row["group"] == g for row in rows)]
    panels = [k for k in PANELS if any(k in row["extra_info"] for row in rows)]
    tables = [_table([row for row in rows if row["group"] == group]) for group in groups]
    heights = [sum(len(bars) + 0.6 for bars in table.values()) for table in tables]
    figure, axes = plt.subplots(
        len(groups),
        len(panels),
        figsize=(2 + 3.2 * len(panels), ROW_INCHES * sum(heights) + 1.1 * len(groups) + 0.4),
        height_ratios=heights,
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for line, group, table in zip(axes, groups, tables, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            if any(panel in info for bars in table.values() for _, info in bars):
                _bars(axis, table, panel)
                axis.set_xlabel(PANELS[panel])
            else:
                axis.set_axis_off()
        line[0].set_title(TASKS[group], loc="left", fontweight="bold", fontsize=10)
    used = [d for d in COLOURS if any(row["name"].rstrip("]").endswith(d) for row in rows)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[dtype]) for dtype in used]
    if used:
        figure.legend(handles, used, loc="outside upper right", ncols=len(used), frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _table(rows):
    """Dict of net and batch to the list of `(dtype, extra_info)`, fastest type last."""
    table: dict[str, list[tuple[str, dict]]] = {}
    for row in rows:
        label = row["name"].split("[", 1)[1].rstrip("]")
        dtype = next((d for d in COLOURS if label.endswith(f"-{d}")), None)
        label = label.removesuffix(f"-{dtype}").removeprefix(f"{row['group']}-")
        table.setdefault(label, []).append((dtype or "float32", row["extra_info"]))
    return table


def _bars(axis, table, panel):
    share = panel == "share_of_ceiling"
    y, ticks = 0.0, []
    for bars in table.values():
        ticks.append(y + (len(bars) - 1) / 2)
        for dtype, info in bars:
            value = info.get(panel)
            if value is not None:
                axis.barh(y, value, height=0.86, color=COLOURS[dtype], label=dtype)
                text = f" {100 * value:.0f} %" if share else f" {value:.2f}"
                axis.text(value, y, text, va="center", fontsize=8)
            y += 1
        y += 0.6
    axis.axvline(1, color="black", linewidth=0.8, linestyle="-" if not share else ":")
    axis.set_yticks(ticks, list(table))
    axis.set_ylim(y - 0.6 - 0.5, -0.6)
    axis.margins(x=0.14)
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    if share:
        axis.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))


def main():
    """Draw the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="JSON from --benchmark-json or --benchmark-save")
    parser.add_argument("png")
    args = parser.parse_args()
    with open(args.results) as file:
        benchmarks = json.load(file)["benchmarks"]
    draw([b for b in benchmarks if "rate" in b["extra_info"]], args.png)


if __name__ == "__main__":
    main()
