"""`autoguide-fast tune`: how nets are best guided, by Optuna on any metric, resumable."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoguide_fast.cli.arguments import check_image_count, positive_integer
from autoguide_fast.locks import sole_writer

from . import tune_report
from .chosen_nets import OneNet, snapshots_of
from .tune_space import LINEAR, Task, Trials, larger_is_better
from .workers import map_jobs

if TYPE_CHECKING:
    import optuna

FIRST_SEED = 1_000_000
STUDY = "tune"
JOURNAL = "study.log"  # Optuna's storage, in the folder of the search
DIAGNOSED = 256  # images by which the first weights are chosen
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # noise levels, likewise
FACTORS = (2.0, 4.0, 8.0)  # of what `diagnose` finds: weights from careful to bold
STARTUP = 8  # trials before the optimiser draws on what it has seen
FEWEST_TO_COMPARE = 4  # trials before one may end early

_EXAMPLES = """\
examples:
  # weight, both EMA lengths and the guide's training time, after training runs/pair
  autoguide-fast tune --main runs/pair --guide runs/pair/guide runs/pair --out tuned/
  autoguide-fast sample --preset tuned/preset.json --seeds 0-63 --out samples/

  # on data and a metric of one's own, on four processes; and going on after Ctrl-C
  autoguide-fast tune --main runs/s --guide runs/xs --data img64.zip --metric fd_efficientnet \\
      --images 5000 --trials 100 --workers 4 --out tuned/

  # quality against variety; two kinds of guidance, in an interval
  autoguide-fast tune --main runs/pair --guide runs/pair/guide --variety recall_pixels \\
      --kinds linear apg --interval --out front/
"""


def add_command(subparsers: argparse._SubParsersAction) -> None:
    """Adds `tune` to the command line."""
    parser = subparsers.add_parser(
        "tune",
        help="find how nets are best guided, on any metric",
        description="Searches for guidance weight, EMA lengths, the guide and its training time, "
        "and where asked the kind of guidance and an interval, by a Gaussian process (Optuna). "
        "Every trial draws the same seeds; those that begin badly end after a part of the images "
        "(successive halving). The first weights are those that `diagnose` suggests. Writes the "
        "nets, preset.json for `sample --preset`, every trial and a map of them. A search that was "
        "stopped goes on when the command is repeated.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("nets").add_argument
    add("--main", required=True, metavar="RUN", help="run of the main net, or its file")
    add("--guide", required=True, nargs="+", metavar="RUN", help="runs or files of guides to try")
    add = parser.add_argument_group("what is tried").add_argument
    add(
        "--guidance",
        type=float,
        nargs=2,
        default=[1.0, 3.5],
        metavar=("LO", "HI"),
        help="weights, in steps of 0.05 (default: 1 3.5)",
    )
    add(
        "--kinds",
        nargs="+",
        default=[LINEAR],
        metavar="KIND",
        help="kinds of guidance, of --kind of `sample` (default: linear, the plain weight)",
    )
    add("--interval", action="store_true", help="also the noise levels between which to guide")
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--data",
        metavar="DATA",
        help="training images, as for `train` (default: what the main run was trained on)",
    )
    add("--ref", metavar="FILE", help="statistics of `evaluate ref`, instead of those of --data")
    add(
        "--metric",
        default="fd_pixels",
        metavar="M",
        help="a figure of `evaluate`, such as fid, fd_dinov2, kid_efficientnet (default: "
        "fd_pixels)",
    )
    add("--variety", metavar="M", help="a second figure, such as recall_pixels: finds the front")
    add("--detector-file", metavar="FILE", help="of the metric's features, if not in its place")
    add("--images", type=int, default=2000, metavar="N", help="of a full trial (default: 2000)")
    add("--fewest", type=int, default=500, metavar="N", help="of a short one (default: 500)")
    add("--steps", type=positive_integer, default=16, metavar="N", help="(default: 16)")
    add("--seed", type=int, default=FIRST_SEED, metavar="S", help=f"(default: {FIRST_SEED})")
    add = parser.add_argument_group("running").add_argument
    add("--trials", type=positive_integer, default=40, metavar="N", help="(default: 40)")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the search")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Searches and writes what was found; returns 0."""
    _optuna()
    task = _task(arguments)
    trials = Trials(task)
    with sole_writer(arguments.out, "tune"):
        study = _opened(arguments.out, task, trials.about())
        if not study.get_trials(deepcopy=False):
            for chosen in _first(trials):
                study.enqueue_trial(chosen)
        left = arguments.trials - len(_finished(study))
        jobs = [
            _Job(task, str(arguments.out), arguments.trials, i) for i in range(arguments.workers)
        ]
        if left > 0 and arguments.workers == 1:
            _try(trials, study, arguments.trials)
        elif left > 0:
            map_jobs(work, jobs, arguments.workers)
        tune_report.write(arguments.out, trials, study)
    return 0


