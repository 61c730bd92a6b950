"""What `evaluate` and `evaluate ref` share: processes, networks, images run through them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import sampling_options
from .processes import Processes

if TYPE_CHECKING:
    from autoguide_fast.metrics.detectors import Detector
    from autoguide_fast.metrics.evaluation import Settings

    from .feature_parts import FeatureParts
    from .image_sources import ImageSource
    from .measuring import Measurement

INTERRUPTED = 130  # as a shell reports a program that Ctrl-C ended


@contextlib.contextmanager
def joined_processes(arguments: argparse.Namespace) -> Iterator[tuple[Processes, str]]:
    """The processes that share the work, and the device of this one."""
    device = arguments.device
    with Processes.join("cpu" if device == "cpu" else "auto", "evaluate") as processes:
        with processes.speaking_once():
            device = sampling_options.chosen_device(device, processes.local_rank)
        yield processes, device


def load_detectors(
    arguments: argparse.Namespace, names: list[str], device: str
) -> dict[str, Detector]:
    """The networks of these names, from the files that --detector-file names.

    Raises:
        ValueError: a file for none of them, or one that does not say for which.
    """
    from autoguide_fast.metrics.detectors import load_detector

    files: dict[str, str] = {}
    in_files = [name for name in names if name not in ("pixels", "efficientnet")]
    for text in arguments.detector_file:
        name, equals, file = text.partition("=")
        if not equals and len(in_files) == 1:
            name, file = in_files[0], text
        if name not in in_files or not file:
            raise ValueError(
                "evaluate: --detector-file must be F=FILE with F of the features that are asked "
                f"for, {', '.join(in_files) or 'none of which is in a file'}, got {text!r}; as in "
                f"{(in_files or ['inception'])[0]}=NET.pt"
            )
        files[name] = file
    return {
        name: load_detector(name, files.get(name), device, arguments.download) for name in names
    }


def measured(
    arguments: argparse.Namespace,
    source: ImageSource,
    repeats: int,
    settings: Settings,
    detectors: Mapping[str, Detector],
    processes: Processes,
) -> tuple[Measurement, FeatureParts | None] | int:
    """What came of the images and the parts that were kept; 130 where Ctrl-C came."""
    from autoguide_fast.locks import sole_writer

    from .feature_parts import FeatureParts, room_needed
    from .measuring import measure

    parts = None
    with contextlib.ExitStack() as stack:
        if arguments.out is not None:
            folder = arguments.out.with_name(f"{arguments.out.name}.parts")
            identity = {
                "images": source.about(),
                "state": source.state(),
                "repeats": repeats,
                "batch": arguments.batch_size,
                "features": {name: detector.about for name, detector in detectors.items()},
            }
            parts = FeatureParts(folder, identity)
            if processes.first:
                stack.enter_context(sole_writer(folder, "evaluate"))
                widths = sum(detector.width or 0 for detector in detectors.values())
                if warning := room_needed(folder, source.count, widths):
                    print(warning, file=sys.stderr)
        try:
            return measure(
                source,
                repeats,
                settings,
                detectors,
                processes,
                parts,
                arguments.batch_size,
                progress=not arguments.quiet,
            ), parts
        except KeyboardInterrupt:
            if processes.first:
                keep = "nothing is kept without --out"
                if parts is not None:
                    keep = f"what is done is in {parts.folder}, repeat the command to go on"
                print(f"\nautoguide-fast evaluate: interrupted; {keep}", file=sys.stderr)
            return INTERRUPTED


def about_networks(detectors: Mapping[str, Detector]) -> dict:
    """What a protocol says of the networks."""
    return {name: {**each.about, "width": each.width} for name, each in detectors.items()}


def processor(device: str) -> str:
    """What computed, in words."""
    import platform

    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
