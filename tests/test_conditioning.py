"""`sample`'s `cond` and `guide_cond`: what nets are told beside labels."""

import numpy as np
import pytest
import torch
from nets import tiny

from autoguide_fast import Engine, sample, unlabelled
from autoguide_fast.guidance import guided_denoiser


class Told:
    """A denoiser of images of one number each, pulled to what it is told."""

    img_channels, img_resolution, label_dim = 1, 2, 0

    def __init__(self):
        self.given = []

    def __call__(self, x, sigma, class_labels, target, width=None):
        self.given.append({"target": target, "width": width})
        return x + (target.reshape(-1, 1, 1, 1) - x) / (1 + sigma**2)


TARGETS = torch.arange(5.0)


def test_rows_go_with_their_images():
    """In batches, each image with its own row, and one row for all where there is one."""
    net = Told()
    options = {"seeds": range(5), "num_steps": 2}
    cond = {"target": TARGETS, "width": torch.tensor([[7]])}
    images = sample(net, cond=cond, batch_size=2, **options)
    assert [g["target"].tolist() for g in net.given[::3]] == [[0, 1], [2, 3], [4]]
    assert all(torch.equal(g["width"], cond["width"]) for g in net.given)
    for i in range(5):
        alone = sample(Told(), cond={"target": TARGETS[i : i + 1]}, num_steps=2, seeds=[i])
        torch.testing.assert_close(images[i : i + 1], alone)


def test_the_guide_has_the_models_or_its_own():
    model, guide = Told(), Told()
    options = {"seeds": range(2), "num_steps": 1}
    sample(model, guide, 2.0, cond={"target": TARGETS[:2]}, **options)
    assert torch.equal(guide.given[-1]["target"], TARGETS[:2])
    found = sample(
        model, model, 3.0, cond={"target": TARGETS[1:3]}, guide_cond={"target": [0.0]}, **options
    )
    one, two = (sample(Told(), cond={"target": t}, **options) for t in (TARGETS[1:3], [0.0]))
    torch.testing.assert_close(found, two + 3 * (one - two))
    assert [g["target"].tolist() for g in model.given[-2:]] == [[1, 2], [0]]


def test_unlabelled_nets_are_told_as_well():
    model = Told()
    options = {"seeds": range(2), "num_steps": 1, "cond": {"target": TARGETS[:2]}}
    torch.testing.assert_close(
        sample(model, unlabelled(model), 2.0, **options), sample(model, **options)
    )


def test_a_net_cannot_change_what_it_is_told():
    cond = {"target": TARGETS[:2].clone()}

    def spoils(x, sigma, class_labels, target):
        target.zero_()
        return x

    spoils.img_channels, spoils.img_resolution = 1, 2
    sample(spoils, cond=cond, seeds=range(2), num_steps=2)
    assert torch.equal(cond["target"], TARGETS[:2])


def test_arrays_are_taken():
    options = {"seeds": range(2), "num_steps": 1}
    found = sample(Told(), cond={"target": np.float32([0, 1])}, **options)
    torch.testing.assert_close(found, sample(Told(), cond={"target": TARGETS[:2]}, **options))


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        ([TARGETS], TypeError, "cond must be a dict of tensors, got list"),
        ({"x": TARGETS}, ValueError, "cond must be named otherwise than x, sigma and class_labels"),
        ({3: TARGETS}, ValueError, "cond must be named otherwise .* got 3"),
        ({"target": "cat"}, TypeError, r"cond\['target'\] must be a tensor or array, got str"),
        ({"target": TARGETS[:3]}, ValueError, r".* of 1 or of the images, 5, got \[3\]"),
        ({"target": torch.tensor(1.0)}, ValueError, r".* of 1 or of the images, 5, got \[\]"),
        ({"target": TARGETS / 0}, ValueError, r"cond\['target'\] must be finite"),
    ],
)
def test_bad_conditioning_is_refused(cond, error, message):
    net = Told()
    with pytest.raises(error, match=f"^sample: {message}"):
        sample(net, cond=cond, seeds=range(5), num_steps=1)
    with pytest.raises(error, match=message):
        sample(net, net, 2.0, guide_cond=cond, cond={"target": TARGETS}, seeds=range(5))
    assert not net.given


def test_networks_of_this_package_take_none():
    net, cond = tiny(), {"target": TARGETS[:1]}
    for model in (net, unlabelled(net), Engine(net)):
        with pytest.raises(ValueError, match="cond must be left out for a network that is told cl"):
            sample(model, cond=cond, seeds=[0], num_steps=1)
    with pytest.raises(ValueError, match="guide_cond must be left out for no guide"):
        sample(net, guide_cond=cond, seeds=[0], num_steps=1)
    # A guide of this package beside a model that is told more.
    told = Told()
    told.img_channels, told.img_resolution = 2, 8
    assert sample(told, tiny(0), 1.5, cond=cond, seeds=[0], num_steps=1).shape == (1, 2, 8, 8)


def test_denoisers_for_other_samplers_take_it():
    model, guide = Told(), Told()
    x, sigma = torch.randn(2, 1, 2, 2), torch.tensor(2.0)
    cond, none = {"target": TARGETS[1:3]}, {"target": torch.zeros(1)}
    found = guided_denoiser(model, guide, 3.0, guide_cond=none)(x, sigma, **cond)
    one, two = (Told()(x, sigma, None, **c) for c in (cond, none))
    torch.testing.assert_close(found, two + 3 * (one - two))
    found = guided_denoiser(model, guide, 3.0)(x, sigma, **cond)
    torch.testing.assert_close(found, one)
