"""Guides from the model's own weights that are told something else, and one of several."""

import contextlib
import copy
import math
import warnings

import numpy as np
import pytest
import torch
from nets import tiny
from tape import Tape
from tolerances import relative_error

from autoguide_fast import Engine, sample, unlabelled
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.guidance import (
    APG,
    Batch,
    Evaluation,
    Linear,
    OneOf,
    disturbed,
    weakened,
)
from autoguide_fast.samplers import euler
from autoguide_fast.seeds import StackedRandom

LABELS = torch.eye(5)[[3, 1, 4]]
LEVELS = [20.0, 5.0, 1.0, 0.2]
OPTIONS = {"seeds": [5, 6, 7], "class_labels": LABELS, "sigmas": LEVELS, "sampler": "euler"}
OPTIONS |= {"guidance": 1.8}
WAYS = {
    "input": {"input_noise": 0.2},
    "labels": {"random_labels": True},
    "embedding": {"embedding_noise": lambda sigma: 0.5 if sigma > 0.5 else 0.0},
    "all": {"input_noise": 0.1, "random_labels": True, "embedding_noise": 0.3},
}


@pytest.fixture(scope="module")
def net():
    return tiny()


@contextlib.contextmanager
def dropping(net, below, p, streams):
    """What enters each block's second convolution, without the elements that are drawn."""

    def drop(module, given):
        y = given[0]
        return (y * (streams.randn(list(y.shape[1:])) > below) / (1 - p), *given[1:])

    with contextlib.ExitStack() as stack:
        for name, module in net.named_modules():
            if below and name.endswith("conv_res1"):
                stack.callback(module.register_forward_pre_hook(drop).remove)
        yield


