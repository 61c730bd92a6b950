"""The instruction set in use: one answer for all who ask, before and after it is set."""

import platform

import pytest
import torch
from nets import tiny

from autoguide_fast import cpu, ops, torch_functional
from autoguide_fast._C import Convolve, Storage
from autoguide_fast._extension import build_info
from autoguide_fast.engine import cache
from autoguide_fast.engine.prepared import Arena, PreparedNet
from autoguide_fast.networks import Precond
from conftest import _instructions

X86 = platform.machine() in ("x86_64", "AMD64")
TYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


def test_all_see_the_instruction_set_in_use(isa):
    assert cpu.isa() == build_info()["isa"] == isa
    assert cpu.has_bfloat16() == (isa in ("avx512_bf16", "amx"))
    assert cpu.has_tiles() == (isa == "amx")
    multiplies = cpu.has_bfloat16() or not X86
    sixteen = {torch.bfloat16} if X86 else {torch.bfloat16, torch.float16}
    assert cpu.native_types() == {torch.float32, torch.float64} | (sixteen if multiplies else set())
    for dtype in TYPES:
        assert torch_functional.widened(torch.ones(1, dtype=dtype)) == (
            dtype not in cpu.native_types()
        )
    # Tiles of 2x2 are of bfloat16 that is multiplied as such.
    x = torch.zeros(8, 16, 18, 18, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    # On AMX's tiles the library's serve, where nothing is measured.
    ours = multiplies and not cpu.has_tiles()
    assert ops.conv3x3_pays(x, torch.zeros(16, 16, 3, 3)) == ours
    assert cache._key(tiny(), None, torch.float32)[1] == isa


def test_convolutions_are_widened_as_the_instruction_set_in_use_needs(isa):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator)
        .bfloat16()
        .contiguous(memory_format=torch.channels_last)
        for shape in ((2, 16, 8, 8), (16, 16, 3, 3))
    )
    ways = [ops.conv3x3(x, weight, widen) for widen in (False, True)]
    assert not torch.equal(*ways)
    assert torch.equal(ops.conv3x3(x, weight), ways[torch.bfloat16 not in cpu.native_types()])


def test_engines_are_made_for_the_instruction_set_in_use(isa):
    """Convolutions of large maps leave int8 where bfloat16 is multiplied."""
    net = Precond(32, 1, 0, model_channels=32, channel_mult=[1], num_blocks=1, attn_resolutions=[])
    lowered = PreparedNet(net.eval(), torch.int8, Arena()).lowered
    read = [i.in_.storage for i in lowered.plan.instructions if isinstance(i, Convolve)]
    assert Storage.U8 in read or isa == "avx512_bf16"
    assert (Storage.BF16 in read) == (isa == "avx512_bf16")


def test_compiled_code_is_compiled_again(monkeypatch):
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph

    x = torch.zeros(4, 4, dtype=torch.bfloat16)
    compiled = torch.compile(torch_functional.linear, backend=backend, fullgraph=True)
    with torch.no_grad():
        for types in (TYPES, TYPES - {torch.bfloat16}, TYPES):
            monkeypatch.setattr(cpu, "_native_types", frozenset(types))
            assert torch.equal(compiled(x, x), x)
    casts = ["float" in str(graph.code) for graph in traced]
    assert casts == [False, True]


def test_an_instruction_set_that_is_not_there():
    before = cpu.isa(), cpu.native_types()
    with pytest.raises(ValueError, match="set_isa: isa must be one of"):
        cpu.set_isa("mmx")
    assert (cpu.isa(), cpu.native_types()) == before
    with _instructions("baseline"):
        assert cpu.isa() == "baseline"
    assert (cpu.isa(), cpu.native_types()) == before
