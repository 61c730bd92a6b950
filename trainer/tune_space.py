"""What `tune` chooses from, and what a choice is worth when it is sampled and measured."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from autoguide_fast import metrics, sample
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.guidance import named_kind
from autoguide_fast.metrics.names import KINDS, Metric, parse_metric
from autoguide_fast.metrics.reference_file import ReferenceArrays, ReferenceFile

from .chosen_nets import OneNet, snapshots_of
from .yardstick import Data, Labelled, classes_of, yardstick

if TYPE_CHECKING:
    import optuna

LARGER_IS_BETTER = ("precision", "recall", "density", "coverage")
LINEAR = "linear"  # the kind D0 + w (D1 - D0)
# The grids of arXiv 2406.02507: w in steps of 0.05, EMA lengths from 0.010 to 0.250 by 0.005.
WEIGHT_STEP, EMA_STEP, EMA_LIMITS = 0.05, 0.005, (0.010, 0.250)
LOWEST, HIGHEST = (0.02, 1.0), (0.5, 20.0)  # ends of intervals that are tried


@dataclass(frozen=True)
class Task:
    """All that a search depends on, in plain values.

    main, guides: runs or files. data: as of `yardstick.Data`. reference: a file of statistics, or
    None for the data's own. metric: the figure to be best; variety: a second one, or None.
    images: of a full evaluation. fewest: of the first rung. steps: of the sampler. seed: the first.
    guidance: lowest and highest w. kinds: names of kinds. interval: whether one is searched for.
    """

    main: str
    guides: tuple[str, ...]
    data: str
    reference: str | None
    detector_file: str | None
    metric: str
    variety: str | None
    images: int
    fewest: int
    steps: int
    seed: int
    guidance: tuple[float, float]
    kinds: tuple[str, ...]
    interval: bool

    @property
    def rungs(self) -> list[int]:
        """Numbers of images, each twice the one before, the last of them all."""
        found = [self.images]
        while found[0] // 2 >= self.fewest:
            found.insert(0, found[0] // 2)
        return found if self.variety is None else [self.images]


def larger_is_better(figure: str) -> bool:
    """Whether a figure is to be large; the others are distances."""
    return figure.partition("_")[0] in LARGER_IS_BETTER


def metric_of(figure: str) -> Metric:
    """The metric that a figure is of: of `fd_pixels` itself, of `recall_pixels` `pr_pixels`.

    Raises:
        ValueError: there is no such figure.
    """
    stem, _, features = figure.partition("_")
    for kind, (_, names) in KINDS.items():
        if stem in names and kind != "cmmd":
            figure = f"{kind}_{features}" if features else kind
    try:
        return parse_metric(figure)
    except ValueError as error:
        raise ValueError(f"tune: {str(error).partition(': ')[2]}") from None


class Trials:
    """Evaluates choices on the same seeds and classes every time, so that they can be compared.

    Args:
        task: see there.

    Raises:
        ValueError: nets, data or metrics that are not there, or do not fit.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.main = snapshots_of(task.main)
        self.guides = [snapshots_of(each) for each in task.guides]
        wanted = [metric_of(name) for name in (task.metric, task.variety) if name is not None]
        if len({metric.features for metric in wanted}) > 1 or wanted[0].kind == "near":
            raise ValueError(
                "tune: --metric and --variety must be taken on the same features, and not be of "
                f"near, got {task.metric} and {task.variety}; fd_pixels goes with recall_pixels"
            )
        self.metrics = tuple(dict.fromkeys(metric.name for metric in wanted))
        self.detector = metrics.load_detector(wanted[0].features, task.detector_file)
        self._net = functools.lru_cache(maxsize=16)(self._loaded)

    @functools.cached_property
    def reference(self) -> ReferenceFile | ReferenceArrays:
        """The real images, by which samples are measured."""
        if self.task.reference is not None:
            return ReferenceFile(self.task.reference)
        images, _ = self.real
        parts = [self.detector(part).cpu().numpy() for part in images.split(64)]
        return ReferenceArrays({self.detector.name: torch.cat([*map(torch.as_tensor, parts)])})

    @functools.cached_property
    def real(self) -> Labelled:
        """Training images and labels."""
        return yardstick(Data(self.task.data, command="tune")).load("train")

    def about(self) -> dict:
        """What figures depend on, as JSON holds it; equal for the same search anywhere."""
        plain = asdict(self.task)
        for name in ("main", "guides", "reference", "detector_file"):
            plain.pop(name)
        if isinstance(self.reference, ReferenceFile):
            plain["reference"] = self.reference.sha256
        plain |= yardstick(Data(self.task.data, command="tune")).identity()
        plain |= {"nets": [run.identity() for run in (self.main, *self.guides)]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    def _loaded(self, role: int, nimg: int, ema: float) -> Any:
        return (self.main, *self.guides)[role].net(nimg, ema)

    def choose(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """A choice, as the optimiser suggests it.

        guidance, main_ema, guide (its number), guide_nimg, guide_ema, kind, interval (or None).
        """
        task = self.task
        found: dict[str, Any] = {
            "guidance": trial.suggest_float("guidance", *task.guidance, step=WEIGHT_STEP),
            "main_ema": self._ema(trial, "main_ema", self.main),
            "guide": 0,
            "kind": task.kinds[0],
            "interval": None,
        }
        if len(self.guides) > 1:
            found["guide"] = trial.suggest_categorical("guide", range(len(self.guides)))
        guide, moments, time = self.guides[found["guide"]], self._moments, 0
        if moments > 1:
            time = trial.suggest_int("guide_time", 0, moments - 1)
        found["guide_nimg"] = guide.times[time * len(guide.times) // moments]
        runs = [each for each in self.guides if isinstance(each, Snapshots)]
        if runs:
            found["guide_ema"] = self._ema(trial, "guide_ema", runs[0])
        if isinstance(guide, OneNet):
            found["guide_ema"] = guide.ema
        if len(task.kinds) > 1:
            found["kind"] = trial.suggest_categorical("kind", task.kinds)
        if task.interval:
            low = trial.suggest_float("interval_low", *LOWEST, log=True)
            high = trial.suggest_float("interval_high", *HIGHEST, log=True)
            if low < high:
                found["interval"] = [round(low, 4), round(high, 3)]
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in found.items()}

    @property
    def _moments(self) -> int:
        """Among how many moments of a guide's training is chosen: those of the longest list.

        What is chosen from does not depend on the guide, as the optimiser's model wants it.
        """
        return max(len(guide.times) for guide in self.guides)

    def start(self, guidance: float, guide: int = 0) -> dict[str, float]:
        """What the optimiser may begin with: a weight, and EMA lengths and time in the middle."""
        low, high = self.task.guidance
        steps = round((min(max(guidance, low), high) - low) / WEIGHT_STEP)
        chosen: dict[str, Any] = {"guidance": low + steps * WEIGHT_STEP}
        if chosen["guidance"] > high:
            chosen["guidance"] -= WEIGHT_STEP
        if len(self.guides) > 1:
            chosen["guide"] = guide
        run = self.guides[guide]
        if isinstance(self.main, Snapshots):
            chosen["main_ema"] = 0.05
        if any(isinstance(each, Snapshots) for each in self.guides):
            chosen["guide_ema"] = 0.10
        if self._moments > 1:
            place = run.times.index(run.nearest_time(0.4))
            chosen["guide_time"] = -(-place * self._moments // len(run.times))
        return chosen

    def _ema(self, trial: optuna.trial.BaseTrial, name: str, run: Snapshots | OneNet) -> float:
        if isinstance(run, OneNet):
            return run.ema
        return trial.suggest_float(name, *EMA_LIMITS, step=EMA_STEP)

    def nets(self, choice: dict[str, Any]) -> tuple[Any, Any]:
        """Main net and guide of a choice."""
        main = self._net(0, self.main.times[-1], choice["main_ema"])
        return main, self._net(1 + choice["guide"], choice["guide_nimg"], choice["guide_ema"])

    def figures(self, choice: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
        """The number of images and the figures of each rung; images are drawn once.

        Each rung adds images to those of the one before, from the seeds that follow.
        """
        task = self.task
        main, guide = self.nets(choice)
        guidance: Any = choice["guidance"]
        interval = choice["interval"]
        if choice["kind"] != LINEAR:
            guidance, interval = named_kind(choice["kind"], guidance, interval), None
        classes = classes_of(main, task.images)
        images: torch.Tensor | None = None
        for count in task.rungs:
            done = 0 if images is None else len(images)
            drawn = sample(
                main,
                guide,
                guidance,
                class_labels=None if classes is None else classes[done:count],
                seeds=range(task.seed + done, task.seed + count),
                interval=interval,
                num_steps=task.steps,
                batch_size=128,
            )
            images = drawn if images is None else torch.cat([images, drawn])
            found = metrics.evaluate(images, self.reference, self.detector, self.metrics)
            yield count, {name: float(found[name]) for name in found.values}
