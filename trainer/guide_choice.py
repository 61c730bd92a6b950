"""`train --guide auto`: the guide that is chosen among the candidates, and the table of why."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from autoguide_fast import Diagnosis, checkpoints
from autoguide_fast.checkpoints.run_folder import OPTIONS, SNAPSHOTS
from autoguide_fast.diagnosis import AUTO_FACTOR, SIGMAS
from autoguide_fast.files import with_checksum, without_checksum, write_atomically
from autoguide_fast.guidance.saved import place_beside
from autoguide_fast.networks import Precond

from . import guide_finals, guide_scores
from .auto_guide import CANDIDATES, AutoGuide
from .durable import remove_leftovers
from .estimate import PASSES
from .feature_parts import FeatureParts
from .guide_finals import STEPS, Comparison, Measured
from .guide_scores import AT_ONCE, IMAGES, LEVELS, PAST, Candidate
from .loop import marks
from .options import TrainOptions
from .runlog import make_folder
from .snapshots import average_path

PUBLISHED = 0.036  # what the paper's guides cost, in shares of the main net's training
TABLE = "guide.json"  # which guide was chosen, and why

_WEIGHED = 512  # images that the finalists' weights for `--guidance auto` are found on
_SAMPLES = "finalists"  # folder of what is kept of their samples until one is chosen


def kept(out: Path, job: dict) -> dict | None:
    """The table of the guide that was chosen for just this job, None where there is none yet."""
    try:
        table = without_checksum(json.loads((out / TABLE).read_bytes()))
        chosen = table["candidates"][table["chosen"]]
        file = average_path(out / "guide", chosen["images"], chosen["ema"])
        same = table["job"] == json.loads(json.dumps(job)) and bool(table["finalists"])
        return table if same and file.is_file() else None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # it is made again, the same


def choosing(
    out: Path, main: TrainOptions, auto: AutoGuide, job: dict, device: torch.device
) -> Iterator[dict | None]:
    """Chooses a guide, keeps it in `out/guide`, and says why.

    All candidates are scored on data (`guide_scores`); the best of each run are sampled, each at
    its own weights for `--guidance auto`, and what comes nearest to the data is kept
    (`guide_finals`). So are its weights, beside the main net's average, and in `guide.json` what
    each candidate scored and each finalist measured. The same whenever and however often it is
    done, and wherever it was left.

    Args:
        out: folder of the job, where the main net and all candidates are trained.
        main, auto, job: what it is.
        device: that evaluates the nets.

    Yields:
        None after each part of the work, where one may stop; at last what `guide.json` holds.
    """
    table = kept(out, job)
    if table is None:
        by, samples = guide_scores.scored_on(main, IMAGES)
        model_file = average_path(out, main.duration, main.ema[0])
        model = checkpoints.load(model_file, device)
        candidates = _candidates(out, main, auto)
        gains: list[float] = []
        for first in range(0, len(candidates), AT_ONCE):
            part = candidates[first : first + AT_ONCE]
            gains += guide_scores.scores(model, part, samples, main.seed, device)
            yield None
        final = guide_finals.finalists(candidates, gains)
        found = _diagnosed(model, main, {str(i): candidates[i] for i in final}, device)
        yield None
        count, _ = guide_finals.images_of_each(main, auto)
        for images in (count, 2 * count):
            comparison = Comparison(main, images)
            unguided, *measured = yield from _measured(
                comparison, model, {i: candidates[i] for i in final}, found, out / _SAMPLES, job
            )
            costs = [candidates[i].cost for i in final]
            verdict = guide_finals.decide(measured, unguided, costs)
            if verdict.told:
                break
        best = final[verdict.best]
        _keep(out, main, auto, candidates[best])
        kept_weights = dataclasses.replace(found.alone(str(best)), guides=("guide",))
        kept_weights.save(place_beside(model_file))
        table = {
            "job": job,
            "main_ema": main.ema[0],
            "budget": auto.budget,
            "spent": auto.cost,
            "published": PUBLISHED,
            "choosing": _costs(
                main,
                candidates,
                final,
                scored=len(samples[0]),
                weighed=found.sets["training"].error.shape[1],
                sampled=comparison.images,
            ),
            "score": {
                "name": "signed share of the main net's squared error removed",
                "images": len(samples[0]),
                "of": by,
            },
            "candidates": [
                {
                    "net": c.net,
                    "channels": c.channels,
                    "images": c.nimg,
                    "ema": c.ema,
                    "cost": c.cost,
                    "gain": gain,
                }
                for c, gain in zip(candidates, gains, strict=True)
            ],
            "distance": comparison.about(),
            "unguided": unguided.whole,
            "finalists": [
                {"candidate": i, **_row(each, unguided)}
                for i, each in zip(final, measured, strict=True)
            ],
            "chosen": best,
            "why": verdict.why,
        }
        text = json.dumps(with_checksum(table), indent=1, allow_nan=False) + "\n"
        write_atomically(out / TABLE, lambda path: path.write_text(text))
    shutil.rmtree(out / _SAMPLES, ignore_errors=True)
    yield table


def _measured(
    comparison: Comparison,
    model: Precond,
    chosen: dict[int, Candidate],
    found: Diagnosis,
    parts: Path,
    job: dict,
) -> Generator[None, None, list[Measured]]:
    """What samples measure without a guide, and with each of those chosen, at its own weights.

    Features are kept in the folder `parts` meanwhile.
    """
    measured = []
    for which in (None, *chosen):
        guide = guidance = None
        nets = found.nets[:1]
        if which is not None:
            guide = checkpoints.load(chosen[which].file, next(model.parameters()).device)
            alone = found.alone(str(which))
            guidance, nets = alone.schedule(AUTO_FACTOR), alone.nets
        about = {"job": job, "nets": list(nets), **comparison.drawn_by()}
        features = FeatureParts(parts, about, "train")
        try:
            for _ in comparison.sampled(model, guide, guidance, features):
                yield
            measured.append(comparison.measured(features))
        except FloatingPointError:
            if which is None:
                raise
            measured.append(Measured(math.inf))
    return measured


def _costs(
    main: TrainOptions,
    candidates: list[Candidate],
    final: list[int],
    scored: int,
    weighed: int,
    sampled: int,
) -> dict[str, float]:
    """What the choice takes, in shares of the main net's training: evaluations of images.

    Args:
        final: of the candidates, those that are weighed and sampled.
        scored, weighed, sampled: numbers of images.
    """
    own = 1 / (PASSES * main.duration)
    groups = -(-len(candidates) // AT_ONCE)  # which each evaluate the main net
    guides = sum(candidates[i].evaluation for i in final)
    return {
        "scores": scored * len(LEVELS) * (groups * own + sum(c.evaluation for c in candidates)),
        "weights": weighed * len(SIGMAS) * (own + guides),
        "samples": sampled * STEPS * ((1 + len(final)) * own + guides),
    }


def _row(measured: Measured, unguided: Measured) -> dict[str, float | None]:
    """What a finalist measured; nothing where its samples were not finite."""
    if math.isinf(measured.whole):
        return {"distance": None, "nearer": None, "error": None}
    difference, error = guide_finals.nearer(measured, unguided)
    return {"distance": measured.whole, "nearer": difference, "error": error}


def _diagnosed(
    model: Precond, main: TrainOptions, chosen: dict[str, Candidate], device: torch.device
) -> Diagnosis:
    """A diagnosis on training images, which has the weights of each of the candidates alone."""
    guides = {name: checkpoints.load(c.file, device) for name, c in chosen.items()}
    samples = guide_scores.training_images(main, _WEIGHED)
    return guide_scores.diagnosed(model, guides, "training", samples, SIGMAS, main.seed, device)


def _candidates(out: Path, main: TrainOptions, auto: AutoGuide) -> list[Candidate]:
    found = [
        Candidate(
            PAST,
            average_path(out, nimg, ema),
            main.channels,
            nimg,
            ema,
            cost=0.0,
            evaluation=1 / (PASSES * main.duration),
        )
        for nimg in auto.past
        for ema in main.ema
    ]
    for name, run in auto.runs.items():
        folder = out / CANDIDATES / name
        found += [
            Candidate(
                f"{name} channels",
                average_path(folder, nimg, ema),
                run.channels,
                nimg,
                ema,
                cost=auto.costs[name] * nimg,
                evaluation=auto.costs[name] / PASSES,
            )
            for nimg in sorted(marks(run, run.snapshots))
            for ema in run.ema
        ]
    return found


def _keep(out: Path, main: TrainOptions, auto: AutoGuide, chosen: Candidate) -> None:
    """Makes `out/guide` the run of a candidate up to the moment that was chosen."""
    options = main if chosen.net == PAST else auto.runs[chosen.net.split()[0]]
    target = out / "guide"
    make_folder(target / SNAPSHOTS)
    remove_leftovers(target / SNAPSHOTS)
    source = chosen.file.parent
    wanted = {
        path.name: path
        for path in source.glob("[0-9]*.safetensors")
        if int(path.name.partition("-")[0]) <= chosen.nimg
    }
    for path in (target / SNAPSHOTS).glob("[0-9]*.safetensors"):
        if path.name not in wanted:
            path.unlink()
    for name, path in wanted.items():
        write_atomically(target / SNAPSHOTS / name, functools.partial(shutil.copyfile, path))
    # The last of the averages is what a guide is taken from.
    lengths = [*(ema for ema in options.ema if ema != chosen.ema), chosen.ema]
    values = options.as_dict() | {"duration": chosen.nimg, "ema": lengths}
    text = json.dumps(values, indent=1) + "\n"
    write_atomically(target / OPTIONS, lambda path: path.write_text(text))
