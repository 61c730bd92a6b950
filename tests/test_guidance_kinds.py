"""Kinds of guidance, several guides and weights by image, against plain formulas, on every way."""

import itertools
import math

import pytest
import torch
from nets import tiny
from tape import Tape
from tolerances import relative_error

from autoguide_fast import Engine, sample, unlabelled
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.engine.module_engine import ModuleEngine
from autoguide_fast.guidance import (
    APG,
    CADS,
    Batch,
    CFGPlusPlus,
    CFGZero,
    Evaluation,
    Feedback,
    FrequencyDecoupled,
    Guidance,
    Linear,
    MagnitudeAware,
    PerClass,
    Rescaled,
    Reused,
    Tangential,
    blend,
    dot,
    norm,
    std,
    table,
)
from autoguide_fast.guidance.combination import Basis, Combination, as_tensor
from autoguide_fast.seeds import StackedRandom

LABELS = torch.eye(5)[[3, 1, 4]]
OPTIONS = {"seeds": range(3), "num_steps": 4, "class_labels": LABELS}
GENERATOR = torch.Generator().manual_seed(0)
X, D1, D0, D2 = (
    torch.randn(3, 2, 8, 8, generator=GENERATOR, dtype=torch.float64) for _ in range(4)
)
BATCH = Batch(range(3), 3, LABELS, (80.0, 5.0, 2.0, 0.0), torch.device("cpu"), 3)


def step(index=1, sigma=5.0, sigma_next=2.0, correction=False):
    level = torch.tensor(sigma, dtype=torch.float64)
    return Evaluation(sigma, level, index, 3, sigma_next, correction)


def over(a):
    """The sum over each image, to be broadcast."""
    return a.sum((1, 2, 3), keepdim=True)


def blurred(d):
    """What is left of images after one level of a pyramid, written out pixel by pixel."""
    weights = torch.tensor([1, 4, 6, 4, 1], dtype=d.dtype) / 16
    small = torch.zeros(*d.shape[:2], 4, 4, dtype=d.dtype)
    for i in range(4):
        for j in range(4):
            for a in range(5):
                for b in range(5):
                    y, x = (min(max(2 * k + s - 2, 0), 7) for k, s in ((i, a), (j, b)))
                    small[:, :, i, j] += weights[a] * weights[b] * d[:, :, y, x]
    return torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")


def tangential():
    one, two = X - D1, X - D0
    found = []
    for a, b in zip(one, two, strict=True):
        _, _, rows = torch.linalg.svd(torch.stack([a.flatten(), b.flatten()]), full_matrices=False)
        found.append((rows[0] @ b.flatten() * rows[0]).reshape(a.shape))
    damped = torch.stack(found)
    return X - damped - 1.7 * (one - damped)


def rescaled():
    guided = D0 + 1.7 * (D1 - D0)
    deviations = [d.flatten(1).std(1)[:, None, None, None] for d in (D1, guided)]
    return 0.4 * guided * deviations[0] / deviations[1] + 0.6 * guided


def apg(momentum=0.0, most=None, eta=0.3):
    d = D1 - D0
    if most is not None:
        d = d * (most / over(d**2).sqrt()).clamp(max=1)
    along = over(d * D1) / over(D1**2) * D1
    return D1 + 0.7 * (d - along + eta * along)


def zero_star():
    one, two = X - D1, X - D0
    scaled = over(one * two) / over(two**2) * two
    return X - scaled - 1.7 * (one - scaled)


def magnitude_aware():
    ratio = over((D1 - D0) ** 2).sqrt() / over((X - D0) ** 2).sqrt()
    return D0 + (1 + 0.7 * torch.exp(-2 * ratio)) * (D1 - D0)


