"""Runs images through detectors, part by part, on one process or on several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from autoguide_fast.metrics.detectors import Detector
from autoguide_fast.metrics.evaluation import Collected, Settings
from autoguide_fast.metrics.running import RunningStatistics

from .feature_parts import FeatureParts, Part
from .image_sources import ImageSource
from .processes import Processes

CHUNK = 256  # images of a part, about: what is lost when a process is killed


@dataclass(frozen=True)
class Measurement:
    """What came of a source's images.

    repeats: what was gathered, complete in the first process alone. digest: a checksum of all
    images, in their order. size: (C, H, W).
    """

    repeats: list[Collected]
    digest: str


def measure(
    source: ImageSource,
    repeats: int,
    settings: Settings,
    detectors: Mapping[str, Detector],
    processes: Processes,
    parts: FeatureParts | None,
    batch_size: int,
    progress: bool = False,
) -> Measurement:
    """Runs all of a source's images through the detectors.

    Args:
        source: the images; they are divided into `repeats` consecutive parts of one size.
        repeats: >= 1.
        settings: what is gathered.
        detectors: by name.
        processes: which share the images.
        parts: where features are kept meanwhile, or None.
        batch_size: images that go through a detector at a time.
        progress: show a bar, in the first process.
    """
    count = source.count // repeats
    size = -(-CHUNK // batch_size) * batch_size  # of whole batches, so that these are always alike
    chunks = [
        (repeat, range(start, min(start + size, (repeat + 1) * count)))
        for repeat in range(repeats)
        for start in range(repeat * count, (repeat + 1) * count, size)
    ]
    mine = chunks[processes.rank :: processes.count]
    collected = [Collected(settings) for _ in range(repeats)]
    digests: dict[int, str] = {}
    for (repeat, chosen), part in zip(
        mine, _parts(source, mine, detectors, processes, parts, batch_size, progress), strict=True
    ):
        features = {name: torch.from_numpy(values) for name, values in part.features.items()}
        collected[repeat].add(features, part.labels, chosen.start)
        digests[chosen.start] = part.digest
    for each in collected:
        _reduce(each, processes)
    if processes.count > 1:
        box: list = [None] * processes.count
        with processes.together():
            dist.all_gather_object(box, digests)
        digests = {start: digest for theirs in box for start, digest in theirs.items()}
    joined = "".join(digest for _, digest in sorted(digests.items()))
    return Measurement(collected, hashlib.sha256(joined.encode()).hexdigest()[:32])


def _parts(
    source: ImageSource,
    chunks: list[tuple[int, range]],
    detectors: Mapping[str, Detector],
    processes: Processes,
    parts: FeatureParts | None,
    batch_size: int,
    progress: bool,
) -> Iterator[Part]:
    """The part of each chunk in turn, as it was kept or computed now."""
    from tqdm import tqdm

    known = {chosen: parts.load(chosen) is not None for _, chosen in chunks} if parts else {}
    images = source.parts([chosen for _, chosen in chunks if not known.get(chosen)])
    total = sum(len(chosen) for _, chosen in chunks)
    with tqdm(total=total, unit="image", disable=not (progress and processes.first)) as bar:
        for _, chosen in chunks:
            part = parts.load(chosen) if parts is not None and known[chosen] else None
            if part is None:
                part = _computed(*next(images), detectors, batch_size)
                if parts is not None:
                    parts.store(chosen, part)
                bar.update(len(chosen))
            else:
                bar.total -= len(chosen)
            yield part


def _computed(
    images: torch.Tensor,
    labels: np.ndarray | None,
    detectors: Mapping[str, Detector],
    batch_size: int,
) -> Part:
    """Features of some images, and what tells these images from others."""
    pixels = images.cpu().numpy()
    digest = hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
    features = {
        name: np.concatenate([detector(each).cpu().numpy() for each in images.split(batch_size)])
        for name, detector in detectors.items()
    }
    return Part(features, labels, digest.hexdigest()[:16])


def _reduce(collected: Collected, processes: Processes) -> None:
    """Adds up what the processes have gathered: sums in all of them, features in the first."""
    if processes.count == 1:
        return
    with processes.together():
        counts: list = [None] * processes.count
        dist.all_gather_object(counts, collected.count)
        collected.count = sum(counts)
        owner = next((rank for rank, count in enumerate(counts) if count), 0)
        for name, mine in collected.running.items():
            collected.running[name] = _summed(mine, owner, processes.rank)
        box: list | None = [None] * processes.count if processes.first else None
        dist.gather_object(collected.parts(), box)
    if box is not None:
        for rank, theirs in enumerate(box):
            if rank:
                collected.take(theirs)


def _summed(mine: RunningStatistics, owner: int, rank: int) -> RunningStatistics:
    """The sums of all processes, in float64, about the centre of the process `owner`."""
    box = [None if mine.centre is None or rank != owner else mine.centre.cpu().numpy()]
    dist.broadcast_object_list(box, src=owner, device=torch.device("cpu"))
    if box[0] is None:
        return mine  # nobody has any
    centre = torch.from_numpy(box[0])
    summed = RunningStatistics("cpu")
    width = len(centre)
    if mine.count:
        moved = mine.about(centre)
        assert moved.total is not None and moved.products is not None
        total, products = moved.total, moved.products
    else:
        total, products = torch.zeros_like(centre), centre.new_zeros(width, width)
    number = torch.tensor(float(mine.count), dtype=torch.float64)
    for each in (number, total, products):
        dist.all_reduce(each)
    summed.count, summed.centre = int(number), centre
    summed.total, summed.products = total, products
    return summed
