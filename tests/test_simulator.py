"""The simulator of CUDA kernels notices what is wrong with a kernel, and the kernels stand it."""

import copy
import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
import simulator
import torch
from nets import tiny
from references import assert_gradients, assert_sample, gradients

from autoguide_fast import load, ops, sample

pytestmark = pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))


def run_sums(how, seed, flags=()):
    """Run a sum that is broken in the way `how`; return the simulator's error, and the sums."""
    function = ctypes.CDLL(str(simulator.build("broken.cpp", flags))).run_sums
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 2 + [ctypes.c_int, ctypes.c_uint64]
    x, y = torch.arange(200.0), torch.zeros(2)
    error = function(how.encode(), x.data_ptr(), y.data_ptr(), 200, seed).decode()
    return error, y.tolist()


CORRECT = [19900.0, 39800.0]


def test_a_right_kernel_passes():
    for how in ("not at all", "writes from another thread"):
        assert all(run_sums(how, seed) == ("", CORRECT) for seed in range(20))


@pytest.mark.parametrize("how", ["drops the first barrier", "drops the second barrier"])
def test_a_race_shows(how):
    results = [run_sums(how, seed) for seed in range(20)]
    assert all(error == "" for error, _ in results)
    assert any(sums != CORRECT for _, sums in results)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("has the barrier in a branch", "did not reach the barrier of the others"),
        ("has two barriers for one", "are at different barriers"),
        ("returns early", "did not join in the shuffle"),
        ("shuffles in half of the warp", "did not join in the shuffle"),
        ("leaves a lane out of the mask", "under a mask without itself"),
        ("reads a lane of another warp", "reads lane"),
    ],
)
def test_divergence_is_an_error(how, message):
    assert message in run_sums(how, 0)[0]


# Every access inside its allocation, and at a multiple of what it moves at once, which the CPU
# would forgive and a GPU does not. Unoptimised: compiling takes longer than running.
SANITIZE = "-O0 -fsanitize=address,alignment -fno-sanitize-recover=alignment"


def python_sanitized(*arguments, **environment):
    """Run Python with AddressSanitizer's runtime, which the kernels' library needs loaded first."""
    command = ["g++", "-print-file-name=libasan.so"]
    runtime = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("no libasan.so beside g++")
    environment |= {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(simulator.ROOT),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=simulator.ROOT / "tests",
        capture_output=True,
        text=True,
    )


ACCESSES = {
    "not at all": "",
    "stores past the end": "heap-buffer-overflow",
    "stores past the end of shared memory": "heap-buffer-overflow",
    "loads a vector off its alignment": "misaligned address",
}
# Each in a process of its own, which what is noticed ends; all of one that has imported torch.
EACH = """
import os, sys
import test_simulator as t

for i, how in enumerate(t.ACCESSES):
    if (child := os.fork()) == 0:
        os.dup2(os.open(f"{sys.argv[1]}/{i}", os.O_CREAT | os.O_WRONLY), 2)
        t.run_sums(how, 0, tuple(t.SANITIZE.split()))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def accesses(tmp_path_factory):
    """What each of `ACCESSES` ended with: the status, and what it wrote."""
    folder = tmp_path_factory.mktemp("accesses")
    result = python_sanitized("-c", EACH, str(folder))
    assert result.returncode == 0, result.stderr
    written = [(folder / str(i)).read_text() for i in range(len(ACCESSES))]
    found = zip(map(int, result.stdout.split()), written, strict=True)
    return dict(zip(ACCESSES, found, strict=True))


@pytest.mark.parametrize("how", ACCESSES)
def test_wrong_accesses_are_seen(how, accesses):
    status, written = accesses[how]
    assert ACCESSES[how] in written
    assert (status != 0) == bool(ACCESSES[how]), written


def test_kernels_sanitized():
    """The values and gradients of all operators once more, with every access to memory checked.

    In one type of 2 bytes: the vectors are the longest, and other types differ in little else.
    """
    result = python_sanitized(
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "test_ops.py"),
        *("-k", "simulated and torch.float16 and not sliced and (test_value or test_gradient)"),
        AGF_SIMULATOR_FLAGS=SANITIZE,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout


def test_the_operators_are_simulated():
    """CPU loops would pass every test too: make sure that kernels are what runs."""
    x = torch.randn(2, 6, 4, 4)
    with simulator.simulating():
        simulated = ops.mp_silu(x)
    torch.testing.assert_close(simulated, ops.mp_silu(x))
    seen = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_void_p)
    def record(kernel, types, x, y, arguments):
        seen.append(kernel.decode())

    simulator._C.set_simulator(ctypes.cast(record, ctypes.c_void_p).value)
    try:
        ops.resample_normalize_mp_silu(x, "up")
        ops.resample_normalize_mp_silu(x.contiguous(memory_format=torch.channels_last), "up")
    finally:
        simulator._C.set_simulator(0)
    assert seen == ["NormalizePlanes", "NormalizeRows"]


HALF = 3  # of csrc/cuda/types.cuh
BLOCKS = 1 << 20  # of the largest grid
LAST = 1 << 32  # elements


@pytest.fixture
def sparse(tmp_path):
    """Return a function of float16 zeros that take room only where they are written."""
    files = (tmp_path / name for name in "xy")
    return lambda count: np.memmap(next(files), np.float16, "w+", shape=(count,))


def run_first_block(kernel, *arguments):
    """Run block 0 of a grid of BLOCKS; `arguments` are the members of the kernel's struct."""
    values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
    packed = (ctypes.c_uint64 * len(values))(*values)
    simulator.kernels().agf_only(0)
    try:
        error = simulator.kernels().agf_simulate(kernel, HALF, BLOCKS, 1, packed)
    finally:
        simulator.kernels().agf_only(-1)
    assert error is None, error


