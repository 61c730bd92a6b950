"""`autoguide-fast evaluate ref`: reference statistics of real images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from autoguide_fast.cli.arguments import check_output_file

from .data.datasets import BUNDLED
from .evaluate_images import about_networks, joined_processes, load_detectors, measured, processor
from .processes import Processes

if TYPE_CHECKING:
    from autoguide_fast.metrics.evaluation import Collected, Settings


def run_ref(arguments: argparse.Namespace) -> int:
    """Writes reference statistics; returns 0, or 130 by Ctrl-C."""
    from autoguide_fast.metrics.evaluation import Settings
    from autoguide_fast.metrics.names import FEATURES, Metric

    check_output_file(arguments.out, "evaluate ref")
    if arguments.out.suffix != ".npz":
        raise ValueError(
            f"evaluate ref: --out must be an .npz file, got {arguments.out}; give it that ending"
        )
    if arguments.split is not None and arguments.data not in BUNDLED:
        raise ValueError(
            f"evaluate ref: --split must be left out for files, got {arguments.split}; name the "
            "folder or ZIP file that holds the split"
        )
    for name in arguments.features:
        if name not in FEATURES:
            raise ValueError(
                f"evaluate ref: --features must be of {', '.join(FEATURES)}, got {name!r}"
            )
    kinds = ("fd", "kid") if arguments.keep_features else ("fd",)
    wanted = tuple(Metric(kind, name) for name in arguments.features for kind in kinds)
    with joined_processes(arguments) as (processes, device), processes.speaking_once():
        settings = Settings(wanted, device=device)
        return _make_reference(arguments, settings, processes, device)


def _make_reference(
    arguments: argparse.Namespace, settings: Settings, processes: Processes, device: str
) -> int:
    from autoguide_fast.metrics.protocol import versions
    from autoguide_fast.metrics.reference_file import write_reference

    from .image_sources import open_images

    source = open_images(arguments.data, arguments.split or "train")
    detectors = load_detectors(arguments, settings.detectors(), device)
    found = measured(arguments, source, 1, settings, detectors, processes)
    if isinstance(found, int) or not processes.first:
        return found if isinstance(found, int) else 0
    result, parts = found
    collected: Collected = result.repeats[0]
    kept = {name: collected.kept(name) for name in detectors if settings.keeps(name)}
    protocol = {
        "versions": versions(),
        "processor": processor(device),
        "processes": processes.count,
        "images": {"count": collected.count, **source.about(), "digest": result.digest},
        "features": about_networks(detectors),
    }
    write_reference(
        arguments.out,
        {name: collected.running[name].statistics() for name in detectors},
        kept,
        collected.labels() if kept and source.labelled else None,
        protocol,
    )
    if parts is not None:
        parts.remove()
    what = "statistics and features" if kept else "statistics"
    print(
        f"{arguments.out}: {what} ({', '.join(detectors)}) of {collected.count} images, "
        f"{arguments.out.stat().st_size / 1e6:.1f} MB"
    )
    return 0
