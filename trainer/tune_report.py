"""What `tune` leaves behind: nets, a preset, all trials, the front and a map of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.preset_files import write_preset
from autoguide_fast.ema import length_name
from autoguide_fast.files import write_atomically

from .tune_space import LINEAR, Trials, larger_is_better
from .yardstick import net_names

if TYPE_CHECKING:
    import optuna

PRESET, REPORT, MAP = "preset.json", "tune.json", "map.png"


def line(number: int, choice: dict[str, Any], figures: dict[str, float], images: int) -> str:
    """A trial in a line."""
    parts = [f"w {choice['guidance']:g}", f"EMA {length_name(choice['main_ema'])}"]
    parts += [f"guide {choice['guide']} at {choice['guide_nimg']}"]
    parts += [f"its EMA {length_name(choice['guide_ema'])}"]
    if choice["kind"] != LINEAR:
        parts.append(choice["kind"])
    if choice["interval"]:
        parts.append("({:g}, {:g}]".format(*choice["interval"]))
    parts += [f"{name} {value:.5g}" for name, value in figures.items()]
    return f"  {number}: {', '.join(parts)} ({images} images)"


def write(out: Path, trials: Trials, study: optuna.Study) -> None:
    """Writes nets and preset of the best trial, every trial, the front and the map."""
    task = trials.task
    rows = _rows(study)
    full = [row for row in rows if row["images"] == task.images]
    sign = -1 if larger_is_better(task.metric) else 1
    best = min(full, key=lambda row: sign * row["figures"][task.metric])
    names = net_names(task.data)
    files = {role: out / f"{names[role]}.safetensors" for role in ("main", "guide")}
    choice = best["choice"]
    for role, net in zip(files, trials.nets(choice), strict=True):
        nimg = trials.main.times[-1] if role == "main" else choice["guide_nimg"]
        info = {"nimg": nimg, "sigma_rel": choice[f"{role}_ema"]}
        if role == "main":
            info["recommended_guidance"] = choice["guidance"]
        checkpoints.save(net, files[role], **info)
    options = {
        "guidance": choice["guidance"],
        "interval": choice["interval"],
        "kind": None if choice["kind"] == LINEAR else choice["kind"],
        "steps": task.steps,
        "figures": best["figures"],
        "images": task.images,
    }
    write_preset(out / PRESET, {"model": files["main"], "guide": files["guide"]}, options)
    report = {
        "about": study.user_attrs["about"],
        "data": task.data,
        "best": best,
        "sampled": sum(row["images"] for row in rows),
        "trials": rows,
    }
    if task.variety is not None:
        report["front"] = front(full, task.metric, task.variety)
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(out / REPORT, lambda path: path.write_text(text))
    _draw(out / MAP, rows, task.metric)
    print("best:" + line(best["number"], choice, best["figures"], task.images))
    print(
        f"{len(rows)} trials, {report['sampled']} images; sample with: autoguide-fast sample "
        f"--preset {out / PRESET} --seeds 0-63 --out samples/"
    )
    for row in report.get("front", []):
        print("front:" + line(row["number"], row["choice"], row["figures"], row["images"]))


def _rows(study: optuna.Study) -> list[dict]:
    """All trials that were measured, as JSON holds them."""
    return [
        {"number": t.number, **{k: t.user_attrs[k] for k in ("choice", "images", "figures")}}
        for t in study.get_trials(deepcopy=False)
        if "figures" in t.user_attrs
    ]


def front(rows: list[dict], quality: str, variety: str) -> list[dict]:
    """The trials that no other beats in both figures, the best quality first."""

    def cost(row: dict) -> tuple[float, float]:
        q, v = (
            (-1 if larger_is_better(name) else 1) * row["figures"][name]
            for name in (quality, variety)
        )
        return q, v

    found: list[dict] = []
    for row in sorted(rows, key=cost):
        if not found or cost(row)[1] < cost(found[-1])[1]:
            found.append(row)
    return found


def _draw(path: Path, rows: list[dict], metric: str) -> None:
    """A map of the metric over the weight and each EMA length, as far as these were tried."""
    from matplotlib.figure import Figure

    most = max(row["images"] for row in rows)
    full = [row for row in rows if row["images"] == most]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    w = [row["choice"]["guidance"] for row in full]
    values = [row["figures"][metric] for row in full]
    order = "viridis" if larger_is_better(metric) else "viridis_r"
    for ax, role in zip(axes, ("main", "guide"), strict=True):
        ema = [row["choice"][f"{role}_ema"] for row in full]
        # The surface between trials needs points that span a plane.
        if len(set(zip(ema, w, strict=True))) > 4 and len(set(ema)) > 2 and len(set(w)) > 2:
            ax.tricontourf(ema, w, values, levels=12, cmap=order, alpha=0.5)
        dots = ax.scatter(ema, w, c=values, cmap=order, edgecolors="black", linewidths=0.5)
        ax.set_xlabel(f"EMA length of the {role} net" if role == "main" else "that of the guide")
    axes[0].set_ylabel("guidance weight")
    figure.colorbar(dots, ax=axes, label=metric)
    figure.suptitle(f"{len(full)} trials of {most} images", fontsize=10)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=120, format="png"))
