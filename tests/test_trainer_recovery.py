"""Nothing is lost: kill -9, damaged and unwritable checkpoints, full disks, signals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import struct
import termios
import time
from pathlib import Path

import pytest
import torch
from fork_server import command

from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.trainer import durable, interruption, loop, pair
from autoguide_fast.trainer.options import TrainOptions

TINY = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 64.0, "seed": 5}
KILLS = 50


def same_state(a, b):
    """Whether two checkpoints hold the same, but for the time that they took."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    return a == b


def state_in(run):
    return durable.load_checkpoint(run / loop.CHECKPOINTS, pytest.fail)


def train_and_save_at_every_step(out, options):
    """Begin or go on with a run, until the process is killed."""
    resume = loop.has_run(Path(out))
    loop.train(TrainOptions(**options), out, resume=resume, progress=False, checkpoint_minutes=0)


def test_nothing_is_lost_to_fifty_kills(fork_server, tmp_path):
    options = {**TINY, "duration": 16 * 400, "snapshots": 40}
    run = tmp_path / "run"
    randomness = random.Random(0)
    reached, kills, patience = 0, 0, 0.4
    while kills < KILLS:
        target = f"{__name__}:train_and_save_at_every_step"
        child = fork_server.start(target, str(run), options)
        time.sleep(randomness.uniform(0.0, patience))
        os.kill(child, signal.SIGKILL)
        ended = fork_server.wait()
        assert ended.codes == [-signal.SIGKILL], f"make the run longer: {ended.stderr}"
        kills += 1
        before = reached
        if durable.checkpoint_files(run / loop.CHECKPOINTS):
            # The newest file, whatever was being written, is whole: no older one is needed.
            state = state_in(run)
            assert state["nimg"] >= reached
            reached = state["nimg"]
        patience = min(3.0, patience * (1.0 if reached > before else 1.1))  # for a slow machine
    assert reached > 16 * 10, "kills came before the first steps: raise the patience"
    # The run that was killed fifty times is bit for bit the run that never was.
    whole = loop.train(
        TrainOptions(**{**options, "duration": reached + 16, "snapshots": 1}),
        tmp_path / "whole",
        progress=False,
    )
    killed = loop.train(
        TrainOptions(**options),
        run,
        resume=True,
        progress=False,
        stop=lambda nimg: nimg >= reached + 16,
    )
    assert all(map(torch.equal, whole.net.state_dict().values(), killed.net.state_dict().values()))
    for a, b in zip(whole.ema.emas, killed.ema.emas, strict=True):
        assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    times = [row["nimg"] for row in read_log(run)]
    assert times == sorted(set(times))
    left = [f.name for f in run.rglob("*") if f.name.startswith(".")]
    assert not left and len(durable.checkpoint_files(run / loop.CHECKPOINTS)) == durable.KEPT


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"dropout": 0.2},
        {"flip": True},
        {"label_dropout": 0.3},
        {"microbatch": 8},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
)
def test_resume_is_bit_exact_whatever_the_recipe(tmp_path, extra):
    options = TrainOptions(**TINY, duration=96, snapshots=2, **extra)
    loop.train(options, tmp_path / "whole", progress=False)
    loop.train(options, tmp_path / "part", progress=False, stop=lambda nimg: nimg >= 32)
    torch.manual_seed(99)  # what else draws numbers must not matter
    loop.train(options, tmp_path / "part", resume=True, progress=False)
    assert same_state(state_in(tmp_path / "whole"), state_in(tmp_path / "part"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys, damage):
    options = TrainOptions(**TINY, duration=96, snapshots=3)
    run = tmp_path / "run"
    loop.train(options, run, progress=False, stop=lambda nimg: nimg >= 64)
    newest, before = durable.checkpoint_files(run / loop.CHECKPOINTS)
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    newest.write_bytes({"cut": data[:1000], "flip": data, "empty": b""}[damage])
    resumed = loop.train(options, run, resume=True, progress=False)
    said = capsys.readouterr().err
    assert str(newest) in said and "trying the one before it" in said
    whole = loop.train(options, tmp_path / "whole", progress=False)
    assert same_state(resumed.state_dict(), whole.state_dict())
    before = durable.checkpoint_files(run / loop.CHECKPOINTS)
    for path in before:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="must be readable, got 2 damaged"):
        loop.train(options, run, resume=True, progress=False)


