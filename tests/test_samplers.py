"""Samplers beside Heun's method: order of convergence, noise, what callbacks and guidance see."""

import itertools
import math

import pytest
import torch
from nets import tiny
from tape import Tape
from tolerances import relative_error

from autoguide_fast import Engine, sample
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.guidance import (
    APG,
    CFGPlusPlus,
    FrequencyDecoupled,
    Linear,
    Rescaled,
    Reused,
    table,
)
from autoguide_fast.samplers import (
    SAMPLERS,
    AdaptiveHeun,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    euler,
    unipc,
)
from autoguide_fast.schedules import SCHEDULES

NOISY = ("euler_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde")
ORDERS = {"heun": 2, "euler": 1, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3, "adams_bashforth": 4}

# A mixture of two Gaussians on the line.
SHARES, MEANS, STDS = (
    torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1, 0.6], [0.4, 0.25])
)


def denoiser(x, sigma, class_labels=None):
    """The exact denoiser of the mixture, for `[N, 1]`."""
    variances = STDS**2 + sigma**2
    logits = SHARES.log() - (x - MEANS) ** 2 / (2 * variances) - variances.log() / 2
    means = MEANS + STDS**2 / variances * (x - MEANS)
    return (logits.softmax(1) * means).sum(1, keepdim=True)


def share_below(x, sigma):
    """The share of the noisy mixture that lies below `x [N, 1]`."""
    z = (x - MEANS) / (2 * (STDS**2 + sigma**2)).sqrt()
    return (SHARES * (1 + torch.erf(z)) / 2).sum(1, keepdim=True)


def exact(x, sigma, sigma_next):
    """Where the flow takes `x`: it keeps the share below each point."""
    wanted = share_below(x, sigma)
    low, high = torch.full_like(x, -50), torch.full_like(x, 50)
    for _ in range(200):
        middle = (low + high) / 2
        below = share_below(middle, sigma_next) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def error(sampler, num_steps, schedule="exponential"):
    """Of the state at the lowest noise level, where the last step begins."""
    noise, states = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], []
    sample(
        denoiser,
        noise=noise,
        sampler=sampler,
        num_steps=num_steps,
        sigma_min=0.1,
        sigma_max=80.0,
        schedule=schedule,
        dtype=torch.float64,
        callback=lambda info: states.append(info.x),
    )
    assert len(states) == num_steps
    return (states[-2] - exact(noise * 80, 80.0, 0.1)).abs().max().item()


@pytest.mark.parametrize("schedule", ["rho", "exponential"])
@pytest.mark.parametrize("sampler", ORDERS)
def test_order_of_convergence(sampler, schedule):
    """On a mixture whose flow is known: halved steps divide the error by 2^order."""
    errors = [error(sampler, n, schedule) for n in (41, 81, 161)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    # The first steps of multistep methods are of lower order; they lie where the denoiser hardly
    # changes, so that the order shows before theirs does.
    assert ORDERS[sampler] - 0.4 < orders[-1] < ORDERS[sampler] + 0.6, (errors, orders)
    assert errors[-1] < 0.2 * 8.0 ** -ORDERS[sampler]


def test_more_orders_are_more_exact():
    errors = [error(sampler, 81) for sampler in ("euler", "dpmpp_2m", "dpmpp_3m")]
    assert errors[0] > 10 * errors[1] and errors[1] > 10 * errors[2]


@pytest.mark.parametrize("sampler", NOISY)
def test_noise_leads_to_the_data(sampler):
    """With noise of their own, samples are distributed as the data."""
    count = 1500
    options = {"seeds": range(count), "dtype": torch.float64, "batch_size": count}
    model = Line()
    x = sample(model, sampler=sampler, num_steps=50, sigma_max=20.0, **options).flatten()
    places = torch.tensor([-1.2, -0.8, 0.0, 0.4, 0.8], dtype=torch.float64)[:, None]
    expected = share_below(places, 0.0).flatten()
    found = (x[None] < places).double().mean(1)
    # Five standard errors, and what the steps are off.
    assert (found - expected).abs().max() < 5 * math.sqrt(0.25 / count) + 0.01
    again = sample(model, sampler=sampler, num_steps=50, sigma_max=20.0, **options).flatten()
    assert torch.equal(x, again)


class Line(torch.nn.Module):
    """The mixture's denoiser as a module that makes images of one pixel."""

    img_channels = img_resolution = 1
    label_dim = 0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x, sigma, class_labels=None):
        return denoiser(x.flatten(1), sigma).reshape(x.shape)


