"""Guidance: the combination, where the guide runs, the unlabelled guide."""

import copy
import math

import pytest
import torch

from autoguide_fast.guidance import guided, guided_denoiser, guides_at, unlabelled
from autoguide_fast.networks import Precond


def test_guided_combination():
    good, bad = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])
    assert torch.equal(guided(good, bad, 1), good)
    assert torch.equal(guided(good, bad, 0), bad)
    assert torch.equal(guided(good, bad, 2), torch.tensor([5.0, -3.0]))


@pytest.mark.parametrize(
    ("sigma", "guidance", "interval", "runs"),
    [
        (1.0, 1.0, None, False),
        (1.0, 1.0, (0, 80), False),
        (1.0, 2.0, None, True),
        (1.0, 0.0, None, True),
        (0.28, 2.0, (0.28, 2.9), False),
        (0.29, 2.0, (0.28, 2.9), True),
        (2.9, 2.0, (0.28, 2.9), True),
        (3.0, 2.0, (0.28, 2.9), False),
        (3.0, 2.0, (0.28, math.inf), True),
    ],
)
def test_where_the_guide_runs(sigma, guidance, interval, runs):
    assert guides_at(sigma, guidance, interval) == runs


def test_guided_denoiser_runs_the_guide_only_where_needed():
    calls = []

    def guide(x, sigma, class_labels):
        calls.append(float(sigma))
        return 0 * x

    def model(x, sigma, class_labels):
        return x / 2

    x = torch.ones(2, 3)
    w2 = guided_denoiser(model, guide, 2.0, interval=(1, 5))
    assert torch.equal(w2(x, torch.tensor(5.0)), x)
    assert torch.equal(w2(x, torch.tensor(1.0)), x / 2)
    assert torch.equal(guided_denoiser(model, guide, 1.0)(x, 5.0), x / 2)
    assert calls == [5.0]


def test_unlabelled_hides_the_label_and_nothing_else():
    net = Precond(8, 2, 5, model_channels=8, channel_mult=[1], num_blocks=1).eval()
    torch.nn.init.ones_(net.unet.out_gain)
    for name, gain in net.named_parameters():
        if name.endswith("emb_gain"):
            torch.nn.init.ones_(gain)
    bare = unlabelled(net)
    x, labels = torch.randn(2, 2, 8, 8), torch.eye(5)[:2]
    assert torch.equal(bare(x, 0.5, labels), net(x, 0.5, None))
    assert not torch.equal(bare(x, 0.5, labels), net(x, 0.5, labels))
    assert (bare.label_dim, bare.img_resolution, bare.img_channels) == (0, 8, 2)
    assert copy.deepcopy(bare).net is not net


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, None, 1), TypeError, "model must be a callable"),
        ((math.sin, None, 2), TypeError, "guide must be a callable .* got NoneType"),
        ((None, None, 1), TypeError, "model must be a callable"),
        ((math.sin, "digits", 1), TypeError, "guide must be a callable .* got str"),
        ((math.sin, None, 0.5), TypeError, "guide must be a callable .* got NoneType"),
        ((math.sin, math.sin, math.nan), ValueError, "guidance must be finite, got nan"),
        ((math.sin, math.sin, torch.ones(2)), TypeError, "guidance must be a number"),
        ((math.sin, math.sin, 2, (2, 1)), ValueError, "interval's upper end must be above lo"),
    ],
)
def test_guided_denoiser_rejects(arguments, error, message):
    with pytest.raises(error, match="guided_denoiser: " + message):
        guided_denoiser(*arguments)


def test_without_guidance_there_need_be_no_guide():
    def model(x, sigma, class_labels):
        return x / 2

    assert torch.equal(guided_denoiser(model, None, 1)(torch.ones(2, 3), 5.0), torch.ones(2, 3) / 2)


def test_guided_denoiser_wants_one_level_where_there_is_an_interval():
    def net(x, sigma, class_labels):
        return x / sigma.reshape(-1, 1)

    x, levels = torch.ones(2, 3), torch.tensor([1.0, 2.0])
    assert torch.equal(guided_denoiser(net, net, 2.0)(x, levels), net(x, levels, None))
    with pytest.raises(ValueError, match=r"sigma must be one level .* got 1 to 2"):
        guided_denoiser(net, net, 2.0, (0, 5))(x, levels)


def test_unlabelled_twice_is_unlabelled():
    bare = unlabelled(Precond(8, 2, 5, model_channels=8, channel_mult=[1], num_blocks=0))
    assert unlabelled(bare) is bare


def test_unlabelled_wants_a_callable():
    with pytest.raises(TypeError, match=r"net must be callable, got str; .* autoguide_fast\.load"):
        unlabelled("digits")
