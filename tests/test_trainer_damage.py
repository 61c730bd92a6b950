"""Files of a run that are damaged or gone are named; what can be known without them is."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from test_trainer_recovery import TINY, same_state, state_in

from autoguide_fast import checkpoints
from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.cli import main
from autoguide_fast.trainer import durable, loop, pair
from autoguide_fast.trainer.options import TrainOptions

MAIN = TrainOptions(**TINY, duration=96, snapshots=3, ema=(0.1,))
GUIDE = pair.parse_guide("2:T/3", MAIN, changes={"channels_per_head": 2, "dropout": 0.1})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A pair that was stopped when its main net had seen 80 of 96 images, and what it becomes."""
    folder = tmp_path_factory.mktemp("pair")
    pair.train_pair(MAIN, GUIDE, folder / "whole", progress=False)
    pair.train_pair(
        MAIN,
        GUIDE,
        folder / "part",
        progress=False,
        checkpoint_minutes=0,
        stop=lambda nimg: nimg == 80,
    )
    return folder


@pytest.fixture
def part(stopped, tmp_path):
    """That pair, to be damaged."""
    return shutil.copytree(stopped / "part", tmp_path / "part")


def resume(capsys, out, *arguments):
    """Go on with a run on the command line, which names no option."""
    code = main(["train", "--out", str(out), "--resume", "--quiet", "--grid", "0", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("damage", ["missing", "cut", "no JSON", "not UTF-8", "another"])
def test_a_job_is_known_without_its_file(capsys, stopped, part, damage):
    path = part / "job.json"
    text = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {
                "cut": text[:40],
                "no JSON": b"{]",
                "not UTF-8": b"\xff" + text,
                "another": b'{"main": {}}',
            }[damage]
        )
    code, out, err = resume(capsys, part)
    assert code == 0, err
    assert f"{path} is {'missing' if damage == 'missing' else 'damaged'}" in err
    assert err.count("\n") == 1 and "the guide took" in out
    assert same_state(state_in(part), state_in(stopped / "whole"))
    assert path.read_bytes() == text


def test_a_job_is_never_another_one(part):
    """Wherever a bit of its file flips: the checkpoint knows it, too."""
    path = part / "job.json"
    text = path.read_bytes()
    job = pair.stored_job(part, pytest.fail)
    for place in range(0, len(text), 6):
        data = bytearray(text)
        data[place] ^= 1 << place % 7
        path.write_bytes(data)
        found = pair.stored_job(part, lambda said: None)
        assert {name: found[name] for name in job} == job, data
    path.write_text(json.dumps(job))  # as earlier versions wrote it
    assert pair.stored_job(part, pytest.fail) == job


def test_a_guide_that_nothing_knows_must_be_named(capsys, part):
    (part / "job.json").unlink()
    for folder in (part, part / "guide"):  # as earlier versions wrote checkpoints
        state = state_in(folder)
        del state["job"]
        durable.save_checkpoint(folder / loop.CHECKPOINTS, state["nimg"], state)
        for path in durable.checkpoint_files(folder / loop.CHECKPOINTS)[1:]:
            path.unlink()
    code, _, err = resume(capsys, part)
    assert code == 2 and f"{part / 'guide'} holds one and job.json is lost" in err
    code, _, err = resume(
        capsys, part, "--guide", "2:T/3", "--guide-set", "channels_per_head=2", "dropout=0.1"
    )
    assert code == 0, err


def test_a_run_without_its_checkpoints_is_not_begun_anew(capsys, part):
    snapshots = {path: path.read_bytes() for path in part.rglob("*.safetensors")}
    folder, away = part / loop.CHECKPOINTS, part / "away"
    folder.rename(away)
    for again in (lambda: resume(capsys, part), lambda: resume(capsys, part, "--resume", "auto")):
        code, _, err = again()
        assert code == 2 and f"{folder} must hold a checkpoint of the run that has been" in err
    folder.mkdir()  # where the folder is there but what was in it is gone, snapshots tell
    code, _, err = resume(capsys, part)
    assert code == 2 and "000000064-0.100.safetensors; restore it" in err
    folder.rmdir()
    away.rename(folder)
    for gone in (part / "guide" / loop.CHECKPOINTS, part / "guide"):
        shutil.rmtree(gone)
        code, _, err = resume(capsys, part)
        assert code == 2 and f"{gone} must hold" in err and "restore it" in err
    assert all(path.read_bytes() == data for path, data in snapshots.items() if path.exists())


def test_a_net_that_was_killed_before_its_first_checkpoint_begins_anew(capsys, stopped, part):
    for path in [*(part / loop.CHECKPOINTS).iterdir(), *(part / "snapshots").iterdir()]:
        path.unlink()
    code, _, err = resume(capsys, part)
    assert code == 0
    assert "the main net, which the log knows up to 80 images, was not saved before" in err
    assert same_state(state_in(part), state_in(stopped / "whole"))


def test_a_damaged_log_is_named_and_the_rest_of_it_kept(capsys, stopped, part):
    path = part / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"nimg"', b'"nimh"')
    lines[2] = b"\xff" + lines[2][1:]
    lines[3] = lines[3][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    code, _, err = resume(capsys, part)
    assert code == 0
    assert f"the log {path} is damaged; 3 of its lines are left out" in err
    whole = [(row["net"], row["nimg"], row["loss"]) for row in read_log(stopped / "whole")]
    left = [(row["net"], row["nimg"], row["loss"]) for row in read_log(part)]
    assert left == [whole[0], *whole[4:]]
    path.write_bytes(lines[0].replace(b'"loss"', b'"lost"'))
    assert main(["plot", str(part), "--out", str(part / "curves.png")]) == 0


def test_damaged_snapshots_are_named_and_the_newest_written_again(capsys, part):
    main_options = TrainOptions(**TINY, duration=64, snapshots=2, ema=(0.1,))
    out = part.parent / "run"
    loop.train(main_options, out, progress=False)
    first, last = sorted((out / "snapshots").iterdir())
    whole = {path: path.read_bytes() for path in (first, last)}
    data = bytearray(whole[last])
    data[-100] ^= 1
    last.write_bytes(data)
    first.write_bytes(whole[first][:-1])
    loop.train(main_options, out, resume=True, progress=False)
    err = capsys.readouterr().err
    assert f"the snapshot {first} is damaged (one that cannot be read" in err
    assert f"the snapshot {last} was damaged (others by its checksum" in err
    assert "it is written again" in err and last.read_bytes() == whole[last]
    # What is wrong with one is found where it is used, too.
    data = bytearray(whole[first])
    data[-100] ^= 1
    first.write_bytes(data)
    loop.train(main_options, out, resume=True, progress=False)
    assert capsys.readouterr().err == ""
    code = main(["ema", "reconstruct", "--run", str(out), "--ema", "0.1", "--out", str(out / "x")])
    err = capsys.readouterr().err
    assert code == 2 and first.name in err and "or remove it to do without" in err
    assert not (out / "x").exists()


def test_snapshots_that_are_gone_are_missed_and_the_newest_written_again(capsys, tmp_path):
    options = TrainOptions(**TINY, duration=64, snapshots=2, ema=(0.1,))
    loop.train(options, tmp_path, progress=False)
    paths = sorted((tmp_path / "snapshots").iterdir())
    last = paths[-1].read_bytes()
    for path in paths:
        path.unlink()
    loop.train(options, tmp_path, resume=True, progress=False)
    err = capsys.readouterr().err
    assert f"{tmp_path / 'snapshots'} holds none of the snapshots that the run has stored" in err
    assert f"the snapshot {paths[-1]} was missing; it is written again" in err
    assert paths[-1].read_bytes() == last
    loop.train(options, tmp_path, resume=True, progress=False)
    assert capsys.readouterr().err == ""


def test_a_grid_is_not_worth_a_run(capsys, tmp_path):
    """Where the guide is the main net's own past, and that snapshot is gone."""
    options = TrainOptions(**TINY, duration=96, snapshots=3, ema=(0.1,))
    guide = pair.parse_guide("T/3", options)
    pair.train_pair(options, guide, tmp_path, progress=False, stop=lambda nimg: nimg == 48)
    (tmp_path / "snapshots" / "000000032-0.100.safetensors").unlink()
    result = pair.train_pair(options, guide, tmp_path, True, progress=False, grid=1)
    assert result.finished
    assert "train: no samples drawn at 64 images: " in capsys.readouterr().err


def test_a_damaged_checkpoint_does_not_count_as_the_one_before(tmp_path):
    folder = tmp_path / "run" / "checkpoints"

    def save(nimg):
        durable.save_checkpoint(folder, nimg, {"nimg": nimg})
        return sorted(int(path.name[:9]) for path in durable.checkpoint_files(folder))

    assert save(16) == [16] and save(32) == [16, 32] and save(48) == [32, 48]
    newest = durable.checkpoint_files(folder)[0]
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    said = []
    assert durable.load_checkpoint(folder, said.append)["nimg"] == 32 and len(said) == 1
    assert save(40) == [32, 40]  # two that are whole: the damaged one may go
    for path in durable.checkpoint_files(folder):
        path.write_bytes(b"")
    assert save(56) == [32, 40, 56]  # one that is whole: nothing goes
    assert save(64) == [56, 64]


def test_a_checkpoint_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    """As from a disk that returns other bytes than it was given."""

    def worn(state, file):
        save(state, file)
        file.flush()
        with open(file.name, "r+b") as again:
            again.seek(20)
            again.write(b"?")

    first, save = durable.save_checkpoint(tmp_path, 16, {"nimg": 16}), torch.save
    monkeypatch.setattr(torch, "save", worn)
    for nimg in range(32, 160, 16):
        with pytest.raises(OSError, match=r"must be written to .*, got it reads back otherwise"):
            durable.save_checkpoint(tmp_path, nimg, {"nimg": nimg})
        assert list(tmp_path.iterdir()) == [first]


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    durable.save_checkpoint(tmp_path, 16, {"nimg": 16})
    unreadable = tmp_path / f"000000032-{32 * '0'}.pt"
    unreadable.mkdir()
    said = []
    assert durable.load_checkpoint(tmp_path, said.append)["nimg"] == 16
    (sentence,) = said
    assert f"{unreadable} is damaged (Is a directory)" in sentence


class Touches:
    """What touches a file where its pickle is taken for code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_checkpoint_runs(tmp_path):
    durable.save_checkpoint(tmp_path, 16, {"nimg": Touches(tmp_path / "executed")})
    with pytest.raises(pickle.UnpicklingError):
        durable.load_checkpoint(tmp_path, pytest.fail)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("stops", [[16], [48, 80]])
def test_the_log_of_a_run_that_was_stopped_is_that_of_the_whole(tmp_path, monkeypatch, stops):
    """Also where a line covers several steps, some of them before the stop."""
    monkeypatch.setattr(loop, "LOG_LINES", 2)
    options = TrainOptions(**TINY, duration=128, snapshots=0)
    loop.train(options, tmp_path / "whole", progress=False)
    for i, stop in enumerate([*stops, None]):
        loop.train(
            options,
            tmp_path / "part",
            i > 0,
            progress=False,
            stop=lambda nimg, stop=stop: nimg == stop,
        )
    timed = ("images_per_s", "seconds", "memory_mib")
    whole, part = (
        [{k: v for k, v in row.items() if k not in timed} for row in read_log(tmp_path / name)]
        for name in ("whole", "part")
    )
    assert len(whole) == 2 and whole == part


def test_options_that_are_damaged_are_named(tmp_path, part):
    from autoguide_fast.checkpoints import Snapshots

    (part / "options.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"options.json must hold the options of the run"):
        Snapshots(part)
    # The run itself knows them from its checkpoint.
    assert main(["train", "--out", str(part), "--resume", "--quiet", "--grid", "0"]) == 0
    assert json.loads((part / "options.json").read_text()) == MAIN.as_dict()
    checkpoints.read(next((part / "snapshots").iterdir()), "test")