WAYS = {
    "callables": lambda model, guide: (model.forward, guide.forward),
    "sample": lambda model, guide: (model, guide),
    "engine": lambda model, guide: (Engine(model, guide),),
    "recorded": lambda model, guide: (GpuEngine(model, guide, recorder=Tape()),),
}


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "adaptive_heun"])
def test_every_way_to_sample_agrees(sampler):
    """And an image depends on its seed alone."""
    labels = torch.eye(5)[[3, 1, 4]]
    options = {"seeds": [5, 6, 7], "num_steps": 4, "guidance": 1.7, "sampler": sampler}
    options |= {"class_labels": labels, "noise": None}
    found = {}
    for way, nets in WAYS.items():
        given = nets(tiny(), tiny(seed=1))
        if way == "callables":
            for call, net in zip((c := [Bare(f) for f in given]), (tiny(), tiny()), strict=True):
                call.label_dim, call.img_channels, call.img_resolution = 5, 2, net.img_resolution
            given = c
        found[way] = sample(*given, **options)
    for way, x in found.items():
        assert relative_error(x, found["callables"]) < 2e-4, way
    alone = [
        sample(tiny(), tiny(seed=1), **options | {"seeds": [s], "class_labels": labels[i : i + 1]})
        for i, s in enumerate(options["seeds"])
    ]
    assert relative_error(torch.cat(alone), found["sample"]) < 2e-4


class Bare:
    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)


def test_a_function_is_a_sampler():
    """As k-diffusion's are: the state, levels once for each image, a tensor that falls to 0."""

    def mine(denoise, x, sigmas):
        assert sigmas.dtype == x.dtype and sigmas[-1] == 0 and len(sigmas) == 6
        for sigma, following in itertools.pairwise(sigmas):
            denoised = denoise(x, sigma * x.new_ones(len(x)))
            x = x + (x - denoised) / sigma * (following - sigma)
        return x

    options = {"seeds": range(3), "num_steps": 5, "guidance": 1.5}
    found = sample(tiny(), tiny(seed=1), sampler=mine, **options)
    assert relative_error(found, sample(tiny(), tiny(seed=1), sampler=euler, **options)) < 1e-5


def test_one_that_returns_another_thing_is_refused():
    for wrong in (lambda d, x, s: None, lambda d, x, s: x[:1]):
        with pytest.raises(ValueError, match="sampler must return the state"):
            sample(tiny(), sampler=wrong, seeds=range(2))
    with pytest.raises(ValueError, match="one for each of 2 images, got 3; pass as many"):
        sample(tiny(), sampler=lambda d, x, s: d(x, torch.ones(3)), seeds=[0, 1])
    with pytest.raises(ValueError, match="sampler must evaluate at noise levels above 0, got 0"):
        sample(tiny(), sampler=lambda d, x, s: d(x, 0.0), seeds=[0])
    with pytest.raises(ValueError, match=r"sampler must be one of heun, euler, .* got 'hun'"):
        sample(tiny(), sampler="hun", seeds=[0])
    with pytest.raises(ValueError, match="S_churn must be 0 for a sampler other than 'heun'"):
        sample(tiny(), sampler="euler", S_churn=5, seeds=[0])
    with pytest.raises(ValueError, match="seeds must be given beside noise for a sampler that add"):
        sample(tiny(0), sampler="dpmpp_2m_sde", noise=torch.randn(1, 2, 8, 8))


@pytest.mark.parametrize("sampler", ["heun", *(s for s in SAMPLERS if s != "adaptive_heun")])
def test_a_callback_may_change_the_state(sampler):
    """What it returns is where sampling goes on from; changing what it is given does nothing."""
    options = {"seeds": range(2), "num_steps": 6, "sampler": sampler}
    model = tiny(0)
    plain = sample(model, **options)

    def vain(info):
        info.x.zero_()

    assert torch.equal(sample(model, callback=vain, **options), plain)

    seen = []

    def restart(info):
        seen.append(info.x)
        return torch.zeros_like(info.x) if info.step == 3 else None

    changed = sample(model, callback=restart, **options)
    # From zeros at the level of step 4, without a memory of what came before, where there is none.
    assert not torch.allclose(changed, plain, atol=1e-3) and len(seen) == 6
    if sampler in ("heun", "euler", "euler_ancestral"):
        levels = [float(s) for s in visited(model, **options)]
        noise = torch.zeros(2, 2, 8, 8)
        if sampler != "euler_ancestral":
            direct = sample(model, noise=noise, sigmas=levels[4:], sampler=sampler)
            assert relative_error(changed, direct) < 1e-4
    with pytest.raises(ValueError, match=r"callback must return nothing or a state \[2, 2, 8, 8\]"):
        sample(model, callback=lambda info: info.x[:1], **options)


