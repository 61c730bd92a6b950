"""`train --guide auto`: candidates within a budget, the one that is kept, and interruptions."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from test_trainer_commands import run

from autoguide_fast import diagnose, load, metrics, sample
from autoguide_fast.checkpoints import Snapshots
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import (
    auto_guide,
    chosen_nets,
    estimate,
    guide_choice,
    guide_finals,
    guide_report,
    guide_scores,
    pair,
    precision,
    presets,
)
from autoguide_fast.trainer.options import TrainOptions

MAIN = TrainOptions(
    channels=8, channels_per_head=4, batch=16, duration=64, snapshots=4, rampup=0, lr=0.1
)
BUDGET = 0.9
TINY = ["--channels", 8, "--channels-per-head", 4, "--batch", 16, "--duration", 64]
TINY += ["--rampup", 0, "--lr", 0.1]
TINY += ["--snapshots", 4, "--guide", "auto", "--guide-budget", BUDGET, "--grid", 0, "--quiet"]


def look_at_few(patch):
    """Few images of everything, in parts that are fewer still, at few levels."""
    patch.setattr(auto_guide, "_LENGTHS", 2)
    patch.setattr(guide_scores, "LEVELS", (0.1, 1.0))
    for name, value in (("IMAGES", 24), ("_WEIGHED", 24), ("SIGMAS", (0.1, 0.4, 1.6))):
        patch.setattr(guide_choice, name, value)
    for name, value in (("FEWEST", 32), ("MOST", 32), ("REAL", 64), ("_PART", 16), ("STEPS", 3)):
        patch.setattr(guide_finals, name, value)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    look_at_few(monkeypatch)


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


def pair_of(folder, chosen):
    """The files of the main net and of the guide that was chosen."""
    guide = f"{chosen['images']:09d}-{chosen['ema']:.3f}.safetensors"
    model = folder / "snapshots" / "000000064-0.050.safetensors"
    return model, folder / "guide" / "snapshots" / guide


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job that nothing interrupted."""
    out = tmp_path_factory.mktemp("auto") / "run"
    with pytest.MonkeyPatch.context() as patch:
        look_at_few(patch)
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
    monkeypatch.setattr(guide_choice, "choosing", lambda *arguments: iter([None, {}]))
    main = dataclasses.replace(MAIN, precision="auto")
    guide = auto_guide.auto_guide(main, budget=BUDGET)
    assert pair.train_pair(main, guide, tmp_path, progress=False).finished
    options = [json.loads(path.read_text()) for path in tmp_path.rglob("options.json")]
    assert len(asked) == 1 and {each["precision"] for each in options} == {"bf16"}


def test_what_is_kept_is_the_best_of_the_finalists(whole):
    table = json.loads((whole / "guide.json").read_text())
    rows, finals = table["candidates"], table["finalists"]
    assert {row["net"] for row in rows} == {"past", "4 channels", "3 channels"}
    assert {row["cost"] for row in rows if row["net"] == "past"} == {0}
    assert len({row["gain"] for row in rows}) > 4
    for net in ("past", "4 channels", "3 channels"):
        gains = {i: row["gain"] for i, row in enumerate(rows) if row["net"] == net}
        mine = [each["candidate"] for each in finals if each["candidate"] in gains]
        assert mine[0] == max(gains, key=gains.get) and len(mine) == 1 + (net == "past")
        assert len({rows[i]["images"] for i in mine}) == len(mine)  # of the past, other times
    distances = {each["candidate"]: each["distance"] for each in finals}
    assert len(set(distances.values())) == 4
    best = rows[table["chosen"]]
    if best["net"] == "past":
        own = [distances[i] for i in distances if rows[i]["net"] == "past"]
        assert distances[table["chosen"]] == min(own)
    assert not (whole / "finalists").exists()
    # The guide is the last moment and the last average of a run like any other.
    run = Snapshots(whole / "guide")
    assert run.times[-1] == best["images"] and run.options["ema"][-1] == best["ema"]
    nets = chosen_nets.of_run(whole, None, None, "judge")
    guide, main = nets["guide"].load(), nets["main"].load()
    assert guide.config["model_channels"] == best["channels"]
    assert guide.info == {"nimg": best["images"], "sigma_rel": best["ema"]}
    images = sample(main, guide, 2.0, seeds=[0], num_steps=2)
    assert images.shape == (1, 1, 8, 8)