@pytest.fixture
def small_files():
    """Calling it bounds the size of files, which fails writing as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path, small_files):
    run = tmp_path / "run"
    options = TrainOptions(**TINY, duration=64, snapshots=2)
    loop.train(options, run, progress=False, stop=lambda nimg: nimg >= 32)
    before = {f: f.read_bytes() for f in durable.checkpoint_files(run / loop.CHECKPOINTS)}
    sizes = [max(f.stat().st_size for f in run.rglob(kind)) for kind in ("*.safetensors", "*.pt")]
    small_files(sum(sizes) // 2)  # snapshots fit, a checkpoint does not
    with pytest.raises(OSError, match="a checkpoint must be written"):
        loop.train(options, run, resume=True, progress=False)
    small_files(4_000)  # neither fits
    with pytest.raises(OSError, match="a snapshot must be written"):
        loop.train(options, run, resume=True, progress=False)
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    after = {f: f.read_bytes() for f in durable.checkpoint_files(run / loop.CHECKPOINTS)}
    assert before == after
    assert not [f for f in run.rglob("*") if f.name.startswith(".")]
    resumed = loop.train(options, run, resume=True, progress=False)
    whole = loop.train(options, tmp_path / "whole", progress=False)
    assert same_state(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("chunk", [1, 1 << 22], ids=["while writing", "when closing"])
def test_a_full_disk_is_named_whenever_it_shows(tmp_path, small_files, monkeypatch, chunk):
    monkeypatch.setattr(durable, "_CHUNK", chunk)
    small_files(4_000)
    with pytest.raises(OSError, match=r"a checkpoint must be written .* got File too large"):
        durable.save_checkpoint(tmp_path, 16, {"x": torch.zeros(10_000)})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    left = [".000000016.77.pt", ".options.77.json", ".000000016-0.050.77.safetensors"]
    others = [".hidden", ".notes.txt", "000000016-0.050.safetensors"]
    others += [
        ".prettierrc.json",
        ".options.json",
        ".list.7.json",
        ".weights.safetensors",
    ]  # a user's
    for name in (*left, *others):
        (tmp_path / name).touch()
    durable.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def train_on_a_terminal(terminal, out):
    """Train without end on the command line, on a terminal of its own."""
    os.setsid()
    end = os.open(terminal, os.O_RDWR)
    fcntl.ioctl(end, termios.TIOCSCTTY, 0)
    for number in range(3):
        os.dup2(end, number)
    options = ("--channels", 4, "--channels-per-head", 4, "--batch", 16, "--grid", 0)
    return command("train", "--out", out, *options, "--duration", 1600000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_save_and_exit_with_a_code_of_their_own(fork_server, tmp_path, number):
    """SIGHUP as it comes in truth: the terminal closes, and can no longer be written to."""
    terminal, end = os.openpty()
    size = struct.pack("4H", 24, 200, 0, 0)  # rows and columns: wide enough for the bar
    fcntl.ioctl(end, termios.TIOCSWINSZ, size)
    target, run = f"{__name__}:train_on_a_terminal", str(tmp_path / "run")
    child = fork_server.start(target, os.ttyname(end), run)
    shown = b""
    while b"loss=" not in shown:
        assert len(shown) < 100_000, shown
        shown += os.read(terminal, 4096)
    os.close(end)  # the child has it open
    if number == signal.SIGHUP:
        os.close(terminal)
    else:
        os.kill(child, number)
        with contextlib.suppress(OSError):  # which the end is
            while read := os.read(terminal, 4096):
                shown += read
        os.close(terminal)
        assert b"go on with: autoguide-fast train" in shown
    assert fork_server.wait().codes == [interruption.EXIT_CODE] == [75]
    assert state_in(tmp_path / "run")["nimg"] > 0
    log = tmp_path / "run" / "log.jsonl"
    assert not log.exists() or all(map(json.loads, log.read_text().splitlines()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruption.interruption() as interrupted:
            signal.raise_signal(number)
            assert not interrupted()
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.signal(number, lambda *_: pytest.fail("not caught"))
        with interruption.interruption() as interrupted:
            signal.raise_signal(number)
            assert interrupted()
    finally:
        signal.signal(number, before)


def test_a_signal_with_the_last_step_of_the_guide_ends_the_job(tmp_path):
    main = TrainOptions(**TINY, duration=64, snapshots=1)
    guide = pair.parse_guide("2:T/2", main, changes={"channels_per_head": 2})
    result = pair.train_pair(
        main,
        guide,
        tmp_path / "run",
        progress=False,
        stop=lambda nimg: bool(nimg == 32 and signal.raise_signal(signal.SIGTERM)),
    )
    assert result.guide.nimg == 32 and result.main is None and not result.finished


def test_the_log_goes_on_where_the_checkpoint_stands(tmp_path):
    options = TrainOptions(**TINY, duration=96, snapshots=3)
    run = tmp_path / "run"
    loop.train(options, run, progress=False, stop=lambda nimg: nimg >= 48)
    rows = read_log(run)
    with open(run / "log.jsonl", "a") as file:  # as left by a process killed at its next line
        file.write(json.dumps({**rows[-1], "nimg": 64}) + '\n{"nimg": 8')
    loop.train(options, run, resume=True, progress=False)
    assert [row["nimg"] for row in read_log(run)] == [16, 32, 48, 64, 80, 96]


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    run = tmp_path / "run"
    (run / "log.jsonl").mkdir(parents=True)
    with pytest.raises(OSError, match=r"the log .*log.jsonl must be written, got Is a directory"):
        loop.train(TrainOptions(**TINY, duration=32, snapshots=1), run, progress=False)
