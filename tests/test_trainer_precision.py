"""`precision="auto"`: what wins a race, who decides, and that a run keeps to it."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from test_trainer_commands import TINY, run

from autoguide_fast import cpu
from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.trainer import durable, loop, pair, precision
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.processes import Processes
from autoguide_fast.trainer.trainer import Trainer

SMALL = {"channels": 4, "channels_per_head": 4, "batch": 16, "duration": 64, "snapshots": 2}
OPTIONS = TrainOptions(**SMALL, precision="auto")
CPU = torch.device("cpu")
FAST, SLOW = 0.1, 0.2


def taking(**seconds):
    """In the place of `precision.evaluations`: each type's passes take so long, by images."""

    def evaluations(options, shape, device):
        def runner(each):
            return each if callable(each) else lambda images: each

        return {name: runner(seconds[name]) for name in precision.RACED}

    return evaluations


@pytest.fixture
def times(monkeypatch):
    """Sets what a pass takes in each type."""
    monkeypatch.setenv("AGF_AUTOTUNE", "1")

    def set_times(**seconds):
        monkeypatch.setattr(precision, "evaluations", taking(**seconds))

    return set_times


@pytest.fixture
def no_race(monkeypatch):
    """Fails where a race begins."""
    monkeypatch.setenv("AGF_AUTOTUNE", "1")
    monkeypatch.setattr(precision, "race", lambda *_: pytest.fail("raced"))


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"),
    [
        (SLOW, FAST, "bf16"),
        (FAST, SLOW, "fp32"),
        (0.1, 0.094, "bf16"),
        (0.1, 0.097, "fp32"),  # which may be noise, and rounds more
        (0.0, 0.0, "fp32"),  # a clock that hardly ticks
    ],
)
def test_the_faster_type_wins(times, fp32, bf16, expected):
    times(fp32=fp32, bf16=bf16)
    trainer = Trainer(OPTIONS)
    assert trainer.options == dataclasses.replace(OPTIONS, precision=expected)
    assert trainer.net.run_dtype == (torch.bfloat16 if expected == "bf16" else None)
    assert trainer.precision_note.startswith(f"precision is {expected}: measured, bf16 ")
    trainer.close()


def test_a_type_that_is_named_is_not_raced(no_race):
    trainer = Trainer(dataclasses.replace(OPTIONS, precision="bf16"))
    assert trainer.options.precision == "bf16" and trainer.precision_note is None


def test_a_race_lasts_about_as_long_as_it_may():
    spent = []

    def spending(each):
        def run(images):
            spent.append((images, each(images)))
            return spent[-1][1]

        return run

    def raced(cost, most):
        spent.clear()
        passes = {name: spending(cost) for name in precision.RACED}
        times, images = precision.race(passes, most)
        assert len(set(map(len, times.values()))) == 1 and len(times["fp32"]) >= 1
        return images, sum(seconds for _, seconds in spent)

    # Long passes: of as many images as there is time for twice; short ones: of all.
    images, seconds = raced(lambda images: 0.01 * images, 256)
    assert 8 <= images <= 32 and seconds <= 1
    images, seconds = raced(lambda images: 0.02 + 1e-4 * images, 256)
    assert images == 256 and seconds <= 1
    images, seconds = raced(lambda images: 1e-4, 256)
    assert images == 256 and len([n for n, _ in spent if n == 256]) == 2 * precision.ROUNDS
    # What costs the same for any number, up to the longest that may be tried.
    for cost in (0.01, 0.0625, 0.08, 0.0833, 0.09, 0.125):
        images, seconds = raced(lambda images, cost=cost: cost, 256)
        assert (images == 256) == (cost < 0.09) and seconds <= 1
    # One image is all there is time for, or all there is.
    assert raced(lambda images: 3.0 * images, 8) == (1, 6.0)
    assert raced(lambda images: 1e-4, 1)[0] == 1
    assert raced(lambda images: 1e-4, 3)[0] == 3


