"""`train --guide auto`: candidates within a budget, the one that scores best, and interruptions."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_trainer_commands import run

from autoguide_fast import checkpoints, diagnose, load, sample
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import (
    auto_guide,
    chosen_nets,
    estimate,
    guide_scores,
    pair,
    precision,
    presets,
)
from autoguide_fast.trainer.options import TrainOptions

MAIN = TrainOptions(channels=8, channels_per_head=4, batch=16, duration=64, snapshots=4)
BUDGET = 0.9
TINY = ["--channels", 8, "--channels-per-head", 4, "--batch", 16, "--duration", 64]
TINY += ["--snapshots", 4, "--guide", "auto", "--guide-budget", BUDGET, "--grid", 0, "--quiet"]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(auto_guide, "IMAGES", 48)
    monkeypatch.setattr(auto_guide, "_IMAGES_SAVED", 48)


def files_of(folder):
    """What a job left to be used, by name: nets, tables, weights; no logs, which have times."""
    kept = ("snapshots", "guide", "guides")
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.suffix in (".safetensors", ".json") and (
            place.parts[0] in kept or place.name == "guide.json"
        ):
            found[str(place)] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job that nothing interrupted."""
    out = tmp_path_factory.mktemp("auto") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto_guide, "IMAGES", 48)
        patch.setattr(auto_guide, "_IMAGES_SAVED", 48)
        guide = auto_guide.auto_guide(MAIN, budget=BUDGET)
        assert pair.train_pair(MAIN, guide, out, progress=False).finished
    return out


def test_the_candidates_fit_into_the_budget():
    guide = auto_guide.auto_guide(TrainOptions(), budget=0.05)
    assert list(guide.runs) == ["8", "5"]  # half and a third of 16
    whole = estimate.estimate(TrainOptions(), 8, 1, 10).training_macs
    spent = [estimate.estimate(o, 8, 1, 10).training_macs / whole for o in guide.runs.values()]
    assert guide.cost == pytest.approx(sum(spent)) and 0.045 < guide.cost <= 0.05
    assert max(spent) <= 0.025
    # A net is never trained for longer than the main net, nor is its past that of the second half.
    much = auto_guide.auto_guide(TrainOptions(), budget=1)
    assert {o.duration for o in much.runs.values()} == {TrainOptions().duration}
    assert max(guide.past) == TrainOptions().duration // 2
    assert all(o.seed == 1 and o.batch == 256 for o in guide.runs.values())


def test_a_width_is_one_that_divides_into_heads_with_the_rates_of_its_preset():
    main = TrainOptions(**presets.preset("edm2-img512-s"))
    guide = auto_guide.auto_guide(main, "edm2-img512-s")
    assert list(guide.runs) == ["128", "64"]
    assert [o.lr for o in guide.runs.values()] == [0.012, 0.017]
    changed = auto_guide.auto_guide(main, "edm2-img512-s", {"lr": 0.5, "dropout": 0.2})
    assert {(o.lr, o.dropout) for o in changed.runs.values()} == {(0.5, 0.2)}


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"budget": 0.0}, r"guide_budget must be a share .* got 0.0; 0.05 is usual"),
        ({}, {"budget": float("nan")}, r"guide_budget must be a share .* got nan"),
        ({}, {"budget": 1e-4}, "guide_budget must be enough for a step of each candidate"),
        ({}, {"changes": {"channels": 8}}, "guide_set must leave channels out"),
        ({"snapshots": 1}, {}, "snapshots must be >= 2 where the guide is auto, got 1"),
    ],
)
def test_what_cannot_be_chosen(changes, options, message):
    with pytest.raises(ValueError, match=message):
        auto_guide.auto_guide(dataclasses.replace(MAIN, **changes), **{"budget": 0.9, **options})


def test_candidates_train_in_the_type_that_was_found_for_the_main_net(tmp_path, monkeypatch):
    """Asked once; a candidate in another type would have errors of another kind."""
    asked = []
    found = iter(["bf16", "fp32", "fp32"])

    def decide(*given):
        asked.append(given)
        return next(found), "as told"

    monkeypatch.setattr(precision, "decide", decide)
    main = dataclasses.replace(MAIN, precision="auto")
    guide = auto_guide.auto_guide(main, budget=BUDGET)
    assert pair.train_pair(main, guide, tmp_path, progress=False).finished
    options = [json.loads(path.read_text()) for path in tmp_path.rglob("options.json")]
    assert len(asked) == 1 and {each["precision"] for each in options} == {"bf16"}