def _task(arguments: argparse.Namespace) -> Task:
    from autoguide_fast.guidance import KINDS

    check_image_count(arguments.images, 100, "tune", "draw more")
    if not arguments.fewest >= 50:
        raise ValueError(f"tune: --fewest must be >= 50, got {arguments.fewest}; raise it")
    low, high = arguments.guidance
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"tune: --guidance must be LO < HI, got {low:g} {high:g}; 1 3 is usual")
    for kind in arguments.kinds:
        if kind not in (LINEAR, *KINDS):
            raise ValueError(
                f"tune: --kinds must be of {', '.join((LINEAR, *KINDS))}, got {kind!r}; choose some"
            )
    if arguments.seed < 0 or arguments.workers < 1:
        raise ValueError("tune: --seed must be >= 0 and --workers >= 1, got less; raise it")
    data = arguments.data
    if data is None:
        main = snapshots_of(arguments.main)
        data = None if isinstance(main, OneNet) else main.options.get("data")
    if data is None:
        raise ValueError(
            "tune: --data must be given for a net in a file, got none; name the pictures that it "
            "was trained on"
        )
    return Task(
        main=arguments.main,
        guides=tuple(arguments.guide),
        data=data,
        reference=arguments.ref,
        detector_file=arguments.detector_file,
        metric=arguments.metric,
        variety=arguments.variety,
        images=arguments.images,
        fewest=arguments.fewest,
        steps=arguments.steps,
        seed=arguments.seed,
        guidance=(low, high),
        kinds=tuple(arguments.kinds),
        interval=arguments.interval,
    )


def _first(trials: Trials) -> list[dict[str, float]]:
    """What is tried first: of each guide, the weights that `diagnose` suggests.

    They are `1 + factor (w* - 1)` with the median of w* over the noise levels.
    """
    from autoguide_fast import diagnose

    optuna = _optuna()
    images, labels = trials.real
    chosen = np.sort(np.random.RandomState(0).permutation(len(images))[:DIAGNOSED])
    found = []
    for number in range(len(trials.guides)):
        main, net = trials.nets(trials.choose(optuna.trial.FixedTrial(trials.start(1.0, number))))
        told = labels[chosen] if labels is not None and main.label_dim else None
        weights = diagnose(main, net, images[chosen], told, LEVELS).weights()
        best = float(np.median(weights[np.isfinite(weights)])) if np.isfinite(weights).any() else 0
        if best:
            found += [trials.start(1 + factor * (best - 1), number) for factor in FACTORS]
    return [each for i, each in enumerate(found) if each not in found[:i]]


@dataclasses.dataclass(frozen=True)
class _Job:
    task: Task
    out: str
    trials: int
    number: int


def work(job: _Job) -> None:
    """Tries until all trials are done, beside other processes that do the same."""
    study = _opened(Path(job.out), job.task, None, job.number)
    _try(Trials(job.task), study, job.trials)