# A kind, what it is given beside the model, and the same in plain PyTorch.
CASES = {
    "linear": (lambda: Linear([1.7]), lambda: D0 + 1.7 * (D1 - D0)),
    "images": (
        lambda: Linear([torch.tensor([1.0, 1.5, 3.0])]),
        lambda: D0 + torch.tensor([1.0, 1.5, 3.0])[:, None, None, None] * (D1 - D0),
    ),
    "classes": (
        lambda: Linear([PerClass([0, 1.5, 0, 1.0, 3.0])]),
        lambda: D0 + torch.tensor([1.0, 1.5, 3.0])[:, None, None, None] * (D1 - D0),
    ),
    "table": (lambda: Linear([table({2.0: 1.2, 12.5: 2.2})]), lambda: D0 + 1.7 * (D1 - D0)),
    "rescaled": (lambda: Rescaled(1.7, 0.4), rescaled),
    "apg": (lambda: APG(1.7, eta=0.3), apg),
    "apg_limited": (lambda: APG(1.7, 0.3, -0.5, most=9.0), lambda: apg(most=9.0)),
    "zero_star": (lambda: CFGZero(1.7), zero_star),
    "zero_init": (lambda: CFGZero(1.7, zero_init=2), lambda: X),
    "tangential": (lambda: Tangential(1.7), tangential),
    "magnitude_aware": (lambda: MagnitudeAware(1.7, 2.0), magnitude_aware),
    # (x - D0) put back as noise at the next level: Euler's step for this D ends there.
    "plus_plus": (lambda: CFGPlusPlus(0.6), lambda: D0 + 0.6 / (1 - 2 / 5) * (D1 - D0)),
    "frequency": (
        lambda: FrequencyDecoupled(1.7, 1.2),
        lambda: D1 + 0.7 * (D1 - D0) - 0.5 * blurred(D1 - D0),
    ),
    "feedback": (lambda: Feedback(0.2), lambda: D0 + 1 / 0.8 * (D1 - D0)),
}


@pytest.mark.parametrize("way", ["tensors", "combinations"])
@pytest.mark.parametrize("case", CASES)
def test_formula(case, way):
    kind, reference = CASES[case]
    begun = kind().begin(BATCH)
    assert list(begun.runs(step())) == [True]
    given = X, D1, D0
    if way == "combinations":
        # As an engine has them: D = c_skip x + c_out F.
        basis = Basis(X, (D1 - 0.3 * X) / 0.6, (D0 - 0.3 * X) / 0.6)
        given = (basis.image({0: 1.0}), *(basis.image({0: 0.3, i: 0.6}) for i in (1, 2)))
    x, one, two = given
    found = as_tensor(begun.combine(one, [two], x, step()))
    torch.testing.assert_close(found, reference().double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("case", "passes"), [("apg", 1), ("rescaled", 1), ("tangential", 1)])
def test_inner_products_are_taken_in_one_pass(case, passes, monkeypatch):
    """However long the formula: one operator for them, and one for the result."""
    from autoguide_fast import ops

    counts = {"inner_products": 0, "combine": 0}
    for name in counts:
        operator = getattr(ops, name)

        def counted(*arguments, name=name, operator=operator):
            counts[name] += 1
            return operator(*arguments)

        monkeypatch.setattr(ops, name, counted)
    basis = Basis(X, D1, D0)
    x, one, two = (basis.image({i: 1.0}) for i in range(3))
    kind = {"apg": APG(1.7, 0.3, 0.0, most=9.0)}.get(case) or CASES[case][0]()
    as_tensor(kind.begin(BATCH).combine(one, [two], x, step()))
    assert counts == {"inner_products": passes, "combine": 1}


def test_a_guide_that_is_reused():
    """It runs in every k-th step, and its difference to the model stands for it in between."""
    model, guide = Wrapped(tiny(0)), Wrapped(tiny(0, seed=1))
    noise, sigmas = torch.randn(2, 2, 8, 8), [20.0, 5.0, 1.0, 0.2, 0.05]
    x = noise * 20.0
    for i, (sigma, following) in enumerate(itertools.pairwise([*sigmas, 0.0])):
        with torch.no_grad():
            one = model.net(x, torch.tensor(sigma))
            if i % 2 == 0:
                difference = one - guide.net(x, torch.tensor(sigma))
        x = x + (x - one - 0.8 * difference) / sigma * (following - sigma)
    options = {"noise": noise, "sigmas": sigmas}
    found = sample(model, guide, Reused(Linear([1.8]), 2), sampler="euler", **options)
    assert relative_error(found, x) < 1e-5
    assert guide.levels == pytest.approx([20.0, 1.0, 0.05]) and len(model.levels) == 5
    # Every time: the same as without, but for second halves.
    euler = {"sampler": "euler", **options}
    every = sample(model, guide, Reused(APG(1.8), 1), **euler)
    assert relative_error(every, sample(model, guide, APG(1.8), **euler)) < 1e-5
    guide.levels.clear()
    sample(model, guide, Reused(Linear([1.8]), 2), **options)
    assert guide.levels == pytest.approx([20.0, 1.0, 0.05])
    # Outside its interval neither.
    guide.levels.clear()
    sample(model, guide, Reused(Linear([1.8], [(0.5, 6.0)]), 2), **euler)
    assert guide.levels == pytest.approx([5.0, 1.0])
    for way, nets in WAYS.items():
        again = sample(*nets(tiny(0), tiny(0, seed=1)), guidance=Reused(Linear([1.8]), 2), **euler)
        assert relative_error(again, x) < 2e-4, way
    with pytest.raises(ValueError, match="Reused: guidance must be a kind with one guide, got Lin"):
        Reused(Linear([1, 2]))
    with pytest.raises(ValueError, match=r"Reused: every must be at least 1"):
        Reused(APG(), 0)