def test_the_least_of_all_rounds_counts(times):
    slow_once = {"fp32": [], "bf16": []}

    def run(name, seconds):
        def timed(images):
            slow_once[name].append(images)
            return 10 * seconds if len(slow_once[name]) == 5 and name == "bf16" else seconds

        return timed

    times(fp32=run("fp32", 0.02), bf16=run("bf16", 0.01))
    found, why = precision.decide(OPTIONS, (8, 1, 10), 1, CPU)
    assert found == "bf16" and "bf16 10 ms, fp32 20 ms for a pass of 16 images" in why


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_measured_run_is_the_run_of_that_type(monkeypatch, dtype):
    """The race disturbs nothing: neither weights nor what is drawn."""
    monkeypatch.setenv("AGF_AUTOTUNE", "1")
    name = "fp32" if dtype is None else "bf16"
    monkeypatch.setattr(precision.choice, "fastest", lambda *_: name)
    dropping = dataclasses.replace(OPTIONS, dropout=0.2)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.inference_mode():
        trainers = [Trainer(dataclasses.replace(dropping, precision=p)) for p in ("auto", name)]
    assert torch.equal(torch.get_rng_state(), state)
    assert "measured" in trainers[0].precision_note
    losses = [[trainer.step() for _ in range(2)] for trainer in trainers]
    assert losses[0] == losses[1]
    for trainer in trainers:
        trainer.close()


@pytest.mark.parametrize("options", [{"labelled": False}, {"guidance_range": (1.0, 2.0)}])
def test_all_nets_can_be_raced(options):
    o = TrainOptions(**SMALL)
    for name, value in options.items():  # a student has a teacher, whose nets the race needs not
        object.__setattr__(o, name, value)
    passes = precision.evaluations(o, (8, 1, 10 if o.labelled else 0), CPU)
    assert all(run(images) > 0 for run in passes.values() for images in (1, 3))


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_the_static_rule(monkeypatch, no_race, native, expected):
    monkeypatch.setenv("AGF_AUTOTUNE", "0")
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: native)
    found, why = precision.decide(OPTIONS, (8, 1, 10), 1, CPU)
    assert (found, why) == (expected, "static rule, as AGF_AUTOTUNE=0 asks for")


def test_shards_are_not_raced(no_race):
    found, why = precision.decide(dataclasses.replace(OPTIONS, shard=True), (8, 1, 10), 2, CPU)
    assert found == precision.static_precision(CPU) and "shards" in why


def stored(out):
    """The type in each place where a run keeps it."""
    state = durable.load_checkpoint(out / loop.CHECKPOINTS, pytest.fail)
    in_file = json.loads((out / "options.json").read_text())
    assert in_file["precision"] == state["options"]["precision"]
    return state["options"]["precision"]


