"""Guides from the model's own weights: the same on every way, exact against the textbook."""

import copy
import warnings

import pytest
import torch
from nets import tiny
from references import assert_denoised
from tape import Tape
from tolerances import BAKED, ENGINE, relative_error

import autoguide_fast
from autoguide_fast import Engine, load, sample, unlabelled
from autoguide_fast.engine.cpu_engine import CpuEngine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.engine.joint import common_plan
from autoguide_fast.guidance import APG, weakened
from autoguide_fast.textbook import TextbookPrecond

X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(3))
SIGMA, LABELS = torch.tensor(1.3), torch.eye(5)[[3, 1, 4]]
BLOCKS = {
    "encoder": "enc.8x8_block0",
    "down": "enc.4x4_down",
    "wider": "enc.4x4_block0",
    "inner": "dec.4x4_in0",
    "decoder": "dec.4x4_block1",
    "up": "dec.8x8_up",
}
WAYS = {name: {"left_out": [block]} for name, block in BLOCKS.items()}
WAYS |= {
    "two": {"left_out": [BLOCKS["encoder"], BLOCKS["decoder"]]},
    "identity": {"attn_temperature": 0},
    "smooth": {"attn_temperature": 3.0},
    "average": {"attn_temperature": 1e6},
    "both": {"attn_temperature": 2.0, "left_out": [BLOCKS["up"]]},
}


@pytest.fixture(scope="module")
def net():
    return tiny()


@pytest.mark.parametrize("way", WAYS)
def test_networks(net, way):
    guide = weakened(net, **WAYS[way])
    assert_denoised(guide(X, SIGMA, LABELS), guide, X, SIGMA, LABELS)
    assert relative_error(guide(X, SIGMA, LABELS), net(X, SIGMA, LABELS)) > 1e-3


IN_ENGINES = [(way, torch.float32) for way in WAYS]
for narrow in (torch.bfloat16, torch.int8):
    IN_ENGINES += [(way, narrow) for way in ("encoder", "decoder", "identity", "smooth")]


@pytest.mark.parametrize(("way", "dtype"), IN_ENGINES, ids=str)
def test_engine(net, way, dtype, isa):
    guide = weakened(net, **WAYS[way])
    exact = TextbookPrecond(copy.deepcopy(guide).double())(X, SIGMA, LABELS)
    with torch.no_grad():
        found = Engine(net, guide, dtype).guide(X, SIGMA, LABELS)
    assert relative_error(found, exact) < ENGINE[dtype]


@pytest.mark.parametrize("dtype", list(BAKED)[:2], ids=str)
@pytest.mark.parametrize("way", ["decoder", "identity", "smooth"])
def test_gpu_engine(net, way, dtype):
    guide = weakened(net, **WAYS[way])
    exact = TextbookPrecond(copy.deepcopy(guide).double())(X, SIGMA, LABELS)
    engine = GpuEngine(net, guide, dtype, recorder=Tape())
    assert relative_error(engine.guide(X, SIGMA, LABELS), exact) < BAKED[dtype]


def test_what_the_options_mean(net):
    """Attention by hand: what each pixel attends to."""
    from autoguide_fast import ops

    block = weakened(net, attn_temperature=0).unet.dec["4x4_in0"]
    x = torch.randn(2, block.conv_res1.out_channels, 4, 4)
    _, _, v = ops.attention_split(block.attn_qkv(x), block.num_heads)
    uniform = v.mean(2, keepdim=True).expand_as(v)
    for temperature, expected in ((0, v), (1e9, uniform)):
        other = weakened(net, attn_temperature=temperature).unet.dec["4x4_in0"]
        values = expected.transpose(1, 2).reshape(2, 4, 4, -1).permute(0, 3, 1, 2)
        torch.testing.assert_close(other._attend(x), block.attn_proj(values))
    left = weakened(net, left_out=["dec.4x4_in1"]).unet.dec["4x4_in1"]
    assert left(x, torch.ones(1, x.shape[1])) is x


def test_sampling(net):
    """Guided by itself without a block: in the engine as everywhere, without a warning."""
    guide = weakened(net, left_out=[BLOCKS["decoder"]])
    options = {"seeds": range(3), "num_steps": 5, "class_labels": LABELS, "guidance": 1.7}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sample(net, guide, **options)
    eager = sample(
        lambda *given: net(*given),
        lambda *given: guide(*given),
        noise=autoguide_fast.seeds.StackedRandom("cpu", range(3)).randn([2, 8, 8]),
        num_steps=5,
        class_labels=LABELS,
        guidance=1.7,
    )
    assert relative_error(found, eager) < 2e-4
    assert relative_error(found, sample(net, **options | {"guidance": 1.0})) > 1e-3
    assert relative_error(sample(net, unlabelled(guide), **options), found) > 1e-3


