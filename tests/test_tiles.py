"""AMX's tiles: their plain C++ twin against Intel's pseudo-code, kernels on it, the hardware."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from references import textbook
from test_engine import NETS, evaluation, make_net
from test_engine_plan import case, convolve
from tolerances import ENGINE, relative_error

from autoguide_fast import Engine, cpu
from autoguide_fast._C import Convolve, Storage, Winograd, tile_product
from autoguide_fast._extension import build_info
from conftest import _instructions

ROOT = Path(__file__).resolve().parents[1]

TWIN = "amx_portable"
BITS = np.uint32
AMX = build_info()["amx"]
needs_amx = pytest.mark.skipif(AMX != "available", reason=f"AMX: {AMX}")


@pytest.fixture
def twin():
    with _instructions(TWIN):
        yield


def flushed(x):
    """Float32 of a sum in float64, by "round to nearest even", with denormals as signed zeros.

    What is below the least normal number even after rounding with any exponent is denormal.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(x, np.float64)
        small = np.abs(x) < 2.0**-126 - 2.0**-151
        return np.where(small, np.copysign(0, x), x).astype(np.float32)


def product(a, b, c):
    """TDPBF16PS of Intel's SDM, volume 2, where float64 holds each product and rounds no sum twice.

    `a [16, steps, 2]`, `b [steps, 16, 2]` and `c [16, 16]` float32, `a` and `b` of bfloat16.
    """
    a, b, c = (flushed(x).astype(np.float64) for x in (a, b, c))
    total = np.zeros((16, 16, 2), np.float32)
    with np.errstate(invalid="ignore"):
        for k in range(a.shape[1]):
            total = flushed(total + a[:, k, None] * b[k])
        both = flushed(total[..., 0].astype(np.float64) + total[..., 1])
        return flushed(c + both)


def bfloat16(bits):
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def run(isa, storage, a, b, c):
    if storage == Storage.BF16:
        a, b = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
    result = tile_product(isa, storage, a.tobytes(), b.tobytes(), c.tobytes())
    return np.frombuffer(result, c.dtype).reshape(16, 16)


def same(x, y):
    """Bit for bit; a NaN is any NaN, of which the pseudo-code does not tell the bits."""
    return np.array_equal(np.isnan(x), np.isnan(y)) and np.array_equal(
        x.view(BITS)[~np.isnan(x)], y.view(BITS)[~np.isnan(y)]
    )


# What random bits are drawn from: ordinary numbers; anything, infinities and NaN among it; numbers
# whose products and sums are about the least normal one; and about the greatest.
EXPONENTS = {"ordinary": (120, 134), "any": (0, 256), "least": (48, 80), "greatest": (184, 192)}


def draw(generator, kind, shape):
    low, high = EXPONENTS[kind]
    exponent = generator.integers(low, high, shape)
    rest = generator.integers(0, 2**16, shape)
    return bfloat16((rest & 0x807F) | exponent << 7)


def factors(kind, steps, seed=0):
    generator = np.random.default_rng(seed)
    a, b = (draw(generator, kind, shape) for shape in ((16, steps, 2), (steps, 16, 2)))
    c = draw(generator, "ordinary", (16, 16))
    if kind == "least":  # denormals and the least normal numbers
        c = bfloat16(generator.integers(0, 256, (16, 16)))
    return a, b, c


@pytest.mark.parametrize("steps", [1, 5, 16])
@pytest.mark.parametrize("kind", EXPONENTS)
def test_the_twin_is_the_pseudo_code(kind, steps):
    for seed in range(4):
        a, b, c = factors(kind, steps, seed)
        assert same(run(TWIN, Storage.BF16, a, b, c), product(a, b, c))


