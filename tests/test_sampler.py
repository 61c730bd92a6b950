"""The sampler: golden samples, exact solutions, what an image depends on, what guidance runs."""

import itertools
import math

import pytest
import torch
from golden import golden, golden_net
from nets import tiny
from references import assert_sample, textbook
from tape import Tape
from tolerances import (
    GOLDEN_SAMPLES,
    GOLDEN_SAMPLES_FLOAT64_STATE,
    assert_as_exact,
    relative_error,
)

from autoguide_fast import sample, unlabelled
from autoguide_fast.eager import EagerStepper
from autoguide_fast.engine.cpu_engine import CpuEngine
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.guidance import guided_denoiser
from autoguide_fast.sampler import Stepper, heun, plan_steps
from autoguide_fast.schedules import Churn, rho_schedule
from autoguide_fast.seeds import StackedRandom

# How each golden sample was made. The last two are known by name and noise only; their parameters
# were found by search, and are unmistakable: the nearest others tried miss by 3e-3 and more.
GOLDEN = {
    "sample_no_guidance": {"num_steps": 8},
    "sample_autoguidance_w2.1_steps8": {"guidance": 2.1, "num_steps": 8},
    "sample_autoguidance_w1.7_steps32": {"guidance": 1.7},
    "sample_float64_w2.1_steps8": {"guidance": 2.1, "num_steps": 8, "dtype": torch.float64},
    "sample_custom_schedule_w0.5": {
        "guidance": 0.5,
        "num_steps": 5,
        "sigma_min": 0.01,
        "sigma_max": 20,
        "rho": 5,
    },
    "sample_churn40_w2.1_steps8": {
        "guidance": 2.1,
        "num_steps": 8,
        "S_churn": 40,
        "S_min": 0.05,
        "S_max": 50,
        "S_noise": 1.003,
    },
}


@pytest.fixture(scope="module")
def pair():
    return golden_net("guided_sampling", "net/"), golden_net("guided_sampling", "gnet/")


def as_callable(net):
    """The net behind a plain function: no engine, no attributes."""
    return lambda x, sigma, class_labels: net(x, sigma, class_labels)


@pytest.mark.parametrize("through", ["networks", "callables"])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_samples(pair, name, through):
    data, options = golden("guided_sampling"), GOLDEN[name]
    model, guide = pair
    options = {"seeds": data["seeds"], **options}
    if through == "callables":
        model, guide = as_callable(model), as_callable(guide)
        options |= {"noise": data["noise"], "class_labels": data["labels"]}
        if "S_churn" in options:  # a callable without label_dim draws no class before its churn
            model.label_dim = 10
    result = sample(model, guide, **options)
    double = data[name].dtype == torch.float64
    assert result.dtype == data[name].dtype
    tolerance = GOLDEN_SAMPLES_FLOAT64_STATE if double else GOLDEN_SAMPLES
    assert relative_error(result, data[name]) < tolerance


def test_every_golden_sample_is_met():
    assert set(GOLDEN) == {name for name in golden("guided_sampling") if "sample" in name}


# --- the integrator -----------------------------------------------------------------------------


def gaussian(x, sigma, class_labels=None):
    """The exact denoiser of data drawn from N(0, 0.5^2)."""
    return x * 0.25 / (0.25 + sigma**2)


def exact_gaussian(noise, sigma_max):
    """Where the exact flow takes `sigma_max * noise`: x / sqrt(sigma^2 + 0.25) is constant."""
    return noise * sigma_max * 0.5 / math.sqrt(sigma_max**2 + 0.25)


def test_heun_is_of_second_order():
    noise = torch.randn(4, 3, dtype=torch.float64)
    options = {"noise": noise, "sigma_max": 5, "sigma_min": 1e-4, "dtype": torch.float64}
    errors = [
        relative_error(sample(gaussian, num_steps=n, **options), exact_gaussian(noise, 5))
        for n in (16, 32, 64, 128)
    ]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(1.8 < order < 2.6 for order in orders), (errors, orders)
    assert errors[-1] < 1e-3


def test_one_step_returns_the_denoised_noise():
    noise = torch.randn(2, 3)
    result = sample(gaussian, noise=noise, num_steps=1, sigma_max=4.0)
    assert relative_error(result, gaussian(4 * noise, 4.0)) < 1e-5