def test_labels_that_are_noise_at_first():
    """CADS, written out for Euler's method; the same on every way, and by image."""
    model, guide = tiny(), tiny(seed=1)
    streams = StackedRandom("cpu", range(3))
    x = streams.randn([2, 8, 8]) * 20.0
    streams.randint(5)  # the class that is drawn and not used
    sigmas = [20.0, 5.0, 1.0, 0.2]
    for i, (sigma, following) in enumerate(itertools.pairwise([*sigmas, 0.0])):
        time, told = 1 - i / 4, LABELS
        if time > 0.4:
            keep = max(0.0, min(1.0, (0.9 - time) / 0.5))
            told = keep**0.5 * LABELS + 0.3 * (1 - keep) ** 0.5 * streams.randn([5])
            means, stds = (f(told, 1, keepdim=True) for f in (torch.mean, torch.std))
            scaled = (told - means) / stds * LABELS.std(1, keepdim=True) + LABELS.mean(
                1, keepdim=True
            )
            told = 0.7 * scaled + 0.3 * told
        with torch.no_grad():
            one, two = (net(x, torch.tensor(sigma), told) for net in (model, guide))
        x = x + (x - two - 1.5 * (one - two)) / sigma * (following - sigma)
    kind = CADS(1.5, t1=0.4, t2=0.9, scale=0.3, mix=0.7)
    options = {"seeds": range(3), "class_labels": LABELS, "sigmas": sigmas, "sampler": "euler"}
    for way, nets in WAYS.items():
        found = sample(*nets(model, guide), guidance=kind, **options)
        assert relative_error(found, x) < 5e-4, way
    apart = sample(model, guide, kind, batch_size=1, **options)
    assert relative_error(apart, x) < 5e-4
    assert relative_error(sample(model, guide, CADS(APG(1.5)), **options), x) > 1e-3
    with pytest.raises(ValueError, match=r"another kind than CADS without labels"):
        sample(tiny(0), tiny(0), CADS(), seeds=[0])
    with pytest.raises(ValueError, match="another kind than CADS without seeds"):
        sample(model, guide, CADS(), noise=torch.zeros(1, 2, 8, 8), class_labels=1)
    with pytest.raises(ValueError, match=r"CADS: t1 must not exceed t2, got 0.8 and 0.2"):
        CADS(t1=0.8, t2=0.2)


def test_feedback_follows_the_path():
    """Two steps, written out: the weight falls where the path speaks for the model."""
    kind = Feedback(0.3, temperature=2.0, offset=0.01, most=4.0).begin(BATCH)
    first, second = step(1, 5.0, 2.0), step(2, 2.0, 0.0)
    kind.combine(D1, [D0], X, first)
    kind.combine(D1, [D0], X, step(1, 2.0, 0.0, correction=True))  # which counts for nothing
    means = [d + (2 / 5) ** 2 * (X - d) for d in (D1, D0)]
    variance = 4 * (1 - (2 / 5) ** 2)
    x = means[0] + 0.1 * X
    gain = (over((x - means[1]) ** 2) - over((x - means[0]) ** 2)) / (2 * variance)
    ratio = torch.exp(2.0 * gain - 0.01)
    weight = ratio / (ratio - 0.3)
    found = kind.combine(D1, [D0], x, second)
    torch.testing.assert_close(found, D0 + weight * (D1 - D0), rtol=1e-9, atol=1e-9)
    assert (weight < 1 / 0.7).all()
    # The other way about, the weight is as large as it may be.
    kind = Feedback(0.3, temperature=2.0, most=4.0).begin(BATCH)
    kind.combine(D1, [D0], X, first)
    found = kind.combine(D1, [D0], means[1], second)
    torch.testing.assert_close(found, D0 + 4 * (D1 - D0), rtol=1e-9, atol=1e-9)


