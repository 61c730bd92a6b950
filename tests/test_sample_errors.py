"""Bad input to `sample`: one clear sentence, of the right type, before any work."""

import itertools
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import tiny

from autoguide_fast import sample, unlabelled
from autoguide_fast.encoders import LatentEncoder
from autoguide_fast.seeds import StackedRandom


class NeverCalled(torch.nn.Module):
    """A model that must not be evaluated."""

    img_resolution, img_channels, label_dim = 8, 2, 5

    def __init__(self, **attributes):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        vars(self).update(attributes)

    def forward(self, *args):
        raise AssertionError("work began before the input was checked")


def bare(x, sigma, class_labels):
    raise AssertionError("work began before the input was checked")


def with_nan(name="weight"):
    net = NeverCalled()
    net.weight.data[1] = math.nan
    return net


MODEL, SEEDS = NeverCalled(), range(3)
NOISE = torch.zeros(3, 2, 8, 8)

VALUE_ERRORS = {
    "guidance_string": ({"guidance": "2"}, r"guidance must be a number, .* got '2'"),
    "unknown_model": (
        {"model": "digitz"},
        r"model must be a bundled name \(digits, digits-guide, digits-uncond, photos, "
        r"photos-guide, mnist, mnist-guide\) or an existing file, got 'digitz'",
    ),
    "unknown_guide": ({"guide": "no/such.file", "guidance": 2}, "guide must be a bundled name"),
    "guide_missing": ({"guidance": 2.0}, "guide must be given where guidance is not 1"),
    "label_too_large": ({"class_labels": 5}, r"class_labels must lie in 0\.\.4, got 5"),
    "label_negative": ({"class_labels": [0, -1, 2]}, r"class_labels must lie in 0\.\.4, got -1"),
    "labels_too_few": ({"class_labels": [0, 1]}, r"class_labels must be one class, \[3\]"),
    "labels_of_wrong_width": ({"class_labels": torch.zeros(3, 4)}, r"\[3, 5\] one-hot rows"),
    "labels_of_wrong_count": ({"class_labels": torch.zeros(2, 5)}, r"got \[2, 5\]"),
    "labels_nan": ({"class_labels": torch.full((3, 5), math.nan)}, "class_labels must be finite"),
    "labels_for_none": (
        {"model": NeverCalled(label_dim=0), "class_labels": 1},
        "class_labels must be None for a model without labels",
    ),
    "resolutions_differ": (
        {"guide": NeverCalled(img_resolution=16), "guidance": 2},
        "guide must have the model's img_resolution 8, got 16",
    ),
    "resolutions_differ_at_guidance_1": (
        {"guide": NeverCalled(img_resolution=16)},
        "guide must have the model's img_resolution 8, got 16",
    ),
    "channels_differ": (
        {"guide": NeverCalled(img_channels=3), "guidance": 2},
        "guide must have the model's img_channels 2, got 3",
    ),
    "classes_differ": (
        {"guide": NeverCalled(label_dim=7), "guidance": 2},
        "guide must have the model's label_dim 5 or none, got 7",
    ),
    "guide_wants_labels_that_model_lacks": (
        {"model": NeverCalled(label_dim=0), "guide": NeverCalled(), "guidance": 2},
        "use a guide without labels for a model without labels",
    ),
    "sigma_min_above_max": ({"sigma_min": 90}, "sigma_min must be below sigma_max, got 90 and 80"),
    "sigmas_equal": ({"sigma_min": 2, "sigma_max": 2}, "sigma_min must be below sigma_max"),
    "sigma_min_zero": ({"sigma_min": 0}, "sigma_min must be above 0, .*, got 0"),
    "sigma_max_infinite": ({"sigma_max": math.inf}, "sigma_max must be above 0, from 1e-18"),
    "sigma_max_nan": ({"sigma_max": math.nan}, "sigma_max must be above 0, .*, got nan"),
    "rho_zero": ({"rho": 0}, "rho must be above 0"),
    "no_steps": ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
    "steps_negative": ({"num_steps": -3}, "num_steps must be at least 1, got -3"),
    "churn_negative": ({"S_churn": -1}, "S_churn must be finite and >= 0, got -1"),
    "churn_bounds": ({"S_min": 2, "S_max": 1}, "S_min must not exceed S_max, got 2 and 1"),
    "churn_noise": ({"S_noise": math.inf}, "S_noise must be finite"),
    "guidance_nan": ({"guidance": math.nan}, "guidance must be finite, got nan"),
    "interval_reversed": ({"interval": (2, 1)}, "interval's upper end must be above lo, got 1"),
    "interval_negative": ({"interval": (-1, 1)}, "interval's lower end must be >= 0, got -1"),
    "batch_size": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "weights_nan": ({"model": with_nan()}, "model must have finite weights, got .* in weight"),
    "guide_weights_nan": (
        {"guide": with_nan(), "guidance": 2},
        "guide must have finite weights, got .* in weight",
    ),
    "unlabelled_weights_nan": (
        {"guide": unlabelled(with_nan()), "guidance": 2},
        "guide must have finite weights",
    ),
    "seed_negative": ({"seeds": [0, -5]}, "seeds must be >= 0, got -5"),
    "seeds_missing": ({"seeds": None}, r"seeds must be given .* seeds=range\(16\)"),
    "device_unknown": ({"device": "gpu"}, "device must be a device's name, got 'gpu'"),
    "device_absent": (
        {"device": "cuda:77"},
        "device must be present on this machine, got 'cuda:77'; ",
    ),
    "device_meta": ({"device": "meta"}, "device must be present on this machine, got 'meta'"),
    "noise_shape": (
        {"noise": torch.zeros(3, 2, 8, 9)},
        r"noise must be \[N, 2, 8, 8\], got \[3, 2, 8, 9\]",
    ),
    "noise_nan": ({"noise": NOISE * math.nan}, "noise must be finite"),
    "noise_and_seeds": ({"noise": NOISE[:2]}, "seeds must hold one seed per image .* 3 for 2"),
    "noise_without_seeds_for_labels": (
        {"noise": NOISE, "seeds": None},
        "seeds must be given beside noise where classes are drawn, got None; pass one seed per "
        "image, or class_labels$",
    ),
    "noise_without_seeds_for_churn": (
        {"noise": NOISE, "seeds": None, "class_labels": 0, "S_churn": 3},
        "seeds must be given beside noise where churn is added, got None; pass one seed per image$",
    ),
    "array_kind": ({"array": "jax"}, "array must be one of torch, numpy, cupy"),
    "array_cupy": ({"array": "cupy"}, "array must be 'torch' or 'numpy' on cpu"),
    "callable_of_unknown_shape": (
        {"model": bare},
        "shape must be given for a model that does",
    ),
    "callable_labels": (
        {"model": bare, "noise": NOISE, "class_labels": [1, 2]},
        r"class_labels must have one row per image \(3\)",
    ),
    "seeds_of_an_endless_range": ({"seeds": range(10**30)}, "seeds must be at most 10000000"),
    "seeds_of_an_endless_iterator": ({"seeds": itertools.count()}, "must be at most 10000000"),
    "seeds_negative_at_the_end": ({"seeds": range(2, -2, -1)}, "seeds must be >= 0, got -1"),
    "too_many_steps": ({"num_steps": 10**12}, "num_steps must be at most 10000, got 10000000"),
    "guidance_beyond_float": ({"guidance": 10**400}, "guidance must be finite, got int"),
    "sigmas_equal_in_float32": (
        {"sigma_min": 1, "sigma_max": 1 + 1e-9},
        "sigma_min must be below sigma_max in torch.float32",
    ),
    "sigma_beyond_float32": ({"sigma_max": 1e39}, "sigma_max must be above 0, .* got 1e.39"),
    "sigma_below_float32": ({"sigma_min": 1e-50}, "sigma_min must be above 0, .* got 1e-50"),
    "interval_nan": ({"interval": (0, math.nan)}, "interval's upper end must be above lo, got nan"),
    "label_beyond_64_bits": ({"class_labels": 2**70}, r"class_labels must lie in 0\.\.4"),
    "label_far_too_large": ({"class_labels": 10**12}, r"must lie in 0\.\.4, got 1000000000000"),
    "noise_beyond_float32": ({"noise": NOISE.double() + 1e300}, "noise must be finite in torch.f"),
    "noise_meta": ({"noise": NOISE.to("meta")}, "noise's device must be present"),
    "model_meta": ({"model": NeverCalled().to("meta")}, "networks' device must be present"),
    "device_without_its_library": ({"device": "privateuseone"}, "device must be present"),
    "model_name_too_long": ({"model": "a" * 5000}, "model must be a bundled name"),
    "label_dim": ({"model": NeverCalled(label_dim="5")}, "label_dim must be the number of classes"),
    "encoder_of_other_channels": (
        {"model": NeverCalled(encoder=LatentEncoder())},
        "model must have the 4 channels that its encoder decodes, got 2",
    ),
    "encoder_is_a_layer": (
        {"model": NeverCalled(encoder=torch.nn.Linear(1, 1)), "raw": False},
        "raw must be True or None for a model without an encoder",
    ),
    "no_encoder": ({"raw": False}, "raw must be True or None for a model without an encoder"),
}

