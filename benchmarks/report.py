"""The table of the races."""

import statistics

import pinning
import torch

RIVALS = ("eager", "compile", "reference")


def lines(rows, saved):
    """Return the lines of the table, one a race.

    Args:
        rows: what pytest-benchmark has recorded.
        saved: dict of path to dict of full name to the benchmark of an earlier run.
    """
    before = {}
    for benchmarks in saved.values():  # the latest wins
        before.update(benchmarks)
    shown = [name for name in RIVALS if any(f"ratio_to_{name}" in r.extra_info for r in rows)]
    width = max(len(_name(row)) for row in rows) + 2
    yield (
        f"{torch.get_num_threads()} threads, {pinning.describe()}; "
        f"{torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}; {_ceilings(rows)}"
    )
    head = f"{'':<{width}}{'ours':>11}" + "".join(f"{'x ' + name:>12}" for name in shown)
    head += f"{'x saved':>9}" if before else ""
    head += f"{'rate':>15}{'ceiling':>9}{'peak memory, MiB':>30}{'dropped':>9}  compile is"
    for group in dict.fromkeys(row.group for row in rows):
        yield ""
        yield head.replace(" " * len(group), group, 1)
        for row in rows:
            if row.group == group:
                yield _line(row, shown, before, width)
    yield ""
    yield "x: their time over ours, medians of paired samples, so above 1 we are faster."
    if any(row.extra_info["noisy"] for row in rows):
        yield "!: other programs kept disturbing this row; nothing was left out of it."


def _name(row):
    return row.name.split("[", 1)[-1].rstrip("]")


def _line(row, shown, before, width):
    info = row.extra_info
    line = f"{_name(row):<{width}}{_time(info['ours_median_s']):>11}"
    for name in shown:
        ratio = info.get(f"ratio_to_{name}")
        line += f"{ratio:>12.2f}" if ratio else f"{'-':>12}"
    if before:
        old = before.get(row.fullname, {}).get("extra_info", {}).get("ours_median_s")
        line += f"{old / info['ours_median_s']:>9.2f}" if old else f"{'-':>9}"
    line += f"{info['rate']:>7.1f} {info['unit']:<7}"
    share = info.get("share_of_ceiling")
    line += f"{100 * share:>7.0f} %" if share else f"{'none':>9}"
    line += f"{_memory(info, shown):>30}{info['dropped']:>8}{'!' if info['noisy'] else ' '}"
    return line + f"  {info.get('compile_settings', '')}"


def _time(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def _memory(info, shown):
    known = [(n, info.get(f"{n}_bytes")) for n in ("ours", *shown)]
    if not any(size for _, size in known):
        planned = info.get("engine_bytes")
        return f"{planned / 2**20:.0f} planned" if planned else ""
    return " ".join(f"{n} {size / 2**20:.0f}" for n, size in known if size)


def _ceilings(rows):
    found = {}
    for row in rows:
        if "ceiling" in row.extra_info:
            found.setdefault(row.extra_info["ceiling_name"], []).append(row.extra_info)
    return "ceilings " + ", ".join(
        f"{name} {statistics.median(i['ceiling'] for i in infos):.0f} {infos[0]['unit']}"
        for name, infos in found.items()
    )
