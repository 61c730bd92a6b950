"""How evenly many threads share an evaluation: planned, not run."""

import functools
import math

import pytest
import torch

from autoguide_fast import Engine
from autoguide_fast._C import Attend, Convolve, Plan, Storage
from autoguide_fast.engine.balance import balance, efficiency
from autoguide_fast.networks import Precond
from conftest import _instructions


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def prepared(request):
    """A net whose maps are 32 pixels wide, 16 and 8."""
    net = Precond(32, 3, 0, model_channels=64, channel_mult=[1, 2, 2], num_blocks=1)
    return Engine(net.eval(), dtype=request.param).model


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
@pytest.mark.parametrize("images", [1, 4, 16])
def test_threads_are_busy(images, threads, prepared, isa):
    assert efficiency(prepared, images, threads) > (0.75 if threads <= 16 else 0.6)


@pytest.mark.parametrize("threads", [2, 4, 6, 16, 64])
def test_no_thread_has_far_more_than_another(threads, prepared, isa):
    """Than what is even, but for what cannot be divided."""
    plan = prepared.lowered.plan
    for (name, even), each in zip(
        balance(prepared, 1, threads), plan.shares(1, threads), strict=True
    ):
        assert max(each) == 1 or even >= 0.5, name


@pytest.mark.parametrize("threads", [1, 2, 5, 16, 61])
def test_all_of_it_is_shared_out(threads, prepared):
    plan = prepared.lowered.plan
    for one, each in zip(plan.shares(2, 1), plan.shares(2, threads), strict=True):
        assert len(each) == threads and sum(each) == one[0]


@functools.cache
def planned_for_tiles(dtype):
    """Nets for AMX, to be called where that is in use."""
    return [
        Engine(Precond(size, 3, 0, **options).eval(), dtype=dtype).model
        for size, options in (
            (32, {"model_channels": 64, "channel_mult": [1, 2, 2], "num_blocks": 1}),
            (12, {"model_channels": 48, "channel_mult": [1, 1], "num_blocks": 1}),
            (8, {"model_channels": 16, "channel_mult": [1, 2, 2], "num_blocks": 1}),
        )
    ]


@pytest.fixture(params=[torch.bfloat16, torch.int8], ids=str)
def on_tiles(request):
    """Plans for AMX: of the net, and of two with maps that are no whole tiles, or less than one."""
    with _instructions("amx_portable"):
        yield planned_for_tiles(request.param)


def tiles_of(m):
    """Tiles of 16 pixels that cover a map: line by line, or its lines in one row, border and all.

    The border before the first pixel and after the last is left out.
    """
    if m.width % 16 == 0:
        return m.height * (m.width // 16)
    row = "".join("." * m.border + "#" * m.width + "." * m.border for _ in range(m.height))
    return math.ceil(len(row.strip(".")) / 16)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_padded_tiles_count_as_whole_ones(images, threads, on_tiles):
    counted = set()
    for prepared in on_tiles:
        plan = prepared.lowered.plan
        for i, each in zip(plan.instructions, plan.shares(images, threads), strict=True):
            if isinstance(i, Convolve) and i.in_.storage != Storage.F32 and i.in_.height >= 4:
                panels = max(i.out.channels, i.act.channels) // 16
                assert sum(each) == images * tiles_of(i.in_) * panels
                counted.add((i.taps, i.in_.width))
            if isinstance(i, Attend) and i.from_.qkv.storage == Storage.BF16:
                pixels = i.from_.qkv.height * i.from_.qkv.width
                if pixels % 16 == 0:
                    assert sum(each) == images * i.from_.heads * pixels // 16
    # 3x3 and 1x1, of maps with whole tiles in a line and without.
    assert counted >= {(9, 32), (1, 32), (9, 16), (9, 12), (9, 8), (1, 8)}


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
def test_threads_are_busy_on_tiles(threads, on_tiles):
    for images in (1, 4, 16):
        assert efficiency(on_tiles[0], images, threads) > (0.85 if threads <= 16 else 0.75)


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"Plan.teams: threads must be positive, got 0"):
        Plan.teams(1, 0)