def silu(x):
    return ops.mp_silu_reference(torch.from_numpy(x.copy()).double()).half().numpy()


def test_elements_are_counted_in_64_bits(sparse):
    """More than 2^32 of them: what a thread comes to in the end lies where it should."""
    width = 256 * 8  # a block's, each time that the grid has gone on
    x, y = sparse(LAST + width), sparse(LAST + width)
    x[-width:] = np.linspace(-4, 4, width)
    run_first_block(b"MpSilu", x, y, LAST + width)
    np.testing.assert_allclose(y[-width:], silu(x[-width:]), rtol=2e-3)
    assert not y[:width].any() and not y[1 << 31 : (1 << 31) + width].any()


def test_rows_are_counted_in_64_bits(sparse):
    channels, pixels = 8, LAST // 16  # of each of two images
    x, y = sparse(LAST), sparse(LAST)
    scale = np.repeat(np.array([1, 2], np.float16), channels)
    # A warp has a row, and the grid goes on by so many; the last is of the second image.
    last = (2 * pixels - 8 * BLOCKS) * channels
    assert last > 1 << 31
    x[last : last + 64] = np.linspace(-2, 2, 64)
    inverse = ((1 << 64) - 1) // pixels + 1  # as in Divisor
    run_first_block(b"ModulateMpSiluRows", x, scale, y, 2, channels, pixels, inverse)
    np.testing.assert_allclose(y[last : last + 64], silu(2 * x[last : last + 64]), rtol=2e-3)


def test_sampling_through_the_kernels():
    """A whole guided sampling, every operator of both nets a simulated kernel."""
    options = {"guidance": 1.5, "class_labels": 3, "seeds": range(2), "num_steps": 3, "raw": True}
    expected = sample("digits", **options)
    with simulator.simulating():
        value = sample("digits", **options)
    assert not torch.equal(value, expected)  # the CPU's loops add up in another order
    assert_sample(value, load("digits"), load("digits-guide"), **options)


def test_training_through_the_kernels():
    """One gradient of a network, every operator forward and backward a simulated kernel."""
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    net = tiny(label_dim=4).train()
    start = copy.deepcopy(net)  # the forward pass replaces the weights
    arguments = x, torch.tensor([0.5, 2.0]), torch.eye(4)[:2]
    with simulator.simulating():
        found = gradients(net, net.named_parameters(), *arguments)
    assert_gradients(found, start, *arguments)
