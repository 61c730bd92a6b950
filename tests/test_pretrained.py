"""The bundled nets: they load, fit, denoise and sample; the card says what the files say."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from autoguide_fast import load, metrics, sample
from autoguide_fast.checkpoints.bundled import PRETRAINED
from autoguide_fast.digits import NUM_CLASSES, load_digits
from autoguide_fast.encoders import PixelEncoder
from autoguide_fast.trainer.yardstick import yardstick

NAMES = ("digits", "digits-guide", "digits-uncond")
PHOTOS = ("photos", "photos-guide")
MNIST = ("mnist", "mnist-guide")
CARD = (PRETRAINED / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_files_load(name):
    net = load(name)
    assert (net.img_resolution, net.img_channels) == (8, 1)
    assert net.label_dim == (0 if name == "digits-uncond" else NUM_CLASSES)
    assert isinstance(net.encoder, PixelEncoder)
    assert net.info["nimg"] > 0 and 0 < net.info["sigma_rel"] < 0.25 + 1e-9
    assert not net.training
    if name != "digits-guide":
        assert net.info["recommended_guidance"] > 1


@pytest.mark.parametrize("name", PHOTOS)
def test_photo_files_load(name):
    net = load(name)
    assert (net.img_resolution, net.img_channels, net.label_dim) == (32, 3, 2)
    assert isinstance(net.encoder, PixelEncoder)
    assert net.info["nimg"] > 0 and 0 < net.info["sigma_rel"] < 0.25 + 1e-9
    assert ("recommended_guidance" in net.info) == (name == "photos")


@pytest.mark.parametrize("name", MNIST)
def test_mnist_files_load(name):
    net = load(name)
    assert (net.img_resolution, net.img_channels, net.label_dim) == (28, 1, NUM_CLASSES)
    assert isinstance(net.encoder, PixelEncoder)
    assert net.info["nimg"] > 0 and 0 < net.info["sigma_rel"] < 0.25 + 1e-9
    assert ("recommended_guidance" in net.info) == (name == "mnist")


def test_mnist_draws_digits():
    """Ink on paper, in the middle, and a class that the label changes; the guide matters."""
    w = load("mnist").info["recommended_guidance"]
    options = {"seeds": range(10), "num_steps": 6, "class_labels": range(10)}
    images = sample("mnist", guidance=w, **options).float()
    assert images.shape == (10, 1, 28, 28)
    ink = images.mean(dim=(0, 1))
    assert 20 < images.mean() < 50  # of the training digits 33
    assert ink[:3].mean() < 5 < 40 < ink[10:18, 10:18].mean()
    assert ((images < 30) | (images > 225)).float().mean() > 0.8  # noise has 0.23
    assert not torch.equal(images, sample("mnist", **options).float())


@pytest.mark.parametrize("pair", [NAMES[:2], PHOTOS, MNIST])
def test_main_and_guide_are_small(pair):
    size = sum((PRETRAINED / f"{name}.safetensors").stat().st_size for name in pair)
    assert size < 3e6


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_denoises_photos(name, sigma):
    """Better than the mean and spread of every pixel can; the crops are of the training."""
    net = load(name)
    images, classes = yardstick("photos").load("train")
    clean = net.encoder.encode(images[::40])
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.nn.functional.one_hot(classes[::40], 2).float()
    with torch.no_grad():
        denoised = net(noisy, torch.tensor(sigma), labels)
    mean, var = clean.mean(0), clean.var(0)
    wiener = mean + (noisy - mean) * var / (var + sigma**2)
    assert (denoised - clean).square().mean() < 0.8 * (wiener - clean).square().mean()


def test_photo_samples_show_the_photo_asked_for():
    """Without and with autoguidance."""
    measure = yardstick("photos")
    classes = measure.classes(48)
    images = {
        w: sample("photos", guidance=w, class_labels=classes, seeds=range(48), num_steps=8)
        for w in (1.0, load("photos").info["recommended_guidance"])
    }
    for drawn in images.values():
        assert drawn.shape == (48, 3, 32, 32) and drawn.dtype == torch.uint8
        quality = measure.training.quality(drawn, classes)
        assert quality.agreement > 0.9
        # As few crops lie at 15 from all of them, noise at 150.
        assert quality.frechet < 3 * measure.training.frechet(measure.load("train")[0][::83])
    assert not torch.equal(*images.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_denoises_held_out_digits(name, sigma):
    """Against the best that a denoiser which knows only the data's mean and spread could do."""
    net = load(name)
    images, classes = load_digits("heldout")
    clean = net.encoder.encode(images)
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.nn.functional.one_hot(classes, NUM_CLASSES).float()
    with torch.no_grad():
        denoised = net(noisy, torch.tensor(sigma), labels if net.label_dim else None)
    # Wiener filter pixel by pixel.
    mean, var = clean.mean(0), clean.var(0)
    wiener = mean + (noisy - mean) * var / (var + sigma**2)
    error = (denoised - clean).square().mean()
    assert error < 0.8 * (wiener - clean).square().mean()
    assert error < 0.5 * sigma**2


@pytest.fixture(scope="module")
def samples():
    """60 images without and with autoguidance, and their classes."""
    classes = [i % NUM_CLASSES for i in range(60)]
    main = load("digits")
    drawn = {
        w: sample(main, "digits", w, class_labels=classes, seeds=range(60), num_steps=12)
        for w in (1.0, main.info["recommended_guidance"])
    }
    return drawn, classes


def test_samples_show_the_digits_asked_for(samples):
    drawn, classes = samples
    images, labels = load_digits("train")
    judge = metrics.train_classifier(metrics.pixel_features(images), labels)
    for guidance, batch in drawn.items():
        share = metrics.class_agreement(judge, metrics.pixel_features(batch), np.array(classes))
        assert share > 0.85, guidance


def test_samples_are_not_copies(samples):
    """No nearer to the training digits than held-out digits are, by more than a third."""
    drawn, _ = samples
    train, heldout = (metrics.pixel_features(load_digits(s)[0]) for s in ("train", "heldout"))
    for guidance, batch in drawn.items():
        near = metrics.memorisation(metrics.pixel_features(batch), train, heldout)
        assert near.ratio > 0.67, guidance
        assert near.sample_distances.min() > 0.1, guidance


@pytest.mark.parametrize("name", [*NAMES, *PHOTOS, *MNIST])
def test_card_agrees_with_the_files(name):
    net = load(name)
    (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", CARD, flags=re.MULTILINE)
    cells = [cell.strip().replace(",", "") for cell in row.split("|")]
    assert cells[0] == str(sum(p.numel() for p in net.parameters()))
    assert cells[1] == str(net.info["nimg"])
    assert float(cells[2]) == net.info["sigma_rel"]
    weight = net.info.get("recommended_guidance")
    assert cells[3] == ("-" if weight is None else f"{weight:g}")


def test_card_table_agrees_with_the_recorded_weights():
    recommended = {
        "autoguidance": [
            load(name).info["recommended_guidance"] for name in ("digits", "photos", "mnist")
        ],
        "CFG": [load("digits-uncond").info["recommended_guidance"]],
    }
    for method, expected in recommended.items():
        weights = re.findall(rf"^\| {method} \| ([\d.]+) \|", CARD, flags=re.MULTILINE)
        assert [float(weight) for weight in weights] == expected


def test_card_names_licences_and_commands():
    for words in (
        "CC BY 4.0",
        "CC BY 2.0",
        "Apache-2.0",
        "--data photos",
        "autoguide-fast train",
        "autoguide-fast judge",
    ):
        assert words in CARD