@pytest.mark.parametrize(("first", "other"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_resumed_run_keeps_its_type(times, tmp_path, capsys, first, other):
    times(**{first: FAST, other: SLOW})
    whole = loop.train(OPTIONS, tmp_path / "whole", progress=False)
    loop.warn.cache_clear()
    out = tmp_path / "run"
    loop.train(OPTIONS, out, progress=False, stop=lambda nimg: nimg == 16)
    assert stored(out) == first
    assert f"train: precision is {first}: measured" in capsys.readouterr().err
    times(**{first: SLOW, other: FAST})  # another machine
    last = loop.train(OPTIONS, out, resume=True, progress=False)
    assert stored(out) == last.options.precision == first
    assert all(map(torch.equal, whole.net.state_dict().values(), last.net.state_dict().values()))
    assert {row["precision"] for row in read_log(out)} == {first}
    with pytest.raises(ValueError, match=f"precision was {first}, is {other}"):
        loop.train(dataclasses.replace(OPTIONS, precision=other), out, resume=True, progress=False)


def test_a_run_goes_on_in_its_type_whatever_that_is(no_race, tmp_path):
    named = dataclasses.replace(OPTIONS, precision="fp16")
    loop.train(named, tmp_path / "run", progress=False, stop=lambda nimg: True)
    last = loop.train(OPTIONS, tmp_path / "run", resume=True, progress=False)
    assert last.options.precision == "fp16" and last.nimg == 64


def test_a_guide_has_the_main_nets_type(times, tmp_path):
    times(fp32=SLOW, bf16=FAST)
    guide = pair.parse_guide("2:T/2", OPTIONS, changes={"channels_per_head": 2})

    def train(out, which=guide, **options):
        return pair.train_pair(OPTIONS, which, tmp_path / out, progress=False, **options)

    def types(out):
        return [stored(tmp_path / out / name) for name in ("", pair.GUIDE)]

    train("run", stop=lambda nimg: True)  # in the guide
    times(fp32=FAST, bf16=SLOW)
    assert pair.stored_job(tmp_path / "run", pytest.fail)["main"]["precision"] == "bf16"
    (tmp_path / "run" / pair.JOB).unlink()  # what it said is in the checkpoint
    assert train("run", resume=True).finished
    assert types("run") == ["bf16", "bf16"]
    own = pair.parse_guide("2:T/2", OPTIONS, changes={"channels_per_head": 2, "precision": "bf16"})
    train("own", own)
    assert types("own") == ["fp32", "bf16"]
    raced = pair.parse_guide(
        "2:T/2",
        dataclasses.replace(OPTIONS, precision="bf16"),
        changes={"channels_per_head": 2, "precision": "auto"},
    )
    pair.train_pair(
        dataclasses.replace(OPTIONS, precision="bf16"), raced, tmp_path / "raced", progress=False
    )
    assert types("raced") == ["bf16", "fp32"]


def test_the_command_says_what_it_takes_and_keeps_it(times, tmp_path, capsys):
    times(fp32=SLOW, bf16=FAST)
    out = tmp_path / "run"
    command = ["train", *TINY, "--duration", 64, "--snapshots", 2, "--precision", "auto"]
    code, shown, err = run(capsys, *command, "--guide", "2:T/2", "--dry-run")
    assert code == 0, err
    assert "precision would be bf16: measured, bf16 100 ms, fp32 200 ms" in shown
    loop.warn.cache_clear()
    command += ["--out", out, "--grid", 0]
    code, _, err = run(capsys, *command, "--guide", "2:T/2", "--guide-set", "channels_per_head=2")
    assert code == 0, err
    assert err.count("train: precision is bf16: measured") == 1
    times(fp32=FAST, bf16=SLOW)
    again = ["train", "--out", out, "--grid", 0, "--quiet", "--resume", "--precision", "auto"]
    code, shown, err = run(capsys, *again, "--dry-run")
    assert code == 0 and "precision would" not in shown
    loop.warn.cache_clear()
    code, _, err = run(capsys, *again)
    assert code == 0 and "precision is" not in err, err
    assert [stored(path) for path in (out, out / pair.GUIDE)] == ["bf16", "bf16"]


def train_by_rank(*arguments):
    """Train in processes of which only the first finds bfloat16 faster."""
    from fork_server import command

    first, settled = os.environ["RANK"] == "0", pair.settled
    precision.evaluations = taking(fp32=SLOW if first else FAST, bf16=FAST if first else SLOW)

    def telling(*asked):
        found = settled(*asked)
        os.write(2, f"took {found[0].precision}\n".encode())
        return found

    pair.settled = telling
    return command(*arguments)


def test_the_first_process_decides_for_all(fork_server, tmp_path):
    command = ["train", *TINY, "--duration", 64, "--snapshots", 2, "--grid", 0, "--quiet"]
    run = fork_server.run(
        "test_trainer_precision:train_by_rank",
        *map(str, [*command, "--precision", "auto", "--out", tmp_path / "run"]),
        processes=2,
        AGF_AUTOTUNE="1",
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("precision is bf16") == 1
    assert run.stderr.count("took bf16") == 2
    assert stored(tmp_path / "run") == "bf16"


def test_processes_count_the_images_of_their_share(times, monkeypatch):
    times(fp32=1e-4, bf16=1e-4)
    _, why = precision.decide(OPTIONS, (8, 1, 10), 4, CPU)
    assert why.endswith("for a pass of 4 images")
    _, why = precision.decide(dataclasses.replace(OPTIONS, microbatch=2), (8, 1, 10), 4, CPU)
    assert why.endswith("for a pass of 2 images")
    assert precision.settled(OPTIONS, (8, 1, 10), Processes(), CPU)[0].precision == "fp32"
