"""Several processes under torchrun: the run of one process, resumption, a process that dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from autoguide_fast.trainer import durable, interruption, loop
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.runlog import read_log

# Losses may differ by the order in which gradients are summed: a rounding of 6e-8 relative that
# Adam's division magnifies over the steps.
LOSS = 1e-4
WEIGHTS = 1e-2

OPTIONS = ["--channels", "4", "--channels-per-head", "4", "--batch", "16", "--rampup", "64",
           "--seed", "5", "--duration", "160", "--snapshots", "5", "--grid", "2",
           "--quiet"]  # fmt: skip
SAME = {"channels": 4, "channels_per_head": 4, "batch": 16, "rampup": 64.0, "seed": 5,
        "duration": 160, "snapshots": 5}  # fmt: skip


def torchrun(processes, *arguments, program=("-m", "autoguide_fast.cli", "train"), **options):
    """Run `train` under torchrun; return the finished process."""
    restarts = options.pop("restarts", 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", f"--max-restarts={restarts}",
               *program, *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("environment", {})}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment, **options
    )


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


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_does(alone, tmp_path, processes):
    run = torchrun(processes, "--out", tmp_path / "run", *OPTIONS)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("main: trained") == 1
    assert_same_run(alone, tmp_path / "run")


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    out = tmp_path / "run"
    loop.train(TrainOptions(**SAME), out, progress=False, stop=lambda nimg: nimg >= 80)
    run = torchrun(2, "--out", out, "--resume", "--quiet", "--microbatch", 4)
    assert run.returncode == 0, run.stderr
    assert_same_run(alone, out)


# Trains like the command, but the second process dies once, after 4 steps.
_MORTAL = """
import os, pathlib, sys
from autoguide_fast.trainer import step
from autoguide_fast.cli import main

mark, real = pathlib.Path(os.environ["DEAD"]), step.Trainer.step

def mortal(self):
    if self.nimg >= 64 and self.processes.rank == 1 and not mark.exists():
        mark.touch()
        os._exit(7)
    return real(self)

step.Trainer.step = mortal
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_dying_process_ends_the_job_and_a_restart_resumes_it(alone, tmp_path, restarts):
    program = tmp_path / "mortal.py"
    program.write_text(_MORTAL)
    run = torchrun(2, "--out", tmp_path / "run", *OPTIONS, program=(program,), restarts=restarts,
                   environment={"DEAD": str(tmp_path / "dead")})  # fmt: skip
    if restarts:
        assert run.returncode == 0, run.stderr
        assert_same_run(alone, tmp_path / "run")
    else:
        assert run.returncode != 0
        assert "exitcode: 7" in run.stderr or "exitcode  : 7" in run.stderr
        assert "all 2 processes must stay alive" in run.stderr
        assert state_in(tmp_path / "run")["nimg"] == 64


def test_bad_input_is_said_once(tmp_path):
    run = torchrun(2, "--out", tmp_path / "run", "--batch", 15, "--duration", 150)
    assert run.returncode != 0
    assert run.stderr.count("batch must be a multiple of the 2 processes, got 15") == 1


def test_exit_code_is_defined():
    assert interruption.EXIT_CODE not in (0, 1, 2, 130, 143)
    assert not torch.distributed.is_initialized()