def by_hand(net, input_noise=0.0, random_labels=False, embedding_noise=0.0, dropout=0.0):
    """Euler's method from the seeds, with a guide that is told what the options say."""
    streams = StackedRandom("cpu", OPTIONS["seeds"])
    x = streams.randn([2, 8, 8]) * LEVELS[0]
    streams.randint(5)  # the class, drawn also where one is given
    for sigma, following in zip(LEVELS, [*LEVELS[1:], 0.0], strict=True):
        told, level, labels, noise = x, sigma, LABELS, None
        if input_noise:
            level = sigma * (1 + input_noise)
            told = x + streams.randn([2, 8, 8]) * math.sqrt(level**2 - sigma**2)
        if random_labels:
            labels = torch.eye(5)[streams.randn([5]).argmax(1)]
        scale = embedding_noise(sigma) if callable(embedding_noise) else embedding_noise
        if scale:
            noise = scale * streams.randn([net.unet.emb_noise.weight.shape[0]])
        with torch.no_grad():
            model = net(x, torch.tensor(sigma), LABELS)
            with dropping(net, {0.0: 0, 0.2: -0.8416212}[dropout], dropout, streams):
                guide = net(told, torch.tensor(level), labels, embedding_noise=noise)
        denoised = guide + 1.8 * (model - guide)
        x = denoised + following / sigma * (x - denoised)
    return x


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_sample(net, way):
    guide = disturbed(net, **WAYS[way])
    expected = by_hand(net, **WAYS[way])
    engine = Engine(net, guide)
    assert engine.guide.lowered is engine.model.lowered  # packed once
    recorded = GpuEngine(net, net, recorder=Tape())
    recorded.disturbances = engine.disturbances
    hooked = copy.deepcopy(net)
    hooked.register_forward_hook(lambda *_: None)  # which no engine runs
    for given in ((net, guide), (engine,), (recorded,), (hooked, disturbed(hooked, **WAYS[way]))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert relative_error(sample(*given, **OPTIONS), expected) < 2e-4
    alone = sample(net, guide, batch_size=1, **OPTIONS)
    assert relative_error(alone, expected) < 2e-4
    plain = sample(net, net, **OPTIONS)
    assert relative_error(plain, expected) > 1e-3


DROPOUTS = [{"dropout": 0.2}, WAYS["all"] | {"dropout": 0.2}]


@pytest.mark.parametrize("way", DROPOUTS, ids=["alone", "all"])
def test_dropout(net, way):
    """Without an engine, and then it is said; where no guide runs, there is one."""
    guide = disturbed(net, **way)
    expected = by_hand(net, **way)
    with pytest.warns(UserWarning, match="for an engine, guide must be without dropout, got 0.2"):
        assert relative_error(sample(net, guide, **OPTIONS), expected) < 2e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = sample(net, guide, batch_size=1, **OPTIONS)
        plain = sample(net, net, **OPTIONS)
        wider = sample(net, disturbed(net, **way | {"dropout": 0.3}), **OPTIONS)
    assert relative_error(alone, expected) < 2e-4
    assert min(relative_error(each, expected) for each in (plain, wider)) > 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unguided = sample(net, guide, **OPTIONS | {"guidance": 1.0})
    assert relative_error(unguided, sample(net, **OPTIONS | {"guidance": 1.0})) < 1e-5


def test_no_engine_drops(net):
    guide = disturbed(net, dropout=0.2)
    assert Engine.runs(net, net) and not Engine.runs(net, guide) and not Engine.runs(guide)
    for nets, role in (((net, guide), "guide"), ((guide, net), "model"), ((guide,), "model")):
        with pytest.raises(ValueError, match=f"Engine: {role} must be without dropout, got 0.2"):
            Engine(*nets)
    with pytest.raises(ValueError, match="compute_dtype must be left out for nets that are eval"):
        sample(net, guide, 1.5, seeds=[0], compute_dtype=torch.bfloat16)


def test_the_elements_of_a_step_are_dropped_in_its_second_evaluation(net):
    """Heun's method; the same numbers are drawn as by Euler's, from streams that go on alike."""
    found, kept = {}, disturbed(net, dropout=0.2).disturbance
    for sampler in ("heun", "euler"):
        streams = StackedRandom("cpu", [3, 4])
        batch = Batch(range(2), 2, None, tuple(LEVELS), torch.device("cpu"), 3, streams.randn)
        disturbing, masks = kept.begin(batch), []
        for index in range(2):
            for correction in (False, True)[: 2 if sampler == "heun" else 1]:
                level = torch.tensor(1.0, dtype=torch.float64)
                at = Evaluation(1.0, level, index, 4, 0.5, correction)
                drop = disturbing.inputs(torch.ones(2, 2, 8, 8), at, None).drop
                blocks = [drop(torch.ones(2, 3, 8, 8)), drop(torch.ones(2, 5, 4, 4))]
                masks.append(torch.cat([block.flatten(1) for block in blocks], 1))
        found[sampler] = masks
    first, again, second, _ = found["heun"]
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert all(map(torch.equal, found["heun"][::2], found["euler"]))
    assert not torch.equal(first[0], first[1])
    assert first.unique().tolist() == [0.0, 1.25]
    assert first.mean().item() == pytest.approx(1.0, abs=0.1)


def test_the_noise_of_a_step_holds_for_its_second_evaluation(net):
    """Heun's method, whose correction would otherwise be of another guide."""
    seen = []

    def guide(x, sigma, labels):
        seen.append((sigma.item(), labels.clone()))
        return x

    guide.label_dim = 5
    options = OPTIONS | {"sampler": "heun"}
    sample(net, disturbed(guide, random_labels=True), **options)
    assert len(seen) == 7
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert seen[first][0] > seen[second][0]
        assert torch.equal(seen[first][1], seen[second][1])
    assert len({tuple(labels.argmax(1).tolist()) for _, labels in seen}) > 2


def test_a_model_may_be_disturbed_and_kinds_take_it(net):
    model, guide = (disturbed(net, input_noise=a) for a in (0.1, 0.2))
    for given in ((model, guide), (Engine(model, guide),)):
        x = sample(*given, **OPTIONS | {"guidance": APG(1.5)})
        assert torch.isfinite(x).all()
        assert relative_error(x, sample(net, guide, **OPTIONS | {"guidance": APG(1.5)})) > 1e-3


def test_one_guide_at_a_step(net):
    """Drawn by the number of the step, and no other runs."""
    ran = []

    def recording(number):
        def guide(x, sigma, labels):
            ran.append(number)
            return 0.1 * number * x

        return guide

    guides = [recording(i) for i in range(3)]
    options = OPTIONS | {"sigmas": [80 * 0.8**i for i in range(20)], "sampler": euler}
    kind = OneOf(Linear([1.5], [(1.5, 100.0)]), 3, seed=4)
    sample(net, guides, **options | {"guidance": kind})
    inside = [s > 1.5 for s in options["sigmas"]]
    expected = [int(np.random.default_rng([4, i]).integers(3)) for i in range(20) if inside[i]]
    assert ran == expected and len(set(ran)) == 3 and not all(inside)
    blocks = ["enc.8x8_block0", "dec.4x4_in0"]
    own = [weakened(net, left_out=[block]) for block in blocks]
    kind = OneOf(Linear([1.5]), 2, seed=1)
    found = [
        sample(*given, **OPTIONS | {"guidance": kind})
        for given in ((net, own), (Engine(net, own),))
    ]
    assert relative_error(*found) < 1e-5
    steps = [kind.drawn(i) for i in range(4)]
    assert len(set(steps)) == 2
    other = sample(net, own[steps[0]], **OPTIONS | {"guidance": 1.5})
    assert relative_error(found[0], other) > 1e-3


@pytest.mark.filterwarnings("ignore:sample. evaluating the networks as they are")
def test_guides_of_the_model_by_name(net):
    """As `sample` and `--guide` take them; the model's weights are packed once."""
    options = {"seeds": range(3), "num_steps": 3, "guidance": 1.5, "class_labels": 3}
    named = {
        "self:attn_temperature=0": lambda net: weakened(net, attn_temperature=0),
        "self:random_labels": lambda net: disturbed(net, random_labels=True),
        "self:dropout=0.2": lambda net: disturbed(net, dropout=0.2),
        "self:left_out=dec.4x4_in0+enc.4x4_down,input_noise=0.2": lambda net: disturbed(
            weakened(net, left_out=["dec.4x4_in0", "enc.4x4_down"]), input_noise=0.2
        ),
    }
    for text, guide in named.items():
        assert torch.equal(sample(net, text, **options), sample(net, guide(net), **options))
    both = sample(net, ["self:random_labels", net], **options | {"guidance": [1.5, 1.0]})
    assert torch.equal(both, sample(net, "self:random_labels", **options))
    for wrong in ("self:", "self:noise=1", "self:random_labels=2", "self:attn_temperature=x"):
        with pytest.raises(ValueError, match="guide self must have left_out=BLOCK"):
            sample(net, wrong, **options)


def test_what_cannot_be(net):
    for options in ({}, {"input_noise": -1}, {"input_noise": math.nan}, {"dropout": 0}):
        with pytest.raises(ValueError, match="disturbed: input_noise"):
            disturbed(net, **options)
    with pytest.raises(ValueError, match="random_labels must be False for a net without labels"):
        disturbed(unlabelled(net), random_labels=True)
    for option in ("embedding_noise", "dropout"):
        with pytest.raises(TypeError, match=f"{option} must be 0 for function"):
            disturbed(lambda x, s, c: x, **{option: 0.1})
    for wrong in (1, -0.1, math.nan):
        with pytest.raises(ValueError, match="disturbed: dropout must be from 0 to below 1, got"):
            disturbed(net, dropout=wrong)
    guide = disturbed(net, input_noise=0.1)
    with pytest.raises(TypeError, match="net must be a callable, got Disturbed"):
        disturbed(guide, random_labels=True)
    with pytest.raises(
        ValueError, match=r"must be evaluated by sample or Engine.sample, got a cal"
    ):
        guide(torch.zeros(1, 2, 8, 8), 1.0)
    with pytest.raises(ValueError, match="seeds must be given beside noise for a disturbed net"):
        sample(net, guide, 1.5, noise=torch.randn(1, 2, 8, 8), class_labels=1)
    with pytest.raises(ValueError, match="sampler must have one step for all images for disturbed"):
        sample(net, guide, 1.5, seeds=[0], sampler="adaptive_heun")
    for count, kind in ((0, Linear([1.5])), (2, Linear([1.5, 2.0]))):
        with pytest.raises(ValueError, match=r"OneOf: (count|guidance) must be"):
            OneOf(kind, count)
    with pytest.raises(ValueError, match="guide must be 2 guides for OneOf, got 1"):
        sample(net, net, OneOf(Linear([1.5]), 2), seeds=[0])