TYPE_ERRORS = {
    "model": ({"model": 3}, "model must be a name, a path or a callable .* got int"),
    "guide": ({"guide": 3, "guidance": 2}, "guide must be a name, a path or a callable"),
    "model_none": ({"model": None}, "model must be a name, a path or a callable .* got NoneType"),
    "seeds_int": ({"seeds": 16}, r"seeds must be a sequence .* got 16; seeds=range\(16\)"),
    "seeds_float": ({"seeds": [0.5]}, "seeds must be a sequence of whole numbers"),
    "seeds_string": ({"seeds": "123"}, "seeds must be a sequence of whole numbers, got '123'"),
    "model_class": ({"model": torch.nn.Linear}, "model must be a name, a path or a callable"),
    "resolution_pair": ({"model": NeverCalled(img_resolution=(8, 8))}, "img_resolution must be a"),
    "seeds_bytes": ({"seeds": b"123"}, "seeds must be a sequence of whole numbers, got bytes"),
    "seeds_mask": ({"seeds": torch.ones(3, dtype=torch.bool)}, "seeds must be a sequence"),
    "seeds_set": ({"seeds": {1, 2}}, "seeds must be a sequence of whole numbers, got set"),
    "seeds_generator": ({"seeds": torch.Generator()}, "whole numbers, got Generator"),
    "interval_string": ({"interval": "12"}, r"interval must be a pair \(lo, hi\)"),
    "labels_of_strings": ({"class_labels": ["0", "1", "2"]}, "class_labels must be integers"),
    "labels_ragged": ({"class_labels": [[0], [1, 2]]}, "class_labels must be integers or a tensor"),
    "labels_complex": ({"class_labels": torch.ones(3, 5) * 1j}, "class_labels must be whole"),
    "noise_masked": ({"noise": np.ma.masked_array(NOISE)}, "noise must be a dense tensor or array"),
    "noise_sparse": ({"noise": NOISE.to_sparse()}, "noise must be a dense tensor or array"),
    "noise_complex": ({"noise": NOISE * 1j}, "noise must be of floating-point type"),
    "raw": ({"raw": "yes"}, "raw must be True or False or None, got 'yes'"),
    "progress": ({"progress": np.ones(2)}, "progress must be True or False"),
    "steps_float": ({"num_steps": 8.5}, "num_steps must be a whole number, got 8.5"),
    "sigma_string": ({"sigma_max": "high"}, "sigma_max must be a number, got 'high'"),
    "interval_number": ({"interval": 3}, r"interval must be a pair \(lo, hi\)"),
    "interval_triple": ({"interval": (1, 2, 3)}, r"interval must be a pair \(lo, hi\)"),
    "labels_float": ({"class_labels": [0.0, 1.0, 2.0]}, "class_labels must be whole numbers"),
    "labels_bool": ({"class_labels": torch.ones(3, dtype=torch.bool)}, "whole numbers"),
    "labels_string": ({"class_labels": "cat"}, "class_labels must be integers or a tensor"),
    "dtype": ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
    "noise_type": ({"noise": "loud"}, "noise must be a dense tensor or array of numbers, got str"),
    "callback": ({"callback": 3}, "callback must be callable, got int"),
    "noise_dtype": ({"noise": NOISE.long()}, "noise must be of floating-point type"),
}