def test_churn_keeps_the_distribution():
    """On the exact denoiser, noise added and removed again leaves the data's spread."""
    noise = StackedRandom("cpu", range(2000)).randn([4])
    options = {"noise": noise, "seeds": range(2000), "num_steps": 40, "sigma_max": 10}
    churned = sample(gaussian, S_churn=20, batch_size=2000, **options)
    plain = sample(gaussian, batch_size=2000, **options)
    assert churned.std().item() == pytest.approx(0.5, rel=0.03)
    correlation = torch.corrcoef(torch.stack([churned.flatten(), plain.flatten()]))[0, 1]
    assert abs(correlation) < 0.5, "churn should have replaced most of the noise"


def test_plan_of_steps():
    steps = plan_steps([8.0, 4.0, 2.0, 0.0], guidance=2.0, interval=(1, 4), churn=Churn(0.75, 5, 9))
    assert [(s.sigma, s.sigma_hat, s.sigma_next) for s in steps] == [
        (8, 10, 4),
        (4, 4, 2),
        (2, 2, 0),
    ]
    assert [(s.guided, s.guided_next, s.is_last) for s in steps] == [
        (False, True, False),
        (True, True, False),
        (True, False, True),
    ]
    assert [s.churn_std for s in steps] == [6, 0, 0]
    assert [(s.level.item(), s.level_next.item()) for s in steps] == [(10, 4), (4, 2), (2, 0)]
    assert all(s.level.dtype == torch.float64 and s.level.ndim == 0 for s in steps)


class Noted(Stepper):
    """Notes what it is asked for; its state is the number of calls."""

    def __init__(self):
        self.calls, self.outputs = [], []

    def first(self, x, step):
        self.calls.append(("first", step.index, x.item()))
        return x + 1, x - 1

    def second(self, x, x_next, slope, step):
        self.calls.append(("second", step.index, x.item(), x_next.item(), slope.item()))
        return x_next + 1


def test_what_a_stepper_is_asked_for():
    """What `Stepper` promises whoever writes one."""
    stepper, steps = Noted(), plan_steps([1.0, 0.5, 0.2, 0.0])
    seen = []
    result = heun(stepper, torch.zeros(1), steps, on_step=lambda step, x: seen.append(x.item()))
    assert stepper.calls == [
        ("first", 0, 0),
        ("second", 0, 0, 1, -1),
        ("first", 1, 2),
        ("second", 1, 2, 3, 1),
        ("first", 2, 4),
    ]
    assert seen == [2, 4, 5] and result == 5
    assert stepper.whole(torch.zeros(1), None) is None  # nothing faster than `heun`, unless said


def test_all_steppers_keep_the_protocol():
    model, guide = tiny(), tiny(seed=1)
    steps = plan_steps([2.0, 1.0, 0.0], guidance=1.5)
    noise = torch.randn(2, 2, 8, 8)
    steppers = [
        EagerStepper(model, guide, 1.5, torch.eye(5)[:2]),
        CpuEngine(model, guide).stepper(1.5, torch.eye(5)[:2], steps),
        GpuEngine(model, guide, torch.float32, Tape()).stepper(1.5, torch.eye(5)[:2], steps),
    ]
    x = 2.0 * noise
    for stepper in steppers:
        given = x.clone()
        with torch.no_grad():
            x_next, slope = stepper.first(given, steps[0])
            assert [role for role, _ in stepper.outputs] == ["model", "guide", "state"]
            kept = x_next.clone(), slope.clone()
            corrected = stepper.second(given, x_next, slope, steps[0])
            roles = ["model", "guide", "state", "model", "guide"]
            assert [role for role, _ in stepper.outputs] == roles
            assert all(map(torch.equal, (x_next, slope, given), (*kept, x)))
            after = corrected.clone()
            stepper.first(corrected, steps[1])
            assert [role for role, _ in stepper.outputs] == ["model", "guide", "state"]
        assert torch.equal(corrected, after)
        for value in (x_next, slope, corrected):
            assert value.shape == x.shape and value.dtype == x.dtype