def test_a_finalist_is_measured_as_auto_samples_it(whole):
    """With the weights that are kept, by the library's distance, and the same without a guide."""
    table = json.loads((whole / "guide.json").read_text())
    chosen = table["candidates"][table["chosen"]]
    final = next(each for each in table["finalists"] if each["candidate"] == table["chosen"])
    model, guide = pair_of(whole, chosen)
    images, labels = load_digits("train")
    order = np.random.default_rng(0).permutation(len(images))[:64]
    real = metrics.pixel_features(images[order])
    count = table["distance"]["images"]  # 32, or twice as many
    options = {"sampler": "dpmpp_2m", "num_steps": 3}
    options["seeds"] = range(70_000_000, 70_000_000 + count)
    options["class_labels"] = np.asarray(labels)[order[:count]]
    distances = [
        metrics.kernel_distance(real, metrics.pixel_features(images), subsets=None).mean
        for images in (sample(model, guide, "auto", **options), sample(model, **options))
    ]
    assert table["distance"]["name"] == "kernel distance in pixels"  # few of 64 pixels each
    found = [final["distance"], table["unguided"]]
    np.testing.assert_allclose(found, distances, rtol=1e-6)
    assert final["nearer"] == pytest.approx(found[1] - found[0], rel=1e-9)


def test_the_score_is_that_of_a_diagnosis_of_the_candidate_alone(whole):
    table = json.loads((whole / "guide.json").read_text())
    best = table["candidates"][table["chosen"]]
    model, guide = pair_of(whole, best)
    name, (images, labels) = guide_scores.scored_on(MAIN, 24)
    assert name == table["score"]["of"] == "held-out"
    alone = diagnose(load(model), load(guide), images, labels, guide_scores.LEVELS)
    signed = np.sign(alone.weights()[:, 0] - 1) * alone.gain()
    assert signed.mean() == pytest.approx(best["gain"], rel=1e-9)
    # They are none of the images it was trained on, which a plain look tells.
    train, _ = load_digits("train")
    known = {bytes(image) for image in np.asarray(train)}
    back = load(model).encoder.decode(images)
    assert not any(bytes(image) in known for image in back.numpy())
    # The weights beside the main net are those of training images.
    images, labels = guide_scores.training_images(MAIN, 24)
    assert all(bytes(image) in known for image in load(model).encoder.decode(images).numpy())
    alone = diagnose(load(model), load(guide), images, labels, (0.1, 0.4, 1.6))
    beside = json.loads((whole / "snapshots" / "000000064-0.050.guidance.json").read_text())
    np.testing.assert_allclose(beside["auto"]["weights"], 2 * alone.weights() - 1, rtol=1e-6)


def scores_of(table):
    """The scores that a table has, in the place of `guide_scores.scores`."""
    gains = {(row["net"], row["images"], row["ema"]): row["gain"] for row in table["candidates"]}
    return lambda model, candidates, *others: [gains[c.net, c.nimg, c.ema] for c in candidates]


@pytest.fixture
def chosen_again(whole, tmp_path, monkeypatch):
    """A copy of the job, and a function that chooses in it anew by distances that are given.

    Of the finalists in the order of the table, the first without a guide; None raises what samples
    that are not finite do. The scores are those of the first time.
    """
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    first = json.loads((out / "guide.json").read_text())
    guide = auto_guide.auto_guide(MAIN, budget=BUDGET)

    def choose(*distances):
        near = iter(distances)

        def measured(self, parts):
            distance = next(near)
            if distance is None:
                raise FloatingPointError("sample: not finite")
            noise = 0.01 * (-1) ** round(100 * distance)  # of a cent's difference, noise of two
            return guide_finals.Measured(distance, (distance + noise, distance - noise))

        monkeypatch.setattr(guide_scores, "scores", scores_of(first))
        monkeypatch.setattr(guide_finals.Comparison, "sampled", lambda *arguments: iter(()))
        monkeypatch.setattr(guide_finals.Comparison, "measured", measured)
        (out / "guide.json").unlink()
        *none, table = guide_choice.choosing(out, MAIN, guide, first["job"], torch.device("cpu"))
        assert none == [None] * len(none) and next(near, "") == ""
        return table

    return out, first, choose