def test_the_best_score_is_kept(whole):
    table = json.loads((whole / "guide.json").read_text())
    rows = table["candidates"]
    gains = [row["gain"]["held out"] for row in rows]
    best = rows[table["chosen"]]
    assert best["gain"]["held out"] == max(gains) and len(set(gains)) > 4
    assert {row["net"] for row in rows} == {"past", "4 channels", "3 channels"}
    assert {row["cost"] for row in rows if row["net"] == "past"} == {0}
    # The guide is the last moment and the last average of a run like any other.
    run = Snapshots(whole / "guide")
    assert run.times[-1] == best["images"] and run.options["ema"][-1] == best["ema"]
    nets = chosen_nets.of_run(whole, None, None, "judge")
    guide, main = nets["guide"].load(), nets["main"].load()
    assert guide.config["model_channels"] == best["channels"]
    assert guide.info == {"nimg": best["images"], "sigma_rel": best["ema"]}
    images = sample(main, guide, 2.0, seeds=[0], num_steps=2)
    assert images.shape == (1, 1, 8, 8)


def test_the_score_is_that_of_a_diagnosis_of_the_candidate_alone(whole):
    table = json.loads((whole / "guide.json").read_text())
    best = table["candidates"][table["chosen"]]
    model = whole / "snapshots" / "000000064-0.050.safetensors"
    guide = whole / "guide" / "snapshots" / f"{best['images']:09d}-{best['ema']:.3f}.safetensors"
    images, labels = guide_scores.samples_of(MAIN, 48)["training"]
    alone = diagnose(load(model), load(guide), images, labels, guide_scores.LEVELS)
    signed = np.sign(alone.weights()[:, 0] - 1) * alone.gain()
    assert signed.mean() == pytest.approx(best["gain"]["training"], rel=1e-9)
    # They are of the images it was trained on, which a plain look tells.
    train, _ = load_digits("train")
    known = {bytes(image) for image in np.asarray(train)}
    back = load(model).encoder.decode(images)
    assert all(bytes(image) in known for image in back.numpy())
    # And the weights for these two lie where `--guidance auto` looks.
    first = sample(model, guide, "auto", seeds=[0, 1], num_steps=3)
    assert not torch.equal(first, sample(model, seeds=[0, 1], num_steps=3))


def test_another_score_chooses_another_guide(whole, tmp_path, monkeypatch):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    job = json.loads((out / "guide.json").read_text())["job"]
    guide = auto_guide.auto_guide(MAIN, budget=BUDGET)
    for wanted in ("past", "3 channels", "4 channels"):
        (out / "guide.json").unlink()

        def scores(model, candidates, samples, seed, device, wanted=wanted):
            return [{n: float(c.net == wanted) for n in samples} for c in candidates]

        monkeypatch.setattr(guide_scores, "scores", scores)
        table = auto_guide.choose(out, MAIN, guide, job, torch.device("cpu"))
        chosen = table["candidates"][table["chosen"]]
        assert chosen["net"] == wanted
        net = chosen_nets.of_run(out, None, None, "judge")["guide"].load()
        assert net.config["model_channels"] == chosen["channels"]
        times = {path.name[:9] for path in (out / "guide" / "snapshots").glob("*.safetensors")}
        assert max(times) == f"{chosen['images']:09d}"  # none is left of the guide before
        assert "  kept" in auto_guide.report(table)


def test_it_goes_on_from_wherever_it_was_interrupted(whole, tmp_path, monkeypatch):
    guide = auto_guide.auto_guide(MAIN, budget=BUDGET)

    def train(resume, **options):
        return pair.train_pair(
            MAIN, guide, tmp_path / "run", resume=resume, progress=False, **options
        )

    assert not train(False, stop=lambda nimg: nimg == 32).finished  # in the main net
    assert not (tmp_path / "run" / "guides").exists()
    with pytest.raises(ValueError, match=r"must have chosen its guide, got .* --resume"):
        chosen_nets.of_run(tmp_path / "run", None, None, "judge")
    assert not train(True, stop=lambda nimg: nimg == 16).finished  # in the first candidate
    assert (tmp_path / "run" / "guides" / "4").is_dir()
    first = guide.runs["4"].duration
    assert not train(True, stop=lambda nimg: nimg in (first, 16)).finished  # in the second
    assert (tmp_path / "run" / "guides" / "3").is_dir()

    def killed(*arguments):
        raise KeyboardInterrupt

    for step in ("scores", "diagnosed"):  # while it scores; when it has kept the guide
        with monkeypatch.context() as patch:
            patch.setattr(guide_scores, step, killed)
            with pytest.raises(KeyboardInterrupt):
                train(True)
        assert not (tmp_path / "run" / "guide.json").exists()
    assert train(True).finished
    assert files_of(tmp_path / "run") == files_of(whole)
    monkeypatch.setattr(guide_scores, "scores", killed)  # there is nothing left to do
    assert train(True).choice["candidates"]
    other = auto_guide.auto_guide(MAIN, budget=0.8)
    with pytest.raises(ValueError, match=r"guide_budget was 0\.9, is 0\.8"):
        pair.train_pair(MAIN, other, tmp_path / "run", resume=True, progress=False)


