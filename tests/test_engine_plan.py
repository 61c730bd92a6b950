"""Plans of a few instructions: each product against the sum that defines it, and bad plans."""

import copy
import itertools
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tolerances import relative_error

from autoguide_fast import cpu
from autoguide_fast._C import (
    Attend,
    BlockPrologue,
    Convolve,
    Load,
    Map,
    Plan,
    Resample,
    SplitHeads,
    Storage,
    Store,
    Winograd,
    winograd_weight_matrix,
)
from autoguide_fast.engine import arena, pack
from autoguide_fast.engine.algorithms import Algorithm, Choice, static_choice
from autoguide_fast.engine.plan_writer import PlanWriter


def convolve(x, weight, storage=Storage.F32, clip=(-8.0, 8.0), threads=1, mixed=False):
    """The plan load, copy, convolve, store on images of 15 channels or more."""
    images, channels, size, _ = x.shape
    reader = torch.nn.Module()
    reader.weight = F.pad(weight, (0, 0, 0, 0, 0, 1))  # nothing of the plane of ones
    chosen = Algorithm(Storage.BF16, Winograd.F4X4)
    choose = (lambda c: Choice(chosen, "asked for")) if mixed else static_choice
    writer = PlanWriter(storage, {reader: clip}, choose)
    image = writer.map(size, (channels + 1,))
    writer.add(Load, "load", out=image, image_channels=channels)
    padded = writer.map(size, image.runs, border=1, reader=reader)
    writer.add(BlockPrologue, "copy", x=image, raw=padded)
    out = writer.map(size, (channels,))
    writer.convolve("conv", reader.weight, padded, out=out)
    writer.add(Store, "store", in_=out, image_channels=channels)
    lowered = writer.finish(SimpleNamespace(img_resolution=size, img_channels=channels))
    arena = torch.empty(
        lowered.plan.arena_bytes(images=images, threads=threads, chunk=images), dtype=torch.uint8
    ).fill_(0xFF)  # NaN wherever nothing was written
    result = torch.empty_like(x)
    torch.ops.autoguide_fast.evaluate(
        lowered.plan.number,
        x,
        1.0,
        lowered.weights,
        torch.empty(1, 0),
        arena,
        result,
        threads,
        images,
        None,
    )
    return result


def case(channels, size, images, kernel=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, size, size, generator=generator)
    weight = torch.randn(channels, channels, kernel, kernel, generator=generator)
    return x, weight / (channels * kernel**2) ** 0.5


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels, size, images", [(15, 1, 1), (15, 5, 3), (47, 3, 2), (63, 8, 1)])
def test_direct_convolution(channels, size, images, kernel, threads, isa):
    x, weight = case(channels, size, images, kernel)
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    assert relative_error(convolve(x, weight, threads=threads), expected) < 2e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "channels, size, images", [(31, 12, 1), (63, 16, 2), (95, 8, 7), (159, 8, 1)]
)
def test_winograd_convolution(channels, size, images, threads, isa):
    x, weight = case(channels, size, images)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    result = convolve(x, weight, threads=threads)
    assert relative_error(result, expected) < 5e-6
    direct = F.conv2d(x, weight, padding=1)
    error = (result - expected).std()
    assert error < 6 * (direct - expected).std()


@pytest.mark.parametrize("storage", [Storage.F32, Storage.BF16, Storage.U8])
@pytest.mark.parametrize("size, kernel", [(4, 1), (4, 3), (8, 3)])
def test_threads_that_share_pixels_and_channels(size, kernel, storage, isa):
    x, weight = case(95, size, 1, kernel)
    expected = convolve(x, weight, storage)
    assert torch.equal(convolve(x, weight, storage, threads=12), expected)