def _try(trials: Trials, study: optuna.Study, count: int) -> None:
    """Tries until so many trials of the study are done, by whomever."""

    def enough(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if len(_finished(study)) >= count:
            study.stop()

    if len(_finished(study)) < count:
        study.optimize(lambda trial: _objective(trials, trial), callbacks=[enough])


def _objective(trials: Trials, trial: optuna.Trial) -> float | tuple[float, float]:
    task = trials.task
    choice = trials.choose(trial)
    trial.set_user_attr("choice", choice)
    figures: dict[str, float] = {}
    for count, figures in trials.figures(choice):
        trial.set_user_attr("images", count)
        trial.set_user_attr("figures", figures)
        if task.variety is not None:
            continue
        trial.report(figures[task.metric], count)
        rest = _rest(trial.study, task, count)
        if rest is not None and _is_worse(trial, figures[task.metric], count):
            print(tune_report.line(trial.number, choice, figures, count), flush=True)
            return figures[task.metric] + rest
    print(tune_report.line(trial.number, choice, figures, task.images), flush=True)
    if task.variety is not None:
        return figures[task.metric], figures[task.variety]
    return figures[task.metric]


def _is_worse(trial: optuna.Trial, mine: float, count: int) -> bool:
    """Whether a trial is in the worse half of all that were measured on so many images."""
    study = trial.study
    others = [t.intermediate_values for t in study.get_trials(deepcopy=False)]
    values = [found[count] for found in others if count in found]
    if len(values) < FEWEST_TO_COMPARE:
        return False
    median = float(np.median(values))
    larger = study.direction == _optuna().study.StudyDirection.MAXIMIZE
    return mine < median if larger else mine > median


def _rest(study: optuna.Study, task: Task, count: int) -> float | None:
    """By how much a figure usually changes from so many images to all: that of those that had all.

    None where these are all, or none had all yet. A distance falls as the images grow, by nearly as
    much for all choices. With this the optimiser learns from trials that ended early too.
    """
    others = [t.intermediate_values for t in study.get_trials(deepcopy=False)]
    changes = [found[task.images] - found[count] for found in others if task.images in found]
    return float(np.median(changes)) if changes and count < task.images else None


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(_optuna().trial.TrialState.COMPLETE,))


def _opened(out: Path, task: Task, about: dict | None, worker: int = 0) -> optuna.Study:
    """The study in a folder, made if there is none; `about` is held against the stored one."""
    optuna = _optuna()
    out.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(out / JOURNAL))
    names = [name for name in (task.metric, task.variety) if name is not None]
    with _quiet():
        sampler = optuna.samplers.GPSampler(
            seed=(task.seed + worker) % 2**32,
            n_startup_trials=STARTUP,
            independent_sampler=optuna.samplers.QMCSampler(
                seed=(task.seed + worker) % 2**32, warn_independent_sampling=False
            ),
            warn_independent_sampling=False,
        )
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=STUDY,
            sampler=sampler,
            directions=["maximize" if larger_is_better(name) else "minimize" for name in names],
            load_if_exists=True,
        )
    if about is None:
        return study
    stored = study.user_attrs.get("about")
    if stored is None:
        study.set_user_attr("about", about)
    elif stored != about:
        changed = ", ".join(k for k in about if stored.get(k) != about[k])
        raise ValueError(
            f"tune: --out must be a new folder or that of the same search, got {out}, where "
            f"{changed} differ; repeat the first command, or choose another folder"
        )
    _queue_unfinished(study)
    return study


def _queue_unfinished(study: optuna.Study) -> None:
    """Puts into the queue what was being tried when a search was stopped or killed."""
    states = _optuna().trial.TrialState
    again = study.user_attrs.get("again", [])
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING, states.FAIL)):
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
        chosen = trial.params or trial.system_attrs.get("fixed_params")
        if chosen and trial.number not in again:
            again = [*again, trial.number]
            study.set_user_attr("again", again)
            study.enqueue_trial(chosen)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ValueError(
            "tune: optuna must be installed, which chooses what is tried, got none; pip install "
            "'autoguide_fast[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that parts of Optuna may change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", message=".*experimental.*")
        yield