CASES = [
    *((ValueError, *case) for case in VALUE_ERRORS.values()),
    *((TypeError, *case) for case in TYPE_ERRORS.values()),
]


@pytest.mark.parametrize(("error", "change", "message"), CASES, ids=[*VALUE_ERRORS, *TYPE_ERRORS])
def test_bad_input(error, change, message):
    with pytest.raises(error, match=message) as caught:
        sample(**{"model": MODEL, "seeds": SEEDS, **change})
    text = str(caught.value)
    # <function>: <argument> must <rule>, got <value>; <remedy>, in one line.
    assert re.fullmatch(r"sample: \S.* must .+, got .+; .+", text), text
    assert len(text) < 300


def test_net_on_another_device():
    net = tiny().to("meta")
    with pytest.raises(ValueError, match=r"model must be on cpu, got one on meta; move it there"):
        sample(net, seeds=[0], device="cpu")


class Breaks:
    """A denoiser that goes wrong at its n-th evaluation."""

    img_resolution, img_channels, label_dim = 8, 2, 5

    def __init__(self, at, value):
        self.countdown, self.value = at, value

    def __call__(self, x, sigma, class_labels):
        self.countdown -= 1
        y = x / (1 + sigma**2)
        if self.countdown == 0:
            y[-1, 0, 0, 0] = self.value
        return y


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("at", "step"), [(1, 1), (2, 1), (3, 2), (6, 3), (7, 4)])
@pytest.mark.parametrize("role", ["model", "guide"])
def test_non_finite_output_names_step_and_net(role, at, step, value):
    nets = {"model": Breaks(-1, 0.0), "guide": Breaks(-1, 0.0), role: Breaks(at, value)}
    seen = []
    with pytest.raises(
        FloatingPointError, match=rf"the {role} must be finite.* in step {step} of 4"
    ):
        sample(**nets, guidance=2, seeds=SEEDS, num_steps=4, callback=seen.append)
    assert len(seen) == step - 1


