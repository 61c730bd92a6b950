"""What digits of 28x28 pixels are compared by: features of a small classifier, or fewer pixels.

Frechet distances in all 784 pixels would need thousands of samples for a covariance. A classifier
that is trained here on the training digits, in seconds and always alike, has 64 features, as
Inception's stand for photographs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from autoguide_fast.metrics import pixel_features
from autoguide_fast.mnist import NUM_CLASSES, RESOLUTION, load_mnist

_WIDTH, _EPOCHS, _BATCH, _RATE = 64, 8, 50, 1e-3


@torch.no_grad()
def learned(images: Any) -> np.ndarray:
    """The classifier's last hidden layer: from uint8 `[N, 1, 28, 28]` to float64 `[N, 64]`."""
    parts = torch.as_tensor(images).split(500)
    return np.concatenate([classifier()[:-1](_scaled(part)).double().numpy() for part in parts])


def blurred(images: Any) -> np.ndarray:
    """Images of 7x7 pixels, each the mean of 4x4: to float64 `[N, 49]` in [-1, 1]."""
    side = RESOLUTION // 4
    pixels = pixel_features(images).reshape(-1, side, 4, side, 4)
    return pixels.mean(axis=(2, 4)).reshape(-1, side**2)


@functools.cache
@torch.enable_grad()
def classifier() -> nn.Sequential:
    """Two convolutions and a hidden layer, trained on the digits that nets are trained on."""
    images, labels = load_mnist("train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (RESOLUTION // 4) ** 2, _WIDTH),
            nn.ReLU(),
            nn.Linear(_WIDTH, NUM_CLASSES),
        )
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(_BATCH):
            loss = nn.functional.cross_entropy(net(_scaled(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def _scaled(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1
