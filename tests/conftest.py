"""What all tests share: the device and instruction set under test."""

import contextlib
import os
import signal

import pytest
import simulator
import torch
from fork_server import ForkServer

from autoguide_fast._extension import build_info
from autoguide_fast.cpu import set_isa

# Races may end otherwise from day to day. Tests of the races themselves turn them on, with a cache
# folder of their own; processes that tests start inherit this.
os.environ["AGF_AUTOTUNE"] = "0"

# The networks of the tests are tiny: more threads would only wait for each other. Tests that are
# about threads set their own number.
torch.set_num_threads(1)

# A shell has its background jobs ignore Ctrl-C, and nohup a closed terminal; tests of signals, and
# the processes that they start, must not inherit that.
for _number, _action in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)


@pytest.fixture(scope="session")
def fork_server():
    """Starts processes in milliseconds."""
    server = ForkServer()
    yield server
    server.close()


def needs_cuda():
    """Skip the test, saying so, where there is no CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Run the test on each kind of device."""
    if request.param == "cuda":
        needs_cuda()
    return torch.device(request.param)


@pytest.fixture(params=build_info()["isa_available"])
def isa(request):
    """Run the test with each instruction set that this machine has."""
    with _instructions(request.param):
        yield request.param


@contextlib.contextmanager
def _instructions(isa):
    chosen = build_info()["isa"]
    set_isa(isa)
    yield
    set_isa(chosen)


# The variants beyond these differ in the engine's products alone.
OPERATOR_ISAS = [i for i in build_info()["isa_available"] if i in ("baseline", "avx2", "avx512")]


@pytest.fixture(params=[*OPERATOR_ISAS, "simulated", "cuda"])
def place(request):
    """Run the test with each instruction set that this machine has and on a CUDA device; and with
    the CUDA kernels simulated on the CPU. Gives the device for the tensors.
    """
    if request.param == "cuda":
        needs_cuda()
        yield torch.device("cuda")
    elif request.param == "simulated":
        if simulator.why_not():
            pytest.skip(simulator.why_not())
        with simulator.simulating():
            yield torch.device("cpu")
    else:
        with _instructions(request.param):
            yield torch.device("cpu")