def test_other_distances_choose_another_guide(chosen_again):
    out, first, choose = chosen_again
    nets = [first["candidates"][each["candidate"]]["net"] for each in first["finalists"]]
    for wanted in range(len(nets)):
        table = choose(9.0, *(1.0 if i == wanted else 5.0 for i in range(len(nets))))
        assert table["chosen"] == first["finalists"][wanted]["candidate"]
        chosen = table["candidates"][table["chosen"]]
        net = chosen_nets.of_run(out, None, None, "judge")["guide"].load()
        assert net.config["model_channels"] == chosen["channels"]
        times = {path.name[:9] for path in (out / "guide" / "snapshots").glob("*.safetensors")}
        assert max(times) == f"{chosen['images']:09d}"  # none is left of the guide before
        kept = [line for line in guide_report.report(table).splitlines() if "  kept" in line]
        assert len(kept) == 1 and f"{nets[wanted]} " in kept[0] and "8 ± " in kept[0]
        assert sample(*pair_of(out, chosen), "auto", seeds=[0], num_steps=2).shape == (1, 1, 8, 8)


def test_where_noise_decides_twice_as_many_are_sampled(chosen_again):
    _, first, choose = chosen_again
    table = choose(9.0, 8.99, 9.5, 9.5, 9.5, 9.0, 8.0, 9.5, 9.5, 9.5)
    assert table["distance"]["images"] == 2 * first["distance"]["images"]
    assert "nearer to the data than without a guide by 1 ± " in table["why"][-1]
    table = choose(9.0, 8.99, 9.5, 9.5, 9.5, 9.0, 8.99, 9.5, 9.5, 9.5)
    assert "told from noise" in table["why"][-1]
    table = choose(9.0, 8.0, 9.5, 7.99, 9.5, 9.0, 8.0, 9.5, 7.99, 9.5)  # a trained one
    assert table["chosen"] == first["finalists"][0]["candidate"]
    assert "no trained guide could be told" in table["why"][0]


def test_samples_that_are_not_finite_are_far_from_the_data(chosen_again):
    _, first, choose = chosen_again
    table = choose(9.0, None, None, None, 8.0)
    assert table["chosen"] == first["finalists"][3]["candidate"]
    assert [each["distance"] for each in table["finalists"]] == [None, None, None, 8]
    assert guide_report.report(table).count("not finite") == 3
    table = choose(9.0, None, 12.0, 10.0, None)
    assert table["chosen"] == first["finalists"][2]["candidate"]
    assert "it gains nothing" in guide_report.report(table)
    with pytest.raises(FloatingPointError):  # the main net itself is at fault
        choose(None)


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
    table = json.loads((whole / "guide.json").read_text())

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return scores_of(table)(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(guide_scores, "scores", signalled)
        result = train(True)  # all are trained
        assert not result.finished and result.choice is None

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    def at_call(number, function):
        calls = iter(range(number))
        return lambda *a, **k: function(*a, **k) if next(calls, None) is not None else killed()

    def choose():
        device = torch.device("cpu")
        return [*guide_choice.choosing(tmp_path / "run", MAIN, guide, table["job"], device)]

    comparison = guide_finals.Comparison
    for place, step, calls in (  # while it scores, weighs, samples, and when it has kept the guide
        (guide_scores, "scores", 1),
        (guide_scores, "diagnosed", 0),
        (guide_finals, "sample", 3),
        (comparison, "measured", 2),
        (guide_choice, "place_beside", 0),
    ):
        with monkeypatch.context() as patch:
            if step != "scores":
                patch.setattr(guide_scores, "scores", scores_of(table))
            patch.setattr(place, step, at_call(calls, getattr(place, step)))
            with pytest.raises(KeyboardInterrupt):
                choose()
        assert not (tmp_path / "run" / "guide.json").exists()
    # What was sampled is not sampled again.
    monkeypatch.setattr(guide_finals, "sample", killed)
    assert train(True).finished
    assert files_of(tmp_path / "run") == files_of(whole)
    monkeypatch.setattr(guide_scores, "scores", killed)  # there is nothing left to do
    assert train(True).choice["candidates"]
    other = auto_guide.auto_guide(MAIN, budget=0.8)
    with pytest.raises(ValueError, match=r"guide_budget was 0\.9, is 0\.8"):
        pair.train_pair(MAIN, other, tmp_path / "run", resume=True, progress=False)


def test_a_guide_that_is_damaged_is_made_again(whole, tmp_path):
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