def test_beside_diffusers():
    """That library's formulas, for the slopes that these kinds take for its predictions."""
    pytest.importorskip("diffusers.guiders", reason="an older diffusers, or none")
    from diffusers.guiders import adaptive_projected_guidance as theirs_apg
    from diffusers.guiders import classifier_free_zero_star_guidance as theirs_zero
    from diffusers.guiders import magnitude_aware_guidance as theirs_magnitude
    from diffusers.guiders import tangential_classifier_free_guidance as theirs_tangential

    def ours(kind, prediction):
        found = kind.begin(BATCH).combine(D1, [D0], X, step())
        return X - found if prediction == "slope" else found

    one, two = X - D1, X - D0
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        ours(Tangential(1.7), "slope"),
        theirs_tangential.normalized_guidance(one, two, 1.7),
        **close,
    )
    # Its norm takes two dimensions, no more.
    flat = [image.flatten(2) for image in (one, two)]
    magnitude = theirs_magnitude.mambo_guidance(*flat, 1.7, 2.0).reshape(one.shape)
    torch.testing.assert_close(ours(MagnitudeAware(1.7, 2.0), "slope"), magnitude, **close)
    projected = theirs_apg.normalized_guidance(
        D1, D0, 0.7, eta=0.3, norm_threshold=9.0, use_original_formulation=True
    )
    torch.testing.assert_close(ours(APG(1.7, 0.3, 0.0, 9.0), "image"), projected, **close)
    scale = theirs_zero.cfg_zero_star_scale(one.flatten(1), two.flatten(1))[..., None, None]
    expected = scale * two + 1.7 * (one - scale * two)
    torch.testing.assert_close(ours(CFGZero(1.7), "slope"), expected, **close)


# --------------------------------------------------------------------- on every way to sample


class Wrapped(torch.nn.Module):
    """A network that the engine cannot look into; counts its evaluations."""

    img_resolution, img_channels = 8, 2

    def __init__(self, net):
        super().__init__()
        self.net, self.levels, self.label_dim = net, [], net.label_dim

    def forward(self, x, sigma, class_labels=None):
        self.levels.append(float(sigma))
        return self.net(x, sigma, class_labels)


WAYS = {
    "callables": lambda model, *guides: (Wrapped(model), list(map(Wrapped, guides))),
    "sample": lambda model, *guides: (model, list(guides)),
    "engine": lambda model, *guides: (Engine(model, list(guides)),),
    "recorded": lambda model, *guides: (GpuEngine(model, list(guides), recorder=Tape()),),
    "modules": lambda model, *guides: (ModuleEngine(Wrapped(model), list(map(Wrapped, guides))),),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net: net)


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_sample_agrees(case):
    kind = CASES[case][0]()
    found = {
        way: sample(*nets(tiny(), tiny(seed=1)), guidance=kind, **OPTIONS)
        for way, nets in WAYS.items()
    }
    for way, x in found.items():
        assert relative_error(x, found["callables"]) < 5e-4, way
    # One image at a time: weights go with their images, and so does what is remembered.
    options = OPTIONS | {"batch_size": 1}
    apart = sample(tiny(), tiny(seed=1), kind, **options)
    assert relative_error(apart, found["sample"]) < 5e-4
    unguided = sample(tiny(), **OPTIONS)
    assert relative_error(found["sample"], unguided) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_several_guides(way):
    """D = D1 + sum (w_i - 1) (D1 - D_i), each in its interval."""
    nets = [tiny(), tiny(seed=1), tiny(0, seed=2)]
    weights, intervals = [1.6, 2.2], [None, (0.3, 5.0)]

    def combined(x, sigma, labels):
        one, two, three = (net(x, sigma, None if i == 2 else labels) for i, net in enumerate(nets))
        within = intervals[1][0] < float(sigma) <= intervals[1][1]
        return one + 0.6 * (one - two) + (1.2 * (one - three) if within else 0)

    combined.img_channels, combined.img_resolution, combined.label_dim = 2, 8, 5
    expected = sample(combined, **OPTIONS)
    given = WAYS[way](*nets)
    found = sample(*given, guidance=weights, interval=intervals, **OPTIONS)
    assert relative_error(found, expected) < 5e-4
    found = sample(*given, guidance=Linear(weights, intervals), **OPTIONS)
    assert relative_error(found, expected) < 5e-4