def test_weights_are_shared_and_files_hold_it(net, tmp_path):
    guide = weakened(net, left_out=["dec.8x8_up"], attn_temperature=2)
    for name, weight in net.named_parameters():
        assert guide.get_parameter(name) is weight
    assert "left_out" not in net.config and guide.config["left_out"] == ["dec.8x8_up"]
    autoguide_fast.checkpoints.save(guide, tmp_path / "weak.safetensors")
    again = load(tmp_path / "weak.safetensors")
    torch.testing.assert_close(again(X, SIGMA, LABELS), guide(X, SIGMA, LABELS))
    assert again.config == guide.config
    strong = weakened(guide, left_out=[BLOCKS["inner"]])
    assert strong.config["left_out"] == [BLOCKS["inner"]]


def test_gradients(net):
    guide = weakened(net, left_out=[BLOCKS["inner"]], attn_temperature=2)
    x = X.clone().requires_grad_()
    judge = TextbookPrecond(guide)
    for denoiser in (guide, judge):
        denoiser(x, SIGMA, LABELS).square().sum().backward()
    assert x.grad.isfinite().all()
    one, two = (
        torch.autograd.grad(d(x, SIGMA, LABELS).square().sum(), x)[0] for d in (guide, judge)
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    net.zero_grad()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "left_out or attn_temperature must weaken the net"),
        ({"left_out": ["dec.8x8_block1"]}, "left_out must name blocks but the last"),
        (
            {"left_out": ["8x8_block0"]},
            r"got \['8x8_block0'\]; the net has enc.8x8_block0, enc.4x4",
        ),
        ({"left_out": [3]}, "left_out must be a list of blocks' names"),
        ({"attn_temperature": 0.5}, "attn_temperature must be 0, or 1 or more"),
        ({"attn_temperature": float("inf")}, "attn_temperature must be 0, or 1 or more"),
    ],
)
def test_bad_options(net, options, message):
    with pytest.raises(ValueError, match=message):
        weakened(net, **options)
    with pytest.raises(TypeError, match="weakened: net must be a Precond, got Unlabelled"):
        weakened(unlabelled(net), attn_temperature=0)


def shared(net, way):
    """The engine of a net and its weakened guide, and the share of the guide that runs with it."""
    guide = weakened(net, **WAYS[way])
    engine = CpuEngine(net, guide)
    alone = CpuEngine(net, copy.deepcopy(guide))  # whose tensors are others
    assert not alone.joint and list(engine.joint) == ["guide"]
    _, saved = common_plan(engine.model.lowered, engine.guides[0].lowered)
    return engine, alone, saved


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("guidance", [1.7, APG(1.7, momentum=0)])
def test_what_both_have_in_common_runs_once(net, way, guidance):
    """The same numbers as from two nets, bit for bit, and as many results where a guide is off."""
    engine, alone, saved = shared(net, way)
    options = {"seeds": range(3), "num_steps": 4, "class_labels": LABELS, "guidance": guidance}
    assert torch.equal(sample(engine, **options), sample(alone, **options))
    assert 0 < saved < 1
    joint, (model, guide) = (
        engine.joint["guide"].lowered,
        (
            engine.model.lowered,
            engine.guides[0].lowered,
        ),
    )
    assert joint.weights is model.weights  # which are all that the guide has
    assert len(joint.plan) < len(model.plan) + len(guide.plan)
    assert sum(joint.flops) == pytest.approx(sum(model.flops) + (1 - saved) * sum(guide.flops))


def test_late_differences_share_most(net):
    shares = {way: shared(net, way)[2] for way in ("encoder", "inner", "decoder", "up")}
    assert sorted(shares.values()) == list(shares.values()) and shares["up"] > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_narrow_types_share(net, dtype):
    guide = weakened(net, left_out=[BLOCKS["decoder"]])
    options = {"seeds": range(2), "num_steps": 3, "class_labels": 3, "guidance": 1.7}
    engines = CpuEngine(net, guide, dtype), CpuEngine(net, copy.deepcopy(guide), dtype)
    assert torch.equal(*(sample(engine, **options) for engine in engines))
    assert torch.equal(sample(copy.deepcopy(engines[0]), **options), sample(engines[0], **options))


def test_nets_with_other_tensors_share_nothing(net):
    other = tiny(seed=1)
    for guide in (other, unlabelled(weakened(net, attn_temperature=0)), net):
        assert not CpuEngine(net, guide).joint
    both = [weakened(net, left_out=[BLOCKS[way]]) for way in ("up", "decoder")]
    options = {"seeds": range(2), "num_steps": 3, "class_labels": 3, "guidance": [1.5, 1.2]}
    options["interval"] = [(0.1, 10.0), None]
    apart = [copy.deepcopy(guide) for guide in both]
    assert torch.equal(
        sample(CpuEngine(net, both), **options), sample(CpuEngine(net, apart), **options)
    )
