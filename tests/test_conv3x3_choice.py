"""Training's 3x3 convolutions where AMX multiplies: which way wins, and that it is kept."""

import pytest
import torch
import torch.nn.functional as F
from test_trainer_precision import CPU, OPTIONS

from autoguide_fast import cpu, kept_choices, ops
from autoguide_fast.nn import MPConv
from autoguide_fast.ops import conv3x3_choice
from autoguide_fast.ops.conv3x3_choice import LIBRARY, OURS
from autoguide_fast.trainer import precision

W = torch.zeros(16, 16, 3, 3)


def images(count=8, size=16, dtype=torch.bfloat16):
    x = torch.randn(count, 16, size, size, generator=torch.Generator().manual_seed(0))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    """As if this processor had AMX; nothing is known yet. Returns the raced shapes."""
    monkeypatch.setenv("AGF_AUTOTUNE", "1")
    monkeypatch.setenv("AGF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "has_tiles", lambda: True)
    types = cpu.native_types() | {torch.bfloat16}
    monkeypatch.setattr(cpu, "native_types", lambda: types)
    forget()
    yield
    forget()


def forget():
    kept_choices._used.clear()
    conv3x3_choice._chosen.cache_clear()


@pytest.fixture
def times(tiles, monkeypatch):
    """Sets what a race finds; returns the shapes that were raced."""
    raced = []

    def set_times(library, ours):
        def race(*shape):
            raced.append(shape[:4])
            return {LIBRARY: [library], OURS: [ours]}

        monkeypatch.setattr(conv3x3_choice, "race", race)
        return raced

    return set_times


@pytest.mark.parametrize(
    ("library", "ours", "expected"), [(1, 2, False), (2, 1, True), (1, 0.97, False)]
)
def test_the_faster_way_is_taken_and_kept(times, library, ours, expected):
    raced = times(library, ours)
    assert ops.conv3x3_pays(images(), W) == expected
    assert ops.conv3x3_pays(images(20), W) == expected  # whatever the batch
    assert raced == [(16, 16, 16, 16)]
    forget()  # as another process
    raced = times(1 / library, 1 / ours)
    assert ops.conv3x3_pays(images(), W) == expected and len(raced) == 1
    assert ops.conv3x3_pays(images(32, 8), W) == (ours > library)  # another shape
    assert len(raced) == 2


@pytest.mark.parametrize("way", [OURS, LIBRARY])
def test_a_layer_computes_the_way_that_won(times, way):
    times(*((2, 1) if way == OURS else (1, 2)))
    layer = MPConv(16, 16, [3, 3]).train()
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    y = layer(images())
    weight = ops.mp_weight(layer.weight.detach().permute(0, 2, 3, 1), dtype=torch.bfloat16)
    weight = weight.permute(0, 3, 1, 2)
    expected = ops.conv3x3(images(), weight, False)
    assert torch.equal(y, expected) == (way == OURS)
    if way == LIBRARY:
        expected = F.conv2d(images().float(), weight.float(), padding=1).bfloat16()
        assert torch.equal(y, expected)


def test_the_library_serves_where_nothing_can_be_measured(times, monkeypatch, tmp_path):
    raced = times(2, 1)
    monkeypatch.setenv("AGF_AUTOTUNE", "0")
    assert not ops.conv3x3_pays(images(), W)
    monkeypatch.setenv("AGF_AUTOTUNE", "1")
    x, found = images(), []
    torch.func.vmap(lambda w: w.mul(found.append(ops.conv3x3_pays(x, W)) is None))(W)
    assert found == [False]
    compiled = torch.compile(lambda x: x + ops.conv3x3_pays(x, W), backend="eager", fullgraph=True)
    assert torch.equal(compiled(images()), images())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGF_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert not ops.conv3x3_pays(images(), W)
    assert raced == []


def test_what_is_not_multiplied_on_tiles_is_not_raced(times, monkeypatch):
    raced = times(1, 2)
    assert ops.conv3x3_pays(images(dtype=torch.float32), W)
    assert not ops.conv3x3_pays(images(1, 8), W)  # too few pixels for ours anyway
    monkeypatch.setattr(cpu, "has_tiles", lambda: False)
    assert ops.conv3x3_pays(images(), W)
    assert raced == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_race_leaves_no_trace(tiles, mode):
    state, before = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with mode(), torch.device("meta"):
            times = conv3x3_choice.race(16, 8, 8, 32, ops.conv3x3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(len(times[way]) == 1 and times[way][0] > 0 for way in (OURS, LIBRARY))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_with_a_race_in_it_is_no_measure(times, monkeypatch):
    """The race of types takes the time of a pass in which nothing else was measured."""
    times(1, 2)
    now, taken = 0.0, []

    def tick(device):
        nonlocal now
        now += 100.0 if conv3x3_choice.choices_made() != len(taken) else 1.0
        taken.extend([0] * (conv3x3_choice.choices_made() - len(taken)))
        return now

    monkeypatch.setattr(precision, "_now", tick)
    wide = {"channels": 16, "channels_per_head": 16}
    options = precision.dataclasses.replace(OPTIONS, **wide)
    passes = precision.evaluations(options, (8, 1, 10), CPU)
    assert passes["bf16"](16) == 1.0 and taken
