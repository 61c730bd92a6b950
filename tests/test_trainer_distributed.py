"""Several processes: the run of one process, resumption, a process that dies.

One test starts them by torchrun itself; others fork them, which takes seconds less for each.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from tape import StepTape
from test_locks import other_process

from autoguide_fast.checkpoints.run_folder import read_log
from autoguide_fast.cli import main
from autoguide_fast.locks import LOCK
from autoguide_fast.trainer import durable, interruption, loop
from autoguide_fast.trainer import trainer as trainer_module
from autoguide_fast.trainer.options import TrainOptions

# Losses may differ by the order in which gradients are summed: a rounding of 6e-8 relative that
# Adam's division magnifies over the steps.
LOSS = 1e-4
WEIGHTS = 1e-2

# Six rows of weights among four processes: the last has none of the narrow layers'.
OPTIONS = [
    "--channels",
    "6",
    "--channels-per-head",
    "6",
    "--batch",
    "16",
    "--rampup",
    "64",
    "--seed",
    "5",
    "--duration",
    "160",
    "--snapshots",
    "5",
    "--grid",
    "2",
    "--quiet",
]
SAME = {
    "channels": 6,
    "channels_per_head": 6,
    "batch": 16,
    "rampup": 64.0,
    "seed": 5,
    "duration": 160,
    "snapshots": 5,
}


TRAIN = ("fork_server:command", "train", "--out")


def torchrun(processes, *arguments, program, restarts, **environment):
    """Run a program under torchrun; return the finished process."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}",
        str(program),
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def state_in(run):
    return durable.load_checkpoint(run / loop.CHECKPOINTS, pytest.fail)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    loop.train(TrainOptions(**SAME), out, progress=False)
    return out


def assert_same_run(one, other):
    rows = [{row["nimg"]: row["loss"] for row in read_log(run)} for run in (one, other)]
    assert rows[0] == pytest.approx(rows[1], rel=LOSS)
    a, b = state_in(one), state_in(other)
    assert a["nimg"] == b["nimg"]
    for states in ((a["net"], b["net"]), *zip(a["ema"]["emas"], b["ema"]["emas"], strict=True)):
        for name, p in states[0].items():
            error = (p - states[1][name]).norm() / (p.norm() + 1e-3)
            assert error < WEIGHTS, name


@pytest.mark.parametrize(("processes", "shard"), [(2, ()), (4, ("--shard",))], ids=["2", "4-shard"])
def test_processes_train_as_one_does(alone, fork_server, tmp_path, processes, shard):
    run = fork_server.run(*TRAIN, str(tmp_path / "run"), *OPTIONS, *shard, processes=processes)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("main: trained") == 1
    assert_same_run(alone, tmp_path / "run")


@pytest.mark.parametrize("shard", [(), ("--shard",)], ids=["", "shard"])
def test_a_run_goes_on_with_another_number_of_processes(alone, fork_server, tmp_path, shard):
    out = tmp_path / "run"
    loop.train(TrainOptions(**SAME), out, progress=False, stop=lambda nimg: nimg >= 80)
    options = ("--resume", "--quiet", "--microbatch", 4, *shard)
    run = fork_server.run(*TRAIN, str(out), *options, processes=2)
    assert run.returncode == 0, run.stderr
    assert_same_run(alone, out)


def test_a_sharded_run_goes_on_without_shards(alone, fork_server, tmp_path):
    """What four processes shared has the form of what one wrote, tensor by tensor."""
    out = tmp_path / "run"
    options = (*OPTIONS, "--shard", "--duration", 80)
    run = fork_server.run(*TRAIN, str(out), *options, processes=4)
    assert run.returncode == 0, run.stderr
    whole, shared = (layout(state_in(path)) for path in (alone, out))
    assert whole == shared
    loop.train(TrainOptions(**SAME), out, resume=True, progress=False)
    assert_same_run(alone, out)


