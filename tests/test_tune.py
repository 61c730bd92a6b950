"""`autoguide-fast tune`: trials on the same seeds, resumed, halved; presets, fronts, metrics."""

from __future__ import annotations

import json
import types

import pytest

from autoguide_fast import checkpoints, load, metrics, sample
from autoguide_fast.cli import main
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import loop, tune, tune_report, tune_space
from autoguide_fast.trainer.options import TrainOptions

optuna = pytest.importorskip("optuna")

SMALL = ["--images", "100", "--fewest", "50", "--steps", "2", "--data", "digits"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run with two snapshots of two averages."""
    out = tmp_path_factory.mktemp("runs") / "main"
    options = TrainOptions(
        channels=4, channels_per_head=4, batch=16, duration=64, snapshots=2, rampup=32.0
    )
    loop.train(options, out, progress=False)
    return out


def tuned(out, *arguments):
    nets = ["--main", "digits", "--guide", "digits-guide"]
    return main(["tune", *nets, *SMALL, "--out", str(out), *arguments])


def test_finds_goes_on_and_writes_a_preset(tmp_path, capsys, monkeypatch):
    out = tmp_path / "tuned"
    first = []
    monkeypatch.setattr(tune, "DIAGNOSED", 16)
    monkeypatch.setattr(tune, "_objective", recording(tune._objective, first, stop_after=3))
    assert tuned(out, "--trials", "5") != 0
    monkeypatch.undo()
    monkeypatch.setattr(tune, "DIAGNOSED", 16)
    assert tuned(out, "--trials", "5") == 0
    report = json.loads((out / "tune.json").read_text())
    rows = report["trials"]
    assert [row["number"] for row in rows] == [*first, 4, 5]  # 3 was stopped, and goes on as 4
    # The first weights are those that `diagnose` suggests, ever further from 1.
    assert 1 < rows[0]["choice"]["guidance"] < rows[1]["choice"]["guidance"]
    full = [row for row in rows if row["images"] == 100]
    best = min(full, key=lambda row: row["figures"]["fd_pixels"])
    assert report["best"] == best
    assert report["sampled"] == sum(row["images"] for row in rows)
    # The figure is that of the preset's samples, of the search's seeds.
    found = checkpoints.read_preset(out / "preset.json")
    assert found["guidance"] == best["choice"]["guidance"] and found["steps"] == 2
    images = sample(
        found["model"],
        found["guide"],
        found["guidance"],
        seeds=range(tune.FIRST_SEED, tune.FIRST_SEED + 100),
        class_labels=[i % 10 for i in range(100)],
        num_steps=2,
    )
    detector = metrics.load_detector("pixels")
    figure = metrics.evaluate(images, load_digits("train")[0], detector)["fd_pixels"]
    assert figure == pytest.approx(best["figures"]["fd_pixels"], rel=1e-4)
    assert load(found["model"]).info["recommended_guidance"] == found["guidance"]
    assert (out / "map.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert tuned(out, "--trials", "5", "--seed", "7") == 2
    assert "where seed differ" in capsys.readouterr().err


def recording(objective, numbers, stop_after):
    def wrapped(trials, trial):
        if len(numbers) == stop_after:
            raise KeyboardInterrupt
        value = objective(trials, trial)
        numbers.append(trial.number)
        return value

    return wrapped


def test_sample_takes_a_preset(tmp_path, capsys):
    preset = tmp_path / "p.json"
    nets = {"model": checkpoints.bundled_path("digits"), "guide": None}
    options = {"guidance": 1.0, "interval": None, "kind": None, "steps": 3}
    checkpoints.write_preset(preset, nets, options)
    command = ["sample", "--preset", str(preset), "--seeds", "0-1", "--quiet"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    assert settings["steps"] == 3 and settings["guide"] is None
    assert main([*command, "--steps", "2", "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["settings"]["steps"] == 2
    whole = json.loads(preset.read_text())
    for name, value in (
        ("version", 2),
        ("guidance", "x"),
        ("steps", 0),
        ("model", None),
        ("interval", [1]),
        ("preset", "other"),
    ):
        preset.write_text(json.dumps({**whole, name: value}))
        with pytest.raises(ValueError, match="read_preset: preset must be one of version 1"):
            checkpoints.read_preset(preset)
    with pytest.raises(ValueError, match="preset must be a file of JSON"):
        checkpoints.read_preset(tmp_path / "none.json")


def space(run_folder, **options):
    plain = {
        "main": str(run_folder),
        "guides": (str(run_folder), "digits-guide"),
        "data": "digits",
        "reference": None,
        "detector_file": None,
        "metric": "fd_pixels",
        "variety": None,
        "images": 80,
        "fewest": 20,
        "steps": 2,
        "seed": 0,
        "guidance": (1.0, 3.0),
        "kinds": ("linear", "apg"),
        "interval": True,
    }
    return tune_space.Trials(tune_space.Task(**{**plain, **options}))


def test_choices_of_runs_kinds_and_intervals(run_folder):
    trials = space(run_folder)
    assert trials.task.rungs == [20, 40, 80]
    fixed = {"guidance": 2.0, "main_ema": 0.07, "guide": 0, "guide_time": 0, "guide_ema": 0.2}
    fixed |= {"kind": "apg", "interval_low": 0.1, "interval_high": 2.0}
    choice = trials.choose(optuna.trial.FixedTrial(fixed))
    assert choice == {
        "guidance": 2.0,
        "main_ema": 0.07,
        "guide": 0,
        "guide_nimg": 32,
        "guide_ema": 0.2,
        "kind": "apg",
        "interval": [0.1, 2.0],
    }
    figures = dict(trials.figures(choice))
    assert list(figures) == [20, 40, 80]
    assert figures == dict(trials.figures(choice))  # the same seeds every time
    other = {**choice, "guide": 1, "guide_nimg": 115200, "interval": None}
    kinds = [dict(trials.figures({**other, "kind": kind}))[80] for kind in ("apg", "linear")]
    assert kinds[0] != kinds[1]
    start = trials.start(9.0)
    assert (
        start["guidance"] == 3.0
        and trials.choose(optuna.trial.FixedTrial({**fixed, **start}))["guide_nimg"] == 32
    )


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_worse_half_ends_early(direction):
    """And counts as what it would have come to, as much further as the others went."""
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction)
    for start in (1.0, 2.0, 3.0, 4.0):
        trial = study.ask()
        trial.report(sign * start, 50)
        if start < 3:
            trial.report(sign * start - 0.5, 100)
        study.tell(trial, sign * start)
    trial = study.ask()
    assert tune._is_worse(trial, sign * 2.6, 50) and not tune._is_worse(trial, sign * 2.4, 50)
    assert not tune._is_worse(trial, sign * 9.0, 100)  # too few to compare with yet
    task = types.SimpleNamespace(images=100)
    assert tune._rest(study, task, 50) == -0.5
    assert tune._rest(study, task, 100) is None


def test_no_trial_ends_early_before_one_had_all_images(monkeypatch):
    """As where several processes begin at once: what the others would come to is unknown."""
    study = optuna.create_study(direction="minimize")
    for value in (1.0, 2.0, 3.0, 4.0):
        study.ask().report(value, 50)
    choice = {"guidance": 2.0, "main_ema": 0.1, "guide": 0, "guide_nimg": 1, "guide_ema": 0.1}
    choice |= {"kind": "linear", "interval": None}
    trials = types.SimpleNamespace(
        task=types.SimpleNamespace(metric="fd", variety=None, images=100),
        choose=lambda trial: choice,
        figures=lambda choice: iter([(50, {"fd": 9.0}), (100, {"fd": 8.0})]),
    )
    assert tune._objective(trials, study.ask()) == 8.0
    trial = study.ask()
    for count, value in ((50, 3.0), (100, 2.5)):
        trial.report(value, count)
    assert tune._objective(trials, study.ask()) < 9.0  # ended early, as the first that had all say


def test_every_guide_has_the_same_choices(run_folder):
    """So that the optimiser sees one space: moments by their place in the training, EMA lengths."""
    trials = space(run_folder, kinds=("linear",), interval=False)
    fixed = {"guidance": 2.0, "main_ema": 0.07, "guide_time": 1, "guide_ema": 0.2}
    study = optuna.create_study(direction="minimize")
    found = []
    for guide in (0, 1):
        study.enqueue_trial({**fixed, "guide": guide})
        trial = study.ask()
        found.append(trials.choose(trial))
        study.tell(trial, 0.0)
    assert [each["guide_nimg"] for each in found] == [64, 115200]
    assert [each["guide_ema"] for each in found] == [0.2, 0.1]  # a file has its own
    first, second = study.get_trials()
    assert first.distributions == second.distributions


def test_front_of_quality_and_variety(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "DIAGNOSED", 16)

    def row(fd, recall):
        return {"figures": {"fd": fd, "recall": recall}}

    rows = [row(1, 0.5), row(2, 0.7), row(3, 0.6), row(2, 0.8), row(1, 0.4)]
    assert tune_report.front(rows, "fd", "recall") == [row(1, 0.5), row(2, 0.8)]
    out = tmp_path / "front"
    assert tuned(out, "--trials", "3", "--variety", "recall_pixels") == 0
    report = json.loads((out / "tune.json").read_text())
    assert report["front"] and all(row["images"] == 100 for row in report["trials"])
    assert set(report["best"]["figures"]) == {"fd_pixels", "precision_pixels", "recall_pixels"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "fdd"], "metrics must be named as fid"),
        (["--metric", "near_pixels"], "not be of near"),
        (["--variety", "recall"], "taken on the same features"),
        (["--kinds", "cfg"], "--kinds must be of linear, apg"),
        (["--guidance", "2", "1"], "--guidance must be LO < HI, got 2 1"),
        (["--fewest", "10"], "--fewest must be >= 50"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert tuned(tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err


def test_figures_know_their_metric():
    names = ("fid", "precision", "recall_pixels", "coverage_dinov2", "kid", "cmmd")
    found = [tune_space.metric_of(name).name for name in names]
    assert found == ["fid", "pr", "pr_pixels", "dc_dinov2", "kid", "cmmd"]
    assert tune_space.larger_is_better("recall_pixels")
    assert not tune_space.larger_is_better("fd_pixels")


def test_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert tuned(tmp_path / "out") == 2
    assert "pip install 'autoguide_fast[tune]'" in capsys.readouterr().err