@pytest.mark.parametrize("kernel", [1, 3])
def test_int8_convolution_is_exact(kernel, isa):
    """Integers that int8 holds exactly give the exact sum."""
    generator = torch.Generator().manual_seed(0)
    low, high = -8.0, 8.0 - 16 / 256
    scale = (high - low) / 255
    x = torch.randint(-100, 100, (2, 15, 6, 6), generator=generator) * scale
    weight = torch.randint(-127, 128, (15, 15, kernel, kernel), generator=generator).float()
    weight[:, 0, 0, 0] = 127  # so that the scale of every output is 1
    result = convolve(x, weight, Storage.U8, (low, high))
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    assert relative_error(result, expected) < 1e-6


def test_int8_range_is_clipped(isa):
    weight = torch.eye(15)[:, :, None, None]
    x = torch.linspace(-20, 20, 15 * 64).reshape(1, 15, 8, 8)
    result = convolve(x, weight, Storage.U8)
    assert (result - x.clamp(-8, 8)).abs().max() < 16 / 255
    assert result.min() < -7.9 and result.max() > 7.9


def test_bfloat16_convolution(isa):
    x, weight = (t.bfloat16().float() for t in case(31, 5, 2))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative_error(convolve(x, weight, Storage.BF16), expected) < 1e-6


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels, size, images", [(31, 2, 1), (63, 6, 3), (95, 32, 1)])
def test_bfloat16_winograd_is_exact_on_small_integers(channels, size, images, threads, isa):
    """Transforms of integers up to 4, and of weights that 4 divides, lose nothing in bf16."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, (images, channels, size, size), generator=generator).float()
    weight = 4.0 * torch.randint(-2, 3, (channels, channels, 3, 3), generator=generator)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative_error(convolve(x, weight, Storage.BF16, threads=threads), expected) < 1e-6


def test_bfloat16_winograd_costs_less_than_two_roundings(isa):
    x, weight = case(63, 16, 1)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    once = F.conv2d(x.bfloat16().double(), weight.bfloat16().double(), padding=1)
    error = (convolve(x, weight, Storage.BF16) - expected).std()
    assert error < 2 * (once - expected).std()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("channels, images", [(47, 1), (63, 3), (95, 1)])
def test_large_tiles_cost_less_than_int8(channels, images, threads, isa):
    x, weight = case(channels, 32, images)
    x = F.silu(x) / 0.596  # as in a block
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    once = F.conv2d(x.bfloat16().double(), weight.bfloat16().double(), padding=1)
    clip = x.min().item(), x.max().item()
    error, of_int8 = (
        (convolve(x, weight, Storage.U8, clip, threads, mixed) - expected).std()
        for mixed in (True, False)
    )
    assert error < of_int8
    roundings = error / (once - expected).std()
    assert roundings < 6 and (roundings > 2) != cpu.has_tiles()  # AMX's are direct


@pytest.mark.parametrize("tile", [2, 4])
def test_weight_matrix(tile):
    """Its rows are 1, p and p^2 at points p, each up to a factor, and the last p^2 for infinity."""
    *rows, last = torch.tensor(winograd_weight_matrix(tile), dtype=torch.float64)
    assert len(rows) == tile + 1 and torch.equal(last, last.new_tensor([0, 0, 1]))
    points = [row[1] / row[0] for row in rows]
    assert len({p.item() for p in points}) == tile + 1
    for row, p in zip(rows, points, strict=True):
        torch.testing.assert_close(row, row[0] * torch.stack([p**0, p, p**2]), rtol=1e-15, atol=0)


def test_weight_matrix_of_another_tile():
    with pytest.raises(ValueError, match="winograd_weight_matrix: tile must be 2 or 4, got 3"):
        winograd_weight_matrix(3)


def test_quantised_weights():
    weight = torch.randn(16, 16, 9)
    weight[3] = 0
    integers, (scale, shift) = pack.quantised(weight, 10)
    assert integers.abs().max() == 127
    assert ((integers * scale[:, None, None] - weight).abs() <= scale[:, None, None] / 2).all()
    assert torch.equal(shift, 10 * integers.sum(dim=(1, 2)))


@pytest.mark.parametrize("seed", range(20))
def test_places_do_not_overlap(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 5000, (40,), generator=generator).tolist()
    spans = [sorted(s) for s in torch.randint(0, 60, (40, 2), generator=generator).tolist()]
    blocks = [(size, *span) for size, span in zip(sizes, spans, strict=True)]
    offsets, total = arena.place(blocks)
    placed = list(zip(blocks, offsets, strict=True))
    for (size, first, last), offset in placed:
        assert offset % arena.ALIGNMENT == 0 and offset + size <= total
        assert first <= last
    for ((size, first, last), offset), (
        (other_size, other_first, other_last),
        other,
    ) in itertools.combinations(placed, 2):
        alive_together = first <= other_last and other_first <= last
        assert not alive_together or offset + size <= other or other + other_size <= offset
    alive = max(sum(s for s, first, last in blocks if first <= i <= last) for i in range(60))
    assert total <= 1.5 * alive + 64 * 40


def make_plan(image_bytes=4096, weight_bytes=16 * 16 * 4):
    return Plan(
        resolution=2,
        image_channels=3,
        image_bytes=image_bytes,
        weight_bytes=weight_bytes,
        modulations=0,
    )


def make_map(**options):
    return Map(**{"offset": 0, "height": 2, "width": 2, "channels": 16, **options})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"out": {"offset": 4096}}, "within the image's part"),
        ({"out": {"offset": 8}}, "multiple of 64 bytes"),
        ({"out": {"channels": 20}}, "multiple of 16 channels"),
        ({"out": {"height": 4}}, "maps of a convolution must be of one size"),
        ({"out": {"channels": 32}}, "within the packed weights"),
        ({"taps": 9}, "9 and a border"),
        ({"in_channels": 17}, "1 tap, or 9"),
        ({"in_": {"storage": Storage.U8}}, "maps of u8 need scales"),
        ({"winograd": Winograd.F4X4}, "Winograd needs 9 taps"),
        ({"winograd": Winograd(3)}, "Winograd needs 9 taps"),
        ({"in_": {"storage": Storage(3)}}, "a storage type that the instruction can read"),
        ({"modulation": 0}, "a modulation must be one of the plan's"),
        ({"weights": 64}, "within the packed weights"),
    ],
)
def test_bad_instruction(change, message):
    arguments = {"in_": {}, "out": {"offset": 1024}, "weights": 0, "taps": 1, "in_channels": 16}
    for name, value in change.items():
        arguments[name] = {**arguments[name], **value} if isinstance(value, dict) else value
    arguments = {k: make_map(**v) if isinstance(v, dict) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=f"Plan: .*{message}"):
        make_plan().add(Convolve(**arguments))


def evaluate(plan, **changes):
    arguments = {
        "x": torch.zeros(1, 3, 2, 2),
        "c_in": 1.0,
        "weights": torch.zeros(1024, dtype=torch.uint8),
        "modulations": torch.zeros(1, 0),
        "arena": torch.zeros(8192, dtype=torch.uint8),
        "result": torch.zeros(1, 3, 2, 2),
        "threads": 1,
        "chunk": 1,
        "times": None,
    }
    torch.ops.autoguide_fast.evaluate(plan, **{**arguments, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": torch.zeros(1, 3, 4, 4)}, "x must be images of the plan's size, got"),
        ({"x": torch.zeros(3, 2, 2)}, "x must be an image batch"),
        ({"x": torch.zeros(1, 3, 2, 2).half()}, "x must be float32 or float64 images"),
        ({"result": torch.zeros(2, 3, 2, 2)}, "result must be contiguous float32"),
        ({"weights": torch.zeros(64, dtype=torch.uint8)}, "weights must be the plan's, .* got 64"),
        ({"modulations": torch.zeros(1, 5)}, "modulations must be float32"),
        ({"arena": torch.zeros(64, dtype=torch.uint8)}, "arena must have 4096 bytes .* got 64"),
        ({"threads": 0}, "threads must be positive"),
        ({"chunk": 0}, "chunk must be positive"),
        ({"times": torch.zeros(3)}, "times must be float64"),
    ],
)
def test_bad_evaluation(changes, message):
    plan = make_plan()
    plan.add(Load(out=make_map(), image_channels=3))
    evaluate(plan.number)
    with pytest.raises(RuntimeError, match=f"evaluate: {message}"):
        evaluate(plan.number, **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"slope": torch.zeros(1, 3, 2, 4)}, "slope must have the shape of x"),
        ({"out": torch.zeros(1, 3, 2, 2).double()}, "out must have the dtype of x"),
        ({"x": torch.zeros(1, 2, 2, 3).movedim(3, 1)}, "x must be contiguous"),
        ({"plans": []}, "plans must be those of a model or of a model and its guide, got 0"),
        (
            {"chunks": [1, 1]},
            "weights, modulations, raws and chunks must be one for each of 1 plans",
        ),
        ({"raws": []}, "weights, modulations, raws and chunks must be .*, got 1, 1, 0 and 1"),
        ({"raws": [torch.zeros(3)]}, "result must be contiguous float32"),
    ],
)
def test_bad_half_step(changes, message):
    plan = make_plan()
    plan.add(Load(out=make_map(), image_channels=3))
    plan.add(Store(in_=make_map(), image_channels=3))
    images = {name: torch.ones(1, 3, 2, 2) for name in ("x", "slope", "out")}
    arguments = {
        "plans": [plan.number],
        "weights": [torch.zeros(1024, dtype=torch.uint8)],
        "modulations": [torch.zeros(1, 0)],
        "raws": [torch.ones(1, 3, 2, 2)],
        "chunks": [1],
        "arena": torch.zeros(8192, dtype=torch.uint8),
        "threads": 1,
        "x_next": None,
        "c_in": 1.0,
        "sigma": 2.0,
        "sigma_next": 1.0,
        "guidance": 1.0,
        "sigma_data": 0.5,
        **images,
    }
    torch.ops.autoguide_fast.guided_half_step(**arguments)
    # This plan returns its input: D = c_skip x + c_out x, EDM table 1.
    total = 2.0**2 + 0.5**2
    slope = (1 - 0.5**2 / total - 2 * 0.5 / total**0.5) / 2
    torch.testing.assert_close(images["slope"], torch.full((1, 3, 2, 2), slope))
    torch.testing.assert_close(images["out"], torch.full((1, 3, 2, 2), 1 - slope))
    with pytest.raises(RuntimeError, match=f"guided_half_step: {message}"):
        torch.ops.autoguide_fast.guided_half_step(**{**arguments, **changes})


INSTRUCTIONS = [
    Load(out=make_map(), image_channels=3),
    BlockPrologue(
        x=make_map(),
        act=make_map(offset=1024, height=1, width=1, storage=Storage.BF16),
        resample=Resample.DOWN,
        weight=0.5,
        normalised=12,
    ),
    Convolve(
        in_=make_map(storage=Storage.U8, scale=0.5, zero=3),
        out=make_map(offset=1024),
        taps=1,
        in_channels=16,
        weights=0,
        dequantise=64,
        limit=2.0,
    ),
    SplitHeads(
        qkv=make_map(channels=48),
        heads=1,
        head_channels=8,
        head_stride=16,
        q=1024,
        k=2048,
        v=3072,
        pixels_stride=16,
    ),
    Store(in_=make_map(), image_channels=3),
]
INSTRUCTIONS.append(Attend(from_=INSTRUCTIONS[3], out=make_map()))


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=lambda i: type(i).__name__)
def test_instruction_is_its_fields(instruction):
    """As it was given, in a plan, copied, pickled, and printed."""
    names = [n for n in dir(instruction) if not n.startswith("_") and not n.endswith("_bytes")]
    fields = {name: getattr(instruction, name) for name in names}
    text = repr(instruction)
    assert all(f"{name}=" in text for name in names)
    plan = make_plan()
    plan.add(instruction)
    for again in (
        type(instruction)(**fields),
        copy.deepcopy(instruction),
        pickle.loads(pickle.dumps(instruction)),
        plan.instructions[0],
        copy.copy(plan).instructions[0],
        pickle.loads(pickle.dumps(plan)).instructions[0],
    ):
        assert type(again) is type(instruction)
        assert repr(again) == text


def test_each_field_is_set_by_its_name():
    """No two fields of one type change places."""
    given = {"offset": 64, "height": 2, "width": 3, "channels": 16, "border": 1, "zero": 7.0}
    made = Map(**given, storage=Storage.U8, scale=0.5)
    assert {name: getattr(made, name) for name in given} == given
    assert (made.storage, made.scale, made.bytes) == (Storage.U8, 0.5, 4 * 5 * 16)
    counts = {"taps": 9, "in_channels": 4, "weights": 64, "dequantise": 128, "modulation": 32}
    maps = {name: make_map(offset=64 * i) for i, name in enumerate(("in_", "sum", "out", "act"))}
    numbers = {"sum_weight": 0.25, "limit": 8.0}
    made = Convolve(**counts, **maps, **numbers, winograd=Winograd.F2X2)
    for name, value in (counts | numbers).items():
        assert getattr(made, name) == value
    for name, value in maps.items():
        assert getattr(made, name).offset == value.offset
    assert made.winograd == Winograd.F2X2
    assert not Convolve(in_=make_map(), taps=1, in_channels=4, weights=0).sum


@pytest.mark.parametrize(
    "change", [{"tap": 9}, {"taps": 9.5}, {"in_": None}, {"winograd": 4}, {"weights": ...}]
)
def test_bad_fields(change):
    fields = {"in_": make_map(), "taps": 1, "in_channels": 16, "weights": 0} | change
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        Convolve(**{name: value for name, value in fields.items() if value is not ...})
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        Store(make_map(), 3)


def test_bad_resample():
    prologue = BlockPrologue(x=make_map(), raw=make_map(offset=1024), resample=Resample(2))
    with pytest.raises(ValueError, match="Plan: a block is resampled down, up or not"):
        make_plan().add(prologue)


@pytest.mark.parametrize(
    "images, threads", [(1, 1), (1, 3), (2, 3), (4, 6), (5, 2), (12, 3), (0, 2)]
)
@pytest.mark.parametrize("chunk", [1, 2])
def test_arena_is_as_large_as_it_says(images, threads, chunk):
    plan = make_plan()
    plan.add(Load(out=make_map(), image_channels=3))
    plan.add(BlockPrologue(x=make_map(), raw=make_map(offset=1024)))
    assert plan.scratch_bytes == 64
    size = plan.arena_bytes(images=images, threads=threads, chunk=chunk)
    x = torch.zeros(images, 3, 2, 2)
    arguments = {"x": x, "result": torch.empty_like(x), "threads": threads, "chunk": chunk}
    evaluate(plan.number, arena=torch.zeros(size, dtype=torch.uint8), **arguments)
    with pytest.raises(RuntimeError, match=f"evaluate: arena must have {size} bytes"):
        evaluate(plan.number, arena=torch.zeros(size - 1, dtype=torch.uint8), **arguments)


def test_bad_threads():
    with pytest.raises(ValueError, match=r"Plan.arena_bytes: threads must be positive, got 0"):
        make_plan().arena_bytes(images=0, threads=0, chunk=1)


def test_plan_lives_as_long_as_its_owner():
    plan = make_plan()
    plan.add(Load(out=make_map(), image_channels=3))
    number = plan.number
    with pytest.raises(RuntimeError, match="Plan: a plan that runs cannot grow"):
        plan.add(Load(out=make_map(), image_channels=3))
    del plan
    with pytest.raises(RuntimeError, match="evaluate: plan must be alive"):
        evaluate(number)