@pytest.mark.parametrize("role", ["model", "guide"])
def test_non_finite_output_of_a_network(role):
    """An overflow inside finite weights, through the engine."""
    nets = {"model": tiny(clip_act=None), "guide": tiny(seed=1, clip_act=None)}
    with torch.no_grad():
        nets[role].unet.out_gain.fill_(3e38)
    with pytest.raises(FloatingPointError, match=rf"the {role} must be finite.* in step 1 of 4"):
        sample(**nets, guidance=2, seeds=SEEDS, num_steps=4)


@pytest.mark.parametrize(
    "nets",
    [
        {"model": Breaks(-1, 0), "guide": Breaks(1, 2e38)},
        {"model": tiny(), "guide": tiny(seed=1)},
    ],
    ids=["callables", "networks"],
)
def test_overflow_of_the_state_itself(nets):
    """Guidance that is too strong is not blamed on the nets, which go wrong next."""
    with pytest.raises(FloatingPointError, match=r"the state must stay finite.*; lower guidance"):
        sample(**nets, guidance=1e38, seeds=SEEDS, num_steps=4)


def test_numbers_whose_sum_overflows_are_finite():
    def model(x, sigma, class_labels):
        return torch.full_like(x, 1e38)

    assert not NOISE.add(1e38).sum().isfinite()
    value = sample(model, noise=NOISE, num_steps=1)
    torch.testing.assert_close(value, torch.full_like(NOISE, 1e38))


@pytest.mark.parametrize(
    ("decoded", "got"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x.sum(), r"\[\]"),
        (lambda x: x[:2], r"\[2, 2, 8, 8\]"),
    ],
)
def test_wrong_output_of_an_encoder(decoded, got):
    net = tiny()
    net.encoder = SimpleNamespace(decode=decoded)
    message = rf"sample: model.encoder must decode 3 samples to .*, got {got}; return"
    with pytest.raises(TypeError, match=message):
        sample(net, seeds=SEEDS, num_steps=1)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda x: None, TypeError, "model must return a tensor, got NoneType"),
        (lambda x: (x, x), TypeError, "model must return a tensor, got tuple"),
        (lambda x: x[:1], ValueError, r"must return floating-point images \[3, 2, 8, 8\]"),
        (lambda x: x.long(), ValueError, "got torch.int64"),
        (lambda x: x * 1j, ValueError, "got torch.complex64"),
        (lambda x: x.to_sparse(), ValueError, "got torch.sparse_coo"),
        (lambda x: x.to("meta"), ValueError, "must return images on cpu .* got them on meta"),
    ],
)
def test_wrong_output_of_a_callable(returned, error, message):
    noise = StackedRandom("cpu", SEEDS).randn([2, 8, 8])
    with pytest.raises(error, match=message):
        sample(lambda x, sigma, class_labels: returned(x), noise=noise)