def test_denormals_infinities_and_signs():
    """By hand: one product, or two, in the first place."""

    def first(pairs, start=0.0):
        a, b = np.zeros((16, 2, 2), np.float32), np.zeros((2, 16, 2), np.float32)
        c = np.zeros((16, 16), np.float32)
        c[0, 0] = start
        for k, (x, y) in enumerate(pairs):
            a[0, k // 2, k % 2], b[k // 2, 0, k % 2] = x, y
        return run(TWIN, Storage.BF16, a, b, c)[0, 0]

    assert first([(1.5, 2), (-0.25, 4)]) == 2
    assert first([(2.0**-127, 2.0**100)]) == 0  # a denormal factor
    assert first([(2.0**-64, 2.0**-63)]) == 0  # a denormal product
    assert first([(2.0**-63, 2.0**-63)]) == 2.0**-126
    assert first([], 2.0**-130) == 0  # a denormal sum
    # 2^-126 less 2^-152 rounds to 2^-126, less 2^-150 to a denormal number.
    assert first([(2.0**-63, 2.0**-63), (0, 0), (-(2.0**-76), 2.0**-76)]) == 2.0**-126
    assert first([(2.0**-63, 2.0**-63), (0, 0), (-(2.0**-75), 2.0**-75)]) == 0
    # One rounding for product and sum: 1 + 2^-24 is a tie, and 2^-30 more is not.
    near = float(bfloat16(0x3F81))  # 1 + 2^-7
    assert first([(1, 1), (0, 0), (2.0**-24, near)]) == 1 + 2.0**-23
    assert first([(1, 1), (0, 0), (2.0**-24, 1)]) == 1
    # Firsts and seconds of the pairs are summed by themselves.
    assert first([(1, 1), (2.0**-24, 1), (0, 0), (2.0**-24, 1)]) == 1 + 2.0**-23
    assert first([(np.inf, 1)]) == np.inf and first([(-3e38, 3e38)]) == -np.inf
    assert np.isnan(first([(np.inf, 0)])) and np.isnan(first([(np.inf, 1), (-np.inf, 1)]))


@pytest.mark.parametrize("steps", [1, 7, 16])
def test_bytes_are_exact(steps):
    generator = np.random.default_rng(0)
    a = generator.integers(0, 256, (16, 4 * steps)).astype(np.uint8)
    b = generator.integers(-128, 128, (steps, 16, 4)).astype(np.int8)
    c = generator.integers(-(2**30), 2**30, (16, 16)).astype(np.int32)
    expected = c + a.astype(np.int32) @ b.transpose(0, 2, 1).reshape(4 * steps, 16).astype(np.int32)
    assert np.array_equal(run(TWIN, Storage.U8, a, b, c), expected)


@needs_amx
def test_the_hardware_is_the_twin():
    """Bit for bit; reported, and no failure, where only the order of a sum is another."""
    others = []
    for kind, steps, seed in itertools.product(EXPONENTS, (1, 5, 16), range(20)):
        a, b, c = factors(kind, steps, seed)
        hardware, twin = (run(isa, Storage.BF16, a, b, c) for isa in ("amx", TWIN))
        if not same(hardware, twin):
            others.append((kind, steps))
            if kind == "ordinary":
                exact = c + np.einsum("mkp,knp->mn", a.astype(np.float64), b)
                bound = np.abs(c) + np.einsum(
                    "mkp,knp->mn", *(np.abs(x, dtype="d") for x in (a, b))
                )
                assert (np.abs(hardware - exact) <= 2.0**-20 * bound).all(), (kind, steps)
    if others:
        pytest.xfail(f"this processor rounds otherwise than Intel's pseudo-code: {others}")


@needs_amx
def test_convolutions_on_the_hardware_are_the_twins():
    """But for the last bits, which are of what follows the products."""
    for size, kernel, storage in itertools.product((8, 16), (1, 3), (Storage.BF16, Storage.U8)):
        x, weight = case(63, size, 2, kernel)
        results = []
        for isa in ("amx", TWIN):
            with _instructions(isa):
                results.append(convolve(x, weight, storage))
        assert relative_error(*results) < 1e-6, (size, kernel, storage)


def test_bad_tiles():
    good = b"\0" * 1024
    with pytest.raises(ValueError, match="tile_product: isa must be amx where"):
        tile_product("baseline", Storage.BF16, good, good, good)
    with pytest.raises(ValueError, match="tile_product: isa must be one of"):
        tile_product("mmx", Storage.BF16, good, good, good)
    for a, b, c in ((good, good, good[1:]), (good, good[1:], good), (b"", b"", good)):
        with pytest.raises(ValueError, match="tile_product: a, b and c must be"):
            tile_product(TWIN, Storage.BF16, a, b, c)
    with pytest.raises(ValueError, match="tile_product: a, b and c must be"):
        tile_product(TWIN, Storage.F32, good, good, good)


def test_the_twin_is_chosen_by_none(twin):
    assert build_info()["isa"] == cpu.isa() == TWIN not in build_info()["isa_available"]
    assert cpu.has_tiles() and not cpu.has_bfloat16()


# Channels, one less than a map's: runs of bytes that are whole tiles or not; widths whose lines
# are whole tiles, that share tiles, and maps with less than one.
SHAPES = [(15, 1, 1), (15, 2, 3), (47, 4, 2), (79, 7, 1), (31, 8, 3), (15, 16, 2), (63, 17, 1)]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels, size, images", [*SHAPES, (31, 32, 1), (15, 64, 1)])
def test_convolution_in_bfloat16(channels, size, images, kernel, twin):
    x, weight = (t.bfloat16().float() for t in case(channels, size, images, kernel))
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    for threads in (1, 2, 3) if size < 32 else (1,):
        result = convolve(x, weight, Storage.BF16, threads=threads)
        assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels, size, images", [*SHAPES, (31, 32, 1)])
def test_convolution_in_int8_is_exact(channels, size, images, kernel, twin):
    low, high = -8.0, 8.0 - 16 / 256
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-100, 100, (images, channels, size, size), generator=generator)
    x = x * ((high - low) / 255)
    weight = torch.randint(-127, 128, (channels, channels, kernel, kernel), generator=generator)
    weight = weight.float()
    weight[:, 0, 0, 0] = 127  # so that the scale of every output is 1
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    for threads in (1, 2, 3) if size < 32 else (1,):
        result = convolve(x, weight, Storage.U8, (low, high), threads)
        assert relative_error(result, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", ["odd_widths", "winograd", "tiny_map"])
def test_nets(name, dtype, twin):
    net = NETS[name]()
    prepared = Engine(net, dtype=dtype).model
    before = torch.get_num_threads()
    for batch, threads in ((1, 1), (3, 2)):
        arguments = evaluation(net, batch)
        torch.set_num_threads(threads)
        result = prepared(*arguments)
        torch.set_num_threads(before)
        assert relative_error(result, textbook(net)(*arguments)) < ENGINE[dtype]
    with _instructions("baseline"):  # the same plan, with sums in another order
        error = relative_error(prepared(*arguments), result)
    assert error < ENGINE[dtype] and (error > 0 or dtype == torch.int8)


@pytest.mark.parametrize("head_channels", [16, 24, 64])  # one, two and four panels of values
def test_attention_in_bfloat16(head_channels, twin):
    """Of 144 and 16 pixels, which are whole tiles, and of 36, which are not."""
    for size, levels in ((12, [12, 6]), (4, [4])):
        options = {"channels_per_head": head_channels, "attn_balance": 0.9, "channel_mult": [1] * 2}
        net = make_net(head_channels, size=size, attn_resolutions=levels, **options)
        arguments = evaluation(net, 2)
        expected = textbook(net)(*arguments)
        prepared = Engine(net, dtype=torch.bfloat16).model
        error = relative_error(prepared(*arguments), expected)
        with _instructions("baseline"):  # which multiplies in float32
            assert error < 1.5 * relative_error(prepared(*arguments), expected)


def test_plans_for_tiles_are_direct(twin):
    plan = Engine(NETS["winograd"](), dtype=torch.bfloat16).model.lowered.plan
    algorithms = {i.winograd for i in plan.instructions if isinstance(i, Convolve)}
    assert algorithms == {Winograd.DIRECT}
    plan = Engine(NETS["winograd"]()).model.lowered.plan
    assert Winograd.F4X4 in {i.winograd for i in plan.instructions if isinstance(i, Convolve)}


@pytest.mark.filterwarnings("ignore:Unknown pytest.mark.long")  # known to the benchmarks
def test_the_race_of_instruction_sets_runs(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ceilings
    import instruction_sets

    monkeypatch.setattr(ceilings, "arithmetic", lambda dtype: None)  # takes long
    before = cpu.isa()
    instruction_sets.main(["digits", "--batch", "1", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    kinds = ["bfloat16", "int8"]
    ways = 2 + (AMX == "available")
    engines, training = lines[2 : 2 + ways * len(kinds)], lines[2 + ways * len(kinds) :]
    assert [line.split()[2] for line in engines] == [kind for kind in kinds for _ in range(ways)]
    assert all(float(line.split()[-3]) > 0 for line in engines) and cpu.isa() == before
    rows = [line.split() for line in training[2:5]]
    assert [row[2] for row in rows] == ["float32", "bfloat16", "auto"]
    assert rows[2][3] in {row[3] for row in rows[:2]} and float(rows[2][3]) > 0
    assert rows[2][4] in ("float32,", "bfloat16,") and "measured" in training[5]


def test_the_embedding_is_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import embedding

    before = torch.get_num_threads()
    embedding.main(["digits", "--batch", "2", "--rounds", "1"])
    torch.set_num_threads(before)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["digits", "2", t] for t in ("float32", "bfloat16")]
    assert all(0 < float(row[-1].rstrip("%")) < 100 for row in rows)