def test_a_guide_that_is_off_does_not_run():
    model, *guides = (Wrapped(tiny(seed=i)) for i in range(3))
    sample(model, guides, [1.5, 2.0], interval=[(0.1, 1.0), None], **OPTIONS)
    assert len(model.levels) == len(guides[1].levels) == 7
    assert guides[0].levels and all(0.1 < sigma <= 1 for sigma in guides[0].levels)
    for guide in guides:
        guide.levels.clear()
    sample(model, guides, [1.0, lambda sigma: 1.0 if sigma > 1 else 2.0], **OPTIONS)
    assert not guides[0].levels and guides[1].levels and max(guides[1].levels) <= 1


@pytest.mark.parametrize("way", WAYS)
def test_no_guidance_needs_no_guides(way):
    """Whatever guides there are: a weight of 1 is the model alone, in every sampler."""
    options = OPTIONS | {"seeds": range(2), "class_labels": LABELS[:2]}
    unguided = {s: sample(tiny(), sampler=s, **options) for s in ("heun", "dpmpp_2m")}
    for guides in ([tiny(seed=1)], [tiny(seed=1), tiny(seed=2)]):
        nets = WAYS[way](tiny(), *guides)
        for sampler, expected in unguided.items():
            for guidance in (None, 1, 1.0):
                found = sample(*nets, guidance=guidance, sampler=sampler, **options)
                assert relative_error(found, expected) < 2e-4
    init = torch.zeros(1, 2, 8, 8)
    masked = sample(*nets, guidance=1, init=init, mask=torch.zeros(8, 8), **options)
    assert masked.abs().max() < 1e-5


@pytest.mark.parametrize(
    "kind", [APG(1.5), Linear([1.5]), FrequencyDecoupled(), CADS(), Feedback()]
)
def test_torchs_default_device_counts_for_nothing(kind):
    nets = tiny(), tiny(seed=1)
    expected = sample(*nets, kind, sampler="dpmpp_3m", **OPTIONS)
    torch.set_default_device("meta")
    try:
        found = sample(*nets, kind, sampler="dpmpp_3m", **OPTIONS)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, expected)


def test_one_guide_in_a_list_is_one_guide():
    found = sample(tiny(), [tiny(seed=1)], [1.7], interval=[(0.1, 5.0)], **OPTIONS)
    expected = sample(tiny(), tiny(seed=1), 1.7, interval=(0.1, 5.0), **OPTIONS)
    assert relative_error(found, expected) < 5e-5


def test_weights_by_image_are_those_of_runs_by_themselves():
    weights = torch.tensor([1.0, 1.7, 2.5])
    nets = tiny(), tiny(seed=1)
    found = sample(*nets, weights, **OPTIONS)
    for given in (weights.tolist(), weights.numpy()):
        assert torch.equal(sample(*nets, given, **OPTIONS), found)
    for i, weight in enumerate(weights.tolist()):
        alone = sample(*nets, weight, seeds=[i], num_steps=4, class_labels=LABELS[i : i + 1])
        assert relative_error(found[i : i + 1], alone) < 5e-5
    assert relative_error(sample(*nets, PerClass([0, 1.7, 0, 1.0, 2.5]), **OPTIONS), found) < 5e-5


def test_cfg_blended_with_autoguidance():
    assert blend(1.8, 0.0).weights == pytest.approx([1.8, 1.0])
    assert blend(1.8, 1.0).weights == pytest.approx([1.0, 1.8])
    nets = tiny(), [unlabelled(tiny()), tiny(seed=1)]
    found = sample(*nets, blend(1.8, 0.25), **OPTIONS)
    assert relative_error(found, sample(*nets, [1.6, 1.2], **OPTIONS)) < 1e-6


