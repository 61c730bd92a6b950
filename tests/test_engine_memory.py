"""The engine's memory, each case in a process of its own: what it says it needs, and too little."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BEGIN = """
import ctypes, re, resource, warnings
import torch
from autoguide_fast import Engine
from autoguide_fast.networks import Precond

MIB = 2**20
torch.set_num_threads({threads})
warnings.simplefilter("error")

def status(field):
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(field + r":\\s+(\\d+)", file.read())[1])

def make(width):
    options = dict(channel_mult=[1, 2], num_blocks=1, attn_resolutions=[])
    return Precond(32, 3, 0, model_channels=width, **options).requires_grad_(False)
"""


def run_alone(body, **names):
    code = (BEGIN + textwrap.dedent(body)).replace("{threads}", str(names.pop("threads", 1)))
    for name, value in names.items():
        code = code.replace(f"{{{name}}}", str(value))
    # Large blocks go back to the system when they are freed, so that limits mean what they say.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("batch", [1, 4, 40])
def test_peak_memory_is_what_a_run_takes(batch):
    body = """
    def run(width, batch):
        pair = Engine(make(width), make(width // 2))
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the kernel's peak starts again
        pair.sample(guidance=1.5, noise=torch.randn(batch, 3, 32, 32), num_steps=2)
        return pair.peak_memory(batch)

    run(16, 2)  # whatever is loaded at first use
    before = status("VmRSS")
    planned = run(192, {batch})
    print(planned, status("VmHWM") - before)
    """
    planned, measured = map(int, run_alone(body, batch=batch, threads=2).split())
    assert 0.9 * planned < measured < 1.1 * planned + (8 << 20)


LIMITED = """
net = make(128)
prepared = Engine(net).model
x = torch.randn(16, 3, 32, 32)
sigma = torch.tensor(1.0)
prepared(x[:1], sigma)
usual = prepared.arena_bytes(16, 1)
assert usual > 16 * MIB
unlimited = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + {spare} * MIB, unlimited[1]))
"""


def test_batch_is_split_further_where_memory_is_short():
    body = """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = prepared(x, sigma)
        again = prepared(x, sigma)
    assert len(caught) == 1, caught
    assert f"Engine: {usual / MIB:.1f} MiB for feature maps are not free" in str(caught[0].message)
    assert prepared.chunk(16, 1) == 2  # of four: what one image took, and 10 MiB
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert torch.equal(result, again) and torch.equal(result, Engine(net).model(x, sigma))
    """
    run_alone(LIMITED + textwrap.dedent(body), spare=10)


def test_too_little_memory_is_said():
    body = """
    prepared.arena.block = torch.empty(0, dtype=torch.uint8)
    fillers = []
    try:
        while True:
            fillers.append(torch.empty(MIB, dtype=torch.uint8))
    except RuntimeError:
        pass
    warnings.simplefilter("ignore")
    try:
        prepared(x, sigma)
    except MemoryError as error:
        needed = f"{prepared.arena_bytes(16, 1) / MIB:.1f} MiB must be free for one image a team"
        assert needed in str(error), error
    else:
        raise AssertionError("enough memory")
    """
    run_alone(LIMITED + textwrap.dedent(body), spare=3)