def visited(model, **options):
    levels = []
    sample(model, callback=lambda info: levels.append(info.sigma), **options)
    return [80.0, *levels[:-1]]


def test_levels_may_be_given():
    model, options = tiny(0), {"seeds": range(2)}
    levels = [80.0, 10.0, 2.0, 0.5, 0.125]
    assert visited(model, sigmas=levels, **options) == levels
    a = sample(model, sigmas=levels, **options)
    assert torch.equal(a, sample(model, sigmas=torch.tensor([*levels, 0.0]), **options))
    named = sample(model, schedule=lambda n, low, high: levels[:n], num_steps=5, **options)
    assert torch.equal(a, named)
    for wrong in ([], [1.0, 2.0], [1.0, -1.0], [1.0, math.nan], [[1.0]], [1.0, 1.0]):
        with pytest.raises(ValueError, match="sigmas must be 1 to 10000 falling noise levels"):
            sample(model, sigmas=wrong, **options)
    with pytest.raises(TypeError, match="sigmas must be noise levels, got str"):
        sample(model, sigmas="many", **options)
    with pytest.raises(ValueError, match=r"schedule must be one of rho, exponential, .* got 'x'"):
        sample(model, schedule="x", **options)


@pytest.mark.parametrize("name", ["rho", *SCHEDULES])
def test_schedules(name):
    levels = visited(tiny(0), seeds=[0], num_steps=9, schedule=name, sigma_min=0.01, sigma_max=80)
    assert levels[0] == 80 and levels[-1] == pytest.approx(0.01) and len(levels) == 9
    u = {
        "rho": lambda s: s ** (1 / 7),
        "exponential": math.log,
        "linear": lambda s: s,
        "cosine": math.atan,
        "flow": lambda s: s / (1 + s),
    }[name]
    steps = [u(b) - u(a) for a, b in itertools.pairwise(levels)]
    assert max(steps) - min(steps) < 1e-4 * abs(steps[0])