def test_each_net_has_its_own_type():
    nets = tiny(), [tiny(seed=1), tiny(seed=2)]
    exact = sample(Engine(*nets), guidance=[1.5, 1.3], **OPTIONS)
    types = [torch.float32, torch.bfloat16, torch.float32]
    engine = Engine(*nets, dtype=types)
    assert [net.dtype for net in (engine.model, *engine.guides)] == types
    assert 1e-5 < relative_error(sample(engine, guidance=[1.5, 1.3], **OPTIONS), exact) < 0.1
    gpu = GpuEngine(tiny(), tiny(seed=1), [torch.float32, torch.bfloat16], recorder=Tape())
    for guidance in (1.5, APG(1.5)):
        found = sample(gpu, guidance=guidance, **OPTIONS)
        expected = sample(tiny(), tiny(seed=1), guidance, **OPTIONS)
        assert 1e-5 < relative_error(found, expected) < 0.1
    with pytest.raises(ValueError, match="dtype must be one type, or one for the model and each"):
        Engine(*nets, dtype=[torch.float32])


class Mine(Guidance):
    """A kind of a user's own, with functions of torch that no combination knows."""

    def begin(self, batch):
        self.batch = batch
        return self

    def runs(self, step):
        return (step.sigma > 0.05,)

    def combine(self, denoised, guides, x, step):
        spread = torch.tanh(denoised - guides[0])  # not linear
        return torch.where(x > 0, denoised + 0.5 * spread, denoised) + 0 * x


@pytest.mark.parametrize("way", WAYS)
def test_a_kind_of_ones_own(way):
    expected = sample(*WAYS["callables"](tiny(), tiny(seed=1)), guidance=Mine(), **OPTIONS)
    kind = Mine()
    found = sample(*WAYS[way](tiny(), tiny(seed=1)), guidance=kind, **OPTIONS)
    assert relative_error(found, expected) < 5e-3  # a sign of x decides here and there
    assert kind.batch.sigmas[0] == 80 and kind.batch.sigmas[-1] == 0 and kind.batch.ndim == 3
    assert relative_error(found, sample(tiny(), **OPTIONS)) > 1e-2


# ------------------------------------------------------------------------------------- combinations
def test_combinations_behave_like_their_tensors():
    basis = Basis(X, D1, D0)
    x, one, two = (basis.image({i: 1.0}) for i in range(3))
    per_image = torch.rand(3, 1, 1, 1, dtype=torch.float64)
    expressions = {
        "sum": lambda a, b, c: a + b - c,
        "numbers": lambda a, b, c: 2 * a - b / 3 + c * -1,
        "per_image": lambda a, b, c: per_image * a + b * per_image - c / (1 + per_image),
        "zero_dim": lambda a, b, c: a * torch.tensor(0.3, dtype=torch.float64) + c,
        "tensor_left": lambda a, b, c: D2 - a + (D2 + b) * 2,
        "tensor_right": lambda a, b, c: a - D2 + 0.5 * D2,
        "negative": lambda a, b, c: -a,
        "nothing": lambda a, b, c: a - a,
        "product": lambda a, b, c: a * b + D2 * c,
        "quotient": lambda a, b, c: a / (b * b + 1) + 1 / (1 + c * c),
        "constant": lambda a, b, c: a + 1.0,
        "function": lambda a, b, c: torch.tanh(a) + torch.stack([b, c]).sum(0) + b.tensor_or(),
        "many": lambda a, b, c: sum(t * k for k, t in enumerate([a, b, c, *MANY], 1)),
    }
    MANY = [D2 + i for i in range(9)]  # more terms than an operator takes
    Combination.tensor_or, torch.Tensor.tensor_or = Combination.tensor, lambda self: self
    try:
        for name, expression in expressions.items():
            found, expected = as_tensor(expression(x, one, two)), expression(X, D1, D0)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
    finally:
        del Combination.tensor_or, torch.Tensor.tensor_or
    a, b = x * per_image - 2 * one, two + D2
    plain = X * per_image - 2 * D1, D0 + D2
    for function, arguments in ((dot, 2), (norm, 1), (std, 1)):
        expected = function(*plain[:arguments])
        assert expected.shape == (3, 1, 1, 1)
        torch.testing.assert_close(function(*(a, b)[:arguments]), expected)
    torch.testing.assert_close(dot(a, D2), dot(plain[0], D2))
    assert (x.shape, x.ndim, len(x), x.dtype) == (X.shape, 4, 3, torch.float64)