def layout(state, name=""):
    """The shape and type of every tensor of a state."""
    if isinstance(state, torch.Tensor):
        return {name: (state.shape, state.dtype)}
    found = {}
    if isinstance(state, (dict, list)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            found |= layout(value, f"{name}/{key}")
    return found


def test_pairs_train_sharded(fork_server, tmp_path):
    guide = ["--guide", "3:T/2", "--guide-set", "channels_per_head=3"]
    assert main(["train", "--out", str(tmp_path / "one"), *OPTIONS, *guide]) == 0
    options = (*OPTIONS, *guide, "--shard")
    run = fork_server.run(*TRAIN, str(tmp_path / "two"), *options, processes=2)
    assert run.returncode == 0, run.stderr
    for net in ("", "guide"):
        a, b = state_in(tmp_path / "one" / net), state_in(tmp_path / "two" / net)
        for name, p in a["net"].items():
            assert (p - b["net"][name]).norm() <= WEIGHTS * (p.norm() + 1e-3), (net, name)
    rows = [[(row["net"], row["nimg"]) for row in read_log(tmp_path / name)] for name in NAMES]
    assert rows[0] == rows[1] and len(rows[0]) == 15
    losses = [[row["loss"] for row in read_log(tmp_path / name)] for name in NAMES]
    assert losses[0] == pytest.approx(losses[1], rel=LOSS)
    pictures = [sorted(f.name for f in (tmp_path / name / "samples").iterdir()) for name in NAMES]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 7


def train_on_a_tape(*arguments):
    """Train like the command, with steps recorded on a tape; say how often it was played."""
    tape, real = StepTape(), trainer_module.Trainer.__init__

    def taped(self, options, dataset=None, processes=None):
        real(self, options, dataset, processes, tape)

    trainer_module.Trainer.__init__ = taped
    code = main(["train", *arguments])
    print("replays:", tape.replays)
    return code


def test_processes_train_on_recorded_steps_as_one_does(alone, fork_server, tmp_path):
    program = f"{__name__}:train_on_a_tape"
    options = ("--out", str(tmp_path / "run"), *OPTIONS, "--microbatch", "4")
    run = fork_server.run(program, *options, processes=2)
    assert run.returncode == 0, run.stderr
    # Ten steps of two passes and an update, of which each was first run three times.
    assert run.stdout.count(f"replays: {2 * 10 + 10 - 2 * 3}") == 2
    assert_same_run(alone, tmp_path / "run")


NAMES = ("one", "two")

_draw = trainer_module.draw


def spoilt(seed, nimg, offset, count, *rest):
    """Draw as the trainer does, but once with a number for the last image that is not finite."""
    drawn = _draw(seed, nimg, offset, count, *rest)
    if nimg == 32 and offset + count == 16:
        drawn.noise[-1] = float("nan")
    return drawn


def train_on_spoilt_numbers(*arguments):
    """Train like the command, on such a draw."""
    trainer_module.draw = spoilt
    return main(["train", *arguments])


@pytest.mark.parametrize(
    ("precision", "counted"), [("fp32", "repaired_steps"), ("fp16", "skipped_steps")]
)
def test_all_shards_meet_what_is_not_finite_in_one(
    fork_server, tmp_path, monkeypatch, precision, counted
):
    monkeypatch.setattr(trainer_module, "draw", spoilt)
    options = TrainOptions(**{**SAME, "duration": 80}, precision=precision)
    loop.train(options, tmp_path / "one", progress=False)
    changes = ("--duration", "80", "--grid", "0", "--precision", precision, "--shard")
    run = fork_server.run(
        f"{__name__}:train_on_spoilt_numbers",
        *("--out", str(tmp_path / "two"), *OPTIONS, *changes),
        processes=2,
    )
    assert run.returncode == 0, run.stderr
    for name in NAMES:
        rows = read_log(tmp_path / name)
        assert rows[2]["loss"] is None and rows[-1][counted] == 1
    one, two = (state_in(tmp_path / name) for name in NAMES)
    assert one["loss_scale"] == two["loss_scale"]
    # In float16 a sum over two processes rounds otherwise than one.
    tolerance = {"fp32": WEIGHTS, "fp16": 3 * WEIGHTS}[precision]
    for name, p in one["net"].items():
        assert (p - two["net"][name]).norm() <= tolerance * (p.norm() + 1e-3), name


def train_until_one_dies(*arguments):
    """Train like the command, but the second process dies once, after 4 steps."""
    mark, real = pathlib.Path(os.environ["DEAD"]), trainer_module.Trainer.step

    def mortal(self):
        if self.nimg >= 64 and self.processes.rank == 1 and not mark.exists():
            mark.touch()
            os._exit(7)
        return real(self)

    trainer_module.Trainer.step = mortal
    return main(["train", *arguments])


_MORTAL = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from {__name__} import train_until_one_dies
sys.exit(train_until_one_dies(*sys.argv[1:]))
"""


def test_torchrun_restarts_what_a_dying_process_ended(alone, tmp_path):
    program = tmp_path / "mortal.py"
    program.write_text(_MORTAL)
    dead = str(tmp_path / "dead")
    options = ("--out", tmp_path / "run", *OPTIONS)
    run = torchrun(2, *options, program=program, restarts=1, DEAD=dead)
    assert run.returncode == 0, run.stderr
    assert "exitcode: 7" in run.stderr or "exitcode  : 7" in run.stderr
    assert_same_run(alone, tmp_path / "run")


def test_a_lost_process_is_said_in_one_sentence(fork_server, tmp_path):
    dead, out = str(tmp_path / "dead"), str(tmp_path / "run")
    run = fork_server.run(
        f"{__name__}:train_until_one_dies", "--out", out, *OPTIONS, processes=2, DEAD=dead
    )
    assert run.codes[1] == 7 and run.codes[0] not in (0, 7)
    assert "all 2 processes must stay alive" in run.stderr
    assert "repeat the command with --resume auto" in run.stderr
    assert state_in(tmp_path / "run")["nimg"] == 64


def test_bad_input_is_said_once(fork_server, tmp_path):
    options = ("--batch", 15, "--duration", 150)
    run = fork_server.run(*TRAIN, str(tmp_path / "run"), *options, processes=2)
    assert run.returncode != 0
    assert run.stderr.count("batch must be a multiple of the 2 processes, got 15") == 1


def test_processes_leave_a_folder_to_the_job_that_writes_it(fork_server, tmp_path):
    with other_process(tmp_path / "run") as child:
        run = fork_server.run(*TRAIN, str(tmp_path / "run"), *OPTIONS, processes=2)
        assert run.returncode != 0
        assert run.stderr.count(f"by one process at a time, got {tmp_path / 'run'}") == 1
        assert run.stderr.count(f"process {child} on") == 1
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_dry_run_is_printed_once(fork_server):
    options = ("train", "--dry-run", "--batch", 16, "--duration", 160)
    run = fork_server.run("fork_server:command", *options, processes=2)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("main:") == 1
    assert "of a pass of 8 images" in run.stdout and "on 2 processes" in run.stdout


def test_exit_code_is_defined():
    assert interruption.EXIT_CODE not in (0, 1, 2, 130, 143)
    assert not torch.distributed.is_initialized()