def test_start_from_images():
    """Little noise keeps them, much noise forgets them, and the flow of no net is a line."""
    model, init = tiny(0), torch.rand(2, 2, 8, 8)
    options = {"seeds": range(2), "num_steps": 8, "init": init}
    near = sample(model, sigma_start=0.01, **options)
    far = sample(model, sigma_start=5.0, **options)
    assert (near - init).abs().mean() < 0.1 * (far - init).abs().mean()
    # The state begins at init + sigma noise.
    seen = []

    def still(x, sigma, labels):
        seen.append(x.clone())
        return x

    noise = torch.randn(2, 3)
    x = sample(still, noise=noise, init=torch.ones(1, 3), sigma_start=0.5, num_steps=2)
    torch.testing.assert_close(seen[0], 1 + 0.5 * noise)
    torch.testing.assert_close(x, seen[0])
    bytes_in = torch.randint(0, 256, (2, 2, 8, 8), dtype=torch.uint8)
    with pytest.raises(ValueError, match="init must be what the model sees for a model that has"):
        sample(model, seeds=range(2), init=bytes_in)
    with pytest.raises(ValueError, match="init must be given beside sigma_start, got None"):
        sample(model, seeds=range(2), sigma_start=1.0)
    with pytest.raises(ValueError, match=r"init must be \[2 or 1, 2, 8, 8\], got \[3, 2, 8, 8\]"):
        sample(model, seeds=range(2), init=torch.zeros(3, 2, 8, 8))
    with pytest.raises(ValueError, match="init must be finite"):
        sample(model, seeds=range(2), init=torch.full((1, 2, 8, 8), math.nan))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_what_the_mask_spares_stays(sampler):
    init = torch.rand(2, 1, 8, 8) * 255
    init = init.to(torch.uint8)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    options = {"seeds": range(2), "num_steps": 8, "class_labels": 3, "sampler": sampler}
    found = sample("digits", init=init, mask=mask, **options)
    assert (found.int() - init.int())[..., :4].abs().max() <= 1
    assert (found.int() - init.int())[..., 4:].abs().float().mean() > 20
    # Batches are cut alike, and the model is told what stays: the rest fits to it.
    apart = sample("digits", init=init, mask=mask[None, None], batch_size=1, **options)
    assert (found.int() - apart.int()).abs().max() <= 1
    other = sample("digits", init=255 - init, mask=mask, **options)
    assert (found.int() - other.int())[..., 4:].abs().float().mean() > 1
    for wrong in (torch.zeros(3, 3), torch.zeros(3, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"mask must broadcast to \[2 or 1, 1, 8, 8\]"):
            sample("digits", init=init, mask=wrong, **options)
    with pytest.raises(ValueError, match="mask must lie from 0"):
        sample("digits", init=init, mask=255 * mask, **options)
    with pytest.raises(ValueError, match="init must be given beside mask"):
        sample("digits", mask=mask, **options)


def test_what_guidance_remembers_advances_once_a_step():
    """The momentum of APG, in a sampler that is written out here."""
    model, guide = tiny(0), tiny(0, seed=1)
    noise = torch.randn(2, 2, 8, 8)
    sigmas = [20.0, 5.0, 1.0, 0.2]
    x, momentum = noise * 20.0, 0
    for sigma, following in itertools.pairwise([*sigmas, 0.0]):
        with torch.no_grad():
            one, two = (net(x, torch.tensor(sigma)) for net in (model, guide))
        momentum = one - two - 0.5 * momentum
        along = (momentum * one).sum((1, 2, 3), keepdim=True) / (one**2).sum(
            (1, 2, 3), keepdim=True
        )
        denoised = one + 0.8 * (momentum - along * one)
        x = x + (x - denoised) / sigma * (following - sigma)
    found = sample(model, guide, APG(1.8), noise=noise, sigmas=sigmas, sampler="euler")
    assert relative_error(found, x) < 1e-5


def test_what_guidance_remembers_does_not_advance_in_a_correction():
    """Heun's method with the momentum of APG: its second evaluation has that of the first."""
    model, guide = tiny(0), tiny(0, seed=1)
    noise, sigmas = torch.randn(2, 2, 8, 8), [20.0, 5.0, 1.0, 0.2]
    before = torch.zeros_like(noise)

    def slope(x, sigma):
        with torch.no_grad():
            one, two = (net(x, torch.tensor(sigma)) for net in (model, guide))
        momentum = one - two - 0.5 * before
        along = (momentum * one).sum((1, 2, 3), keepdim=True) / (one**2).sum(
            (1, 2, 3), keepdim=True
        )
        return (x - one - 0.8 * (momentum - along * one)) / sigma, momentum

    x = noise * 20.0
    for sigma, following in itertools.pairwise([*sigmas, 0.0]):
        first, latest = slope(x, sigma)
        following_x = x + first * (following - sigma)
        if following:
            second, _ = slope(following_x, following)
            following_x = x + (first + second) / 2 * (following - sigma)
        x, before = following_x, latest
    found = sample(model, guide, APG(1.8), noise=noise, sigmas=sigmas)
    assert relative_error(found, x) < 1e-5


def test_two_batches_remember_nothing_of_each_other():
    options = {"seeds": range(4), "num_steps": 5, "guidance": APG(2.0), "class_labels": 1}
    for sampler in ("heun", "dpmpp_2m"):
        nets = tiny(), tiny(seed=1)
        whole = sample(*nets, sampler=sampler, **options)
        halves = sample(*nets, sampler=sampler, batch_size=2, **options)
        assert relative_error(halves, whole) < 1e-4


def adaptive(tolerance, noise, **options):
    """States at 0, and evaluations of each."""
    seen = []
    x = sample(
        denoiser,
        noise=noise,
        sampler=AdaptiveHeun(tolerance),
        sigma_min=0.05,
        dtype=torch.float64,
        callback=seen.append,
        **options,
    )
    assert seen[-1].is_last and not any(info.is_last for info in seen[:-1])
    return x, seen[-1].evaluations


def test_adaptive_steps_are_as_exact_as_asked():
    """A hundredth of the tolerance is a hundredth of the error, for ten times the work."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exactly = denoiser(exact(noise * 80, 80.0, 0.05), 0.05)
    errors, counts = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        x, evaluations = adaptive(tolerance, noise)
        errors.append((x - exactly).abs().max().item())
        counts.append(evaluations)
        assert errors[-1] < 15 * tolerance
    assert errors[2] < errors[0] / 30
    ratio = counts[2].double().mean() / counts[0].double().mean()
    assert 3 < ratio < 12
    # Images take steps of their own: those near the saddle between both modes more of them.
    assert counts[0].max() > 1.5 * counts[0].min()


def test_adaptive_steps_are_each_images_own():
    """An image is the same whatever the batch, and so are its evaluations."""
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    weight = {"guide": lambda x, s, c: 0.9 * denoiser(x, s), "interval": (0.2, 5.0)}
    weight["guidance"] = lambda sigma: 1.5 + sigma / 10
    for options in ({}, weight):
        together, counts = adaptive(1e-2, noise, **options)
        for i in range(5):
            alone, count = adaptive(1e-2, noise[i : i + 1], **options)
            assert torch.allclose(alone, together[i], atol=1e-10) and count == counts[i]


KINDS_AT_ANY_LEVEL = [
    lambda: APG(1.7, momentum=0),
    lambda: Rescaled(1.7),
    lambda: FrequencyDecoupled(1.7, low=1.2, interval=(0.3, 20.0)),
    lambda: Linear([table({0.3: 2.0, 3.0: 1.2})], [(0.1, 10.0)]),
    lambda: Linear([torch.tensor([1.2, 1.5, 1.9])]),
]


@pytest.mark.parametrize("kind", KINDS_AT_ANY_LEVEL)
def test_adaptive_steps_with_any_kind(kind):
    """On every way, in one batch and one by one; the weights of images stay with them."""
    labels = torch.eye(5)[[3, 1, 4]]
    options = {"seeds": [5, 6, 7], "class_labels": labels, "guidance": kind()}
    options |= {"sampler": AdaptiveHeun(0.2)}
    found = {
        way: sample(*nets(tiny(), tiny(seed=1)), **options)
        for way, nets in WAYS.items()
        if way != "callables"
    }
    for way in ("engine", "recorded"):
        assert relative_error(found[way], found["sample"]) < 2e-4, way
    alone = sample(tiny(), tiny(seed=1), batch_size=1, **options)
    assert relative_error(alone, found["sample"]) < 2e-4


def test_adaptive_steps_say_what_they_cannot_do(monkeypatch):
    options = {"seeds": [0, 1], "sampler": "adaptive_heun"}
    for kind in (APG(1.7), Reused(Linear([1.7])), CFGPlusPlus(0.5)):
        with pytest.raises(ValueError, match="guidance must not follow the steps where each image"):
            sample(tiny(), tiny(seed=1), kind, **options)
    for wrong in ("adaptive_heun:tolerance=2", "adaptive_heun:tolerance=x"):
        with pytest.raises(ValueError, match="must be adaptive_heun:tolerance=X with X above 0"):
            sample(tiny(), seeds=[0], sampler=wrong)
    exactly = sample(tiny(), seeds=[0], sampler=AdaptiveHeun(0.5))
    assert torch.equal(sample(tiny(), seeds=[0], sampler="adaptive_heun:tolerance=0.5"), exactly)
    monkeypatch.setattr("autoguide_fast.samplers.adaptive._MOST_ROUNDS", 20)
    with pytest.raises(FloatingPointError, match="tolerance must be within reach, got 1e-12"):
        adaptive(1e-12, torch.ones(1, 1, dtype=torch.float64))


def test_a_changed_state_is_gone_on_with():
    """A callback's state counts in adaptive steps, and the slope of the old one does not."""
    noise = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    options = {"noise": noise, "sampler": AdaptiveHeun(0.01), "dtype": torch.float64}

    def mirrored(info):
        return -info.x if info.step == 0 else None

    x = sample(denoiser, sigma_min=0.05, callback=mirrored, **options)
    assert torch.allclose(
        x, sample(denoiser, sigma_min=0.05, **options | {"noise": -noise}), atol=0.1
    )


def test_non_finite_values_are_found():
    broken = tiny(0)

    def bad(x, sigma, labels):
        return x * (float("nan") if sigma < 1 else 1)

    bad.img_channels, bad.img_resolution = 2, 8
    with pytest.raises(FloatingPointError, match="output of the model must be finite"):
        sample(bad, seeds=[0], num_steps=8, sampler="dpmpp_2m")
    with pytest.raises(FloatingPointError, match=r"output of the model must be finite, .* in step"):
        sample(bad, seeds=[0], sampler="adaptive_heun")
    with pytest.raises(FloatingPointError, match="output of the guide must be finite"):
        sample(broken, bad, 1.5, seeds=[0], num_steps=8, sampler="unipc")


def test_samplers_are_functions_to_call():
    """By themselves, with any denoiser that has the three methods."""

    class Plain:
        def __call__(self, x, sigma):
            return denoiser(x, sigma)

        def after_step(self, x):
            return x

        def randn(self):
            return torch.zeros(1, dtype=torch.float64)

    x = torch.tensor([[3.0]], dtype=torch.float64)
    sigmas = [5 * 0.9**i for i in range(60)] + [0.0]
    for sampler in (euler, dpmpp_2m, dpmpp_3m, unipc, dpmpp_2m_sde):
        assert (sampler(Plain(), x, sigmas) - exact(x, 5.0, 1e-3)).abs() < 0.3