def test_what_is_returned_is_nobody_elses():
    basis = Basis(X, D1)
    assert basis.image({1: 1.0}).tensor() is D1
    assert as_tensor(basis.image({1: 1.0})) is not D1


# --------------------------------------------------------------------------------------- bad input
TWO = {"guide": [tiny(), tiny()]}
BAD = {
    "one_weight": (TWO | {"guidance": 1.5}, "guidance must be a list with a weight for each of 2"),
    "three": (TWO | {"guidance": [1, 2, 3]}, "for each of 2 guides, got 3 of them"),
    "nan": (TWO | {"guidance": [1, math.nan]}, r"weights\[1\] must be finite"),
    "interval": (TWO | {"guidance": [1, 2], "interval": [None, (3, 1)]}, "interval's upper end"),
    "images": ({"guide": tiny(), "guidance": [1.0, 2.0]}, "one weight for each of 3 images, got 2"),
    "images_nan": ({"guide": tiny(), "guidance": [1, 2, math.nan]}, "must be finite numbers, one"),
    "classes": ({"guide": tiny(), "guidance": PerClass([1, 2])}, "weight for each of 5 classes"),
    "kind_alone": ({"guidance": APG()}, "guide must be given where guidance is not 1"),
    "kind_of_one": (TWO | {"guidance": APG()}, "guide must be 1 guide for APG, got 2; leave some"),
    "kind_of_two": (
        {"guide": tiny(), "guidance": blend(2, 0.5)},
        "guide must be 2 guides for with several weights, got 1; pass a list",
    ),
    "kind_interval": (
        {"guide": tiny(), "guidance": APG(), "interval": (0.1, 1)},
        "interval must be left out for APG",
    ),
    "sizes": (
        {"guide": [tiny(), tiny(0, img_channels=2) if False else tiny(7)], "guidance": [2, 2]},
        "guide 2 must have the model's label_dim 5 or none, got 7",
    ),
    "nothing": ({"guide": [tiny(), None], "guidance": [2, 2]}, "guide 2 must be a name, a path"),
    "spatial": (
        {
            "model": lambda x, s, c: x,
            "guide": lambda x, s, c: x,
            "guidance": FrequencyDecoupled(),
            "noise": torch.zeros(2, 3),
            "seeds": None,
            "class_labels": None,
        },
        r"FrequencyDecoupled: images must be \[N, C, H, W\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options, message = BAD[case]
    with pytest.raises((ValueError, TypeError), match=message):
        sample(**{"model": tiny(), **OPTIONS, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APG(momentum=1.5), "APG: momentum must be above -1"),
        (lambda: APG(most=0), "APG: most must be above 0"),
        (lambda: APG(math.inf), "APG: weight must be finite"),
        (lambda: Rescaled(phi=2), "Rescaled: phi must be from 0 to 1"),
        (lambda: CFGZero(zero_init=1.5), "CFGZero: zero_init must be a whole number"),
        (lambda: MagnitudeAware(alpha=-1), "MagnitudeAware: alpha must be >= 0"),
        (lambda: Feedback(pi=1.0), "Feedback: pi must be above 0 and below 1"),
        (lambda: Linear([1, 2], [None]), "Linear: intervals must be one for each of 2"),
        (lambda: blend(1.5, 2), "blend: alpha must be from 0 to 1"),
        (lambda: table({}), "table: weights must be a mapping"),
        (lambda: table({-1.0: 2.0}), "table: a level must be above 0"),
        (lambda: PerClass([1, "a"]), r"PerClass: weights\[1\] must be a number"),
    ],
)
def test_bad_kinds(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_table():
    ramp = table({0.1: 1.0, 10.0: 3.0})
    assert [ramp(s) for s in (0.01, 0.1, 1.0, 10.0, 50.0)] == pytest.approx([1, 1, 2, 3, 3])
    steps = table({1.0: 2.0})
    assert steps(0.3) == steps(1.0) == steps(9.0) == 2


def test_what_a_kind_combines_to_is_checked():
    class Wrong(Mine):
        def combine(self, denoised, guides, x, step):
            return denoised.tensor()[:1]

    with pytest.raises(ValueError, match=r"guidance must combine to images .* from Wrong"):
        sample(tiny(), tiny(seed=1), Wrong(), **OPTIONS)