def test_the_loop_is_differentiable():
    steps = plan_steps(rho_schedule(4, sigma_max=5.0))
    noise = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    result = heun(EagerStepper(gaussian), noise, steps)
    (gradient,) = torch.autograd.grad(result.sum(), noise)
    assert relative_error(gradient * noise, result) < 1e-12  # the flow is linear here


# --- guidance -----------------------------------------------------------------------------------


class Counted:
    """A callable that notes where it was evaluated, and with which labels."""

    def __init__(self, net, **attributes):
        self.net, self.sigmas, self.labels = net, [], []
        vars(self).update(attributes)

    def __call__(self, x, sigma, class_labels):
        self.sigmas.append(float(sigma))
        self.labels.append(class_labels)
        return self.net(x, sigma, class_labels)


def test_counts_of_evaluations():
    model, guide = Counted(gaussian), Counted(gaussian)
    sample(model, guide, 2.0, noise=torch.randn(2, 3))
    assert len(model.sigmas) == len(guide.sigmas) == 63
    assert model.sigmas == guide.sigmas


def test_guidance_of_one_never_runs_the_guide():
    def guide(x, sigma, class_labels):
        raise AssertionError("the guide ran")

    noise = torch.randn(2, 3)
    result = sample(gaussian, guide, 1.0, noise=noise)
    assert torch.equal(result, sample(gaussian, noise=noise))
    net = tiny()
    hooked = tiny(seed=1)
    hooked.register_forward_hook(guide)
    assert torch.equal(
        sample(net, hooked, 1.0, seeds=[0], num_steps=3), sample(net, seeds=[0], num_steps=3)
    )


def test_guide_runs_inside_the_interval_only():
    low, high = 0.3, 3.0
    model, guide = Counted(gaussian), Counted(lambda x, sigma, _: 0.5 * gaussian(x, sigma))
    options = {"noise": torch.randn(2, 3), "dtype": torch.float64}
    result = sample(model, guide, 2.0, interval=(low, high), **options)
    assert guide.sigmas == [s for s in model.sigmas if low < s <= high]
    assert 0 < len(guide.sigmas) < 63
    # One denoiser made of both says the same, with an interval and without one.
    for interval, expected in (((low, high), result), (None, None)):
        if expected is None:
            expected = sample(gaussian, guide, 2.0, **options)
        combined = guided_denoiser(gaussian, guide, 2.0, interval)
        assert relative_error(sample(combined, **options), expected) < 1e-12


def test_interval_on_networks():
    model, guide = tiny(), tiny(seed=1)
    options = {"seeds": range(3), "num_steps": 6}
    inside = sample(model, guide, 1.8, interval=(0.1, 5), **options)
    combinations = []
    for dtype in (torch.float32, torch.float64):
        combined = guided_denoiser(textbook(model, dtype), textbook(guide, dtype), 1.8, (0.1, 5))
        combined.label_dim, combined.img_resolution, combined.img_channels = 5, 8, 2
        combinations.append(sample(combined, dtype=dtype, **options))
    assert_as_exact(inside, *combinations)
    everywhere = sample(model, guide, 1.8, interval=(0, math.inf), **options)
    assert_sample(everywhere, model, guide, 1.8, **options)
    nowhere = sample(model, guide, 1.8, interval=(90, 100), **options)
    assert_sample(nowhere, model, **options)
    assert relative_error(inside, everywhere) > 1e-3


def test_classifier_free_guidance():
    """From a guide without labels, and from the model's own unlabelled output."""
    model, options = tiny(), {"seeds": range(3), "num_steps": 4}
    own = sample(model, unlabelled(model), 1.5, **options)
    explicit = Counted(lambda x, sigma, class_labels: textbook(model)(x, sigma, None))
    exact = sample(textbook(model), explicit, 1.5, dtype=torch.float64, **options)
    assert_as_exact(own, sample(model, explicit, 1.5, **options), exact)
    assert relative_error(own, sample(model, **options)) > 1e-3
    guide = tiny(label_dim=0, seed=1)
    counted = Counted(guide, label_dim=0)
    assert_sample(sample(model, guide, 1.5, **options), model, guide, 1.5, **options)
    assert_sample(sample(model, counted, 1.5, **options), model, guide, 1.5, **options)
    assert counted.labels == [None] * 7