def test_a_guide_that_is_damaged_is_made_again(whole, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    guide = auto_guide.auto_guide(MAIN, budget=BUDGET)
    for path in (out / "guide" / "snapshots").glob("*.safetensors"):
        path.unlink()
    (out / "guide.json").write_bytes((out / "guide.json").read_bytes()[:-9])
    assert pair.train_pair(MAIN, guide, out, resume=True, progress=False).finished
    assert files_of(out) == files_of(whole)


def test_by_the_command_line(capsys, whole, tmp_path):
    out = tmp_path / "run"
    code, text, err = run(capsys, "train", "--out", out, *TINY, "--dry-run")
    assert code == 0 and not out.exists(), err
    assert "candidate of 4 channels:" in text and "16, 32 images is a candidate" in text
    assert "of a budget of 90.0 %" in text
    code, text, err = run(capsys, "train", "--out", out, *TINY)
    assert code == 0, err
    assert "kept" in text and "the paper's guides cost 3.6 %" in text
    made, expected = files_of(out), files_of(whole)
    assert {n for n in made if n.endswith("tensors")} == {
        n for n in expected if n.endswith("tensors")
    }
    assert all(made[name] == expected[name] for name in made if name.endswith("tensors"))
    command = next(line for line in text.splitlines() if line.startswith("sample with: "))
    words = command.removeprefix("sample with: autoguide-fast ").split()
    words[-1], words[words.index("0-63")] = str(tmp_path / "samples"), "0-3"
    assert run(capsys, *words, "--steps", "4")[0] == 0
    # What is not given again is as it was.
    code, _, err = run(capsys, "train", "--out", out, "--resume", "--quiet", "--grid", 0)
    assert code == 0, err
    judge = ["judge", "--pair", out, "--guidance", "auto", "--images", 100, "--repeats", 1]
    code, text, err = run(capsys, *judge, "--steps", 2)
    assert code == 0 and "000000064-0.050.guidance.json" in text, err
    code, _, err = run(capsys, "train", "--out", out, "--guide", "T/2", "--guide-budget", 0.1)
    assert code == 2 and "guide_budget must come with --guide auto, got it with guide T/2" in err


def test_a_net_that_was_not_trained_is_no_guide(tmp_path):
    """By what it removes alone it would be the best: backwards, at the lowest levels."""
    trained = TrainOptions(duration=256, batch=256, snapshots=1)
    pair.train(trained, tmp_path, progress=False)
    raw = tmp_path / "snapshots" / "000000256-0.050.safetensors"
    model = load("digits")
    samples = guide_scores.samples_of(trained, 48)
    files = {"raw": raw, "guide": checkpoints.find("digits-guide")}
    candidates = [guide_scores.Candidate(n, f, 16, 1, 0.1, 0.0) for n, f in files.items()]
    device = torch.device("cpu")
    signed = guide_scores.scores(model, candidates, samples, 0, device)
    plain = [
        guide_scores.diagnosed(model, {"g": load(f)}, samples, guide_scores.LEVELS, 0, device)
        for f in files.values()
    ]
    assert plain[0].predicted_gain("held out") > plain[1].predicted_gain("held out")
    assert signed[0]["held out"] < signed[1]["held out"]


def test_gains_apart_are_those_of_each_guide_alone():
    model, guides = load("digits"), {n: load(n) for n in ("digits-guide", "digits-uncond")}
    images, labels = load_digits("heldout")
    images, labels = images[:64], labels[:64]
    both = diagnose(model, guides, images, labels, (0.2, 1.0))
    for i, (name, guide) in enumerate(guides.items()):
        alone = diagnose(model, {name: guide}, images, labels, (0.2, 1.0))
        signed = np.sign(alone.weights()[:, 0] - 1) * alone.gain()
        np.testing.assert_allclose(both.signed_gain_of_each()[:, i], signed, rtol=1e-9)
    itself = diagnose(model, model, images, labels, (0.2, 1.0))
    assert (itself.signed_gain_of_each() == 0).all()
