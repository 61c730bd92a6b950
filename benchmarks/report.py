"""The table of the races."""

import statistics

import pinning
import torch

RIVALS = ("eager", "eager-float32", "compile", "reference")


def lines(rows, saved):
    """Return the lines of the table, one a race.

    Args:
        rows: what pytest-benchmark has recorded.
        saved: dict of path to dict of full name to the benchmark of an earlier run.
    """
    before = {}
    for benchmarks in saved.values():  # the latest wins
        before.update(benchmarks)
    yield (
        f"{torch.get_num_threads()} threads, {pinning.describe()}; "
        f"{torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}; {_ceilings(rows)}"
    )
    for group in dict.fromkeys(row.group for row in rows):
        yield from _table([row for row in rows if row.group == group], before)
    yield ""
    yield "x: their time over ours, medians of paired samples, so above 1 we are faster."
    if any(row.extra_info["noisy"] for row in rows):
        yield "!: other programs kept disturbing this row; nothing was left out of it."


def _table(rows, before):
    """One group: a list of columns, each a heading and a cell a row; empty ones are left out."""
    infos = [row.extra_info for row in rows]
    columns = [(rows[0].group, [_name(row) for row in rows])]
    columns.append(("ours", [_time(info["ours_median_s"]) for info in infos]))
    for rival in RIVALS:
        columns.append((f"x {rival}", [_ratio(info.get(f"ratio_to_{rival}")) for info in infos]))
    columns.append(("x saved", [_ratio(_gain(row, before)) for row in rows]))
    columns.append(("rate", [f"{info['rate']:.1f} {info['unit']}" for info in infos]))
    columns.append(("ceiling", [_share(info.get("share_of_ceiling")) for info in infos]))
    columns.append(("planned", [_mebibytes(info.get("engine_bytes")) for info in infos]))
    for name in ("ours", *RIVALS):
        columns.append((f"{name} uses", [_mebibytes(info.get(f"{name}_bytes")) for info in infos]))
    columns.append(("dropped", [f"{i['dropped']}{'!' if i['noisy'] else ' '}" for i in infos]))
    columns.append(("compile is", [info.get("compile_settings", "") for info in infos]))
    columns = [[head, *cells] for head, cells in columns if any(cells)]
    widths = [max(map(len, column)) for column in columns]
    yield ""
    for cells in zip(*columns, strict=True):
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()


def _name(row):
    return row.name.split("[", 1)[-1].rstrip("]").removeprefix(f"{row.group}-")


def _gain(row, before):
    old = before.get(row.fullname, {}).get("extra_info", {}).get("ours_median_s")
    return old and old / row.extra_info["ours_median_s"]


def _ratio(value):
    return f"{value:.2f}" if value else ""


def _share(value):
    return f"{100 * value:.0f} %" if value else ""


def _mebibytes(value):
    return f"{value / 2**20:.0f} MiB" if value else ""


def _time(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def _ceilings(rows):
    found: dict[str, list[dict]] = {}
    for row in rows:
        if "ceiling" in row.extra_info:
            found.setdefault(row.extra_info["ceiling_name"], []).append(row.extra_info)
    return "ceilings " + ", ".join(
        f"{name} {statistics.median(i['ceiling'] for i in infos):.0f} {infos[0]['unit']}"
        for name, infos in found.items()
    )
