"""The training loss: denoising error, weighted by noise level and by a learned uncertainty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .options import TrainOptions


def loss_of(options: TrainOptions) -> EDM2Loss:
    """The loss of a run, which counts the head's error where the net has a head."""
    head_weight = options.head_weight if options.head_after else 0.0
    return EDM2Loss(options.P_mean, options.P_std, options.sigma_data, head_weight)


class EDM2Loss:
    """Uncertainty-weighted denoising loss (EDM2 eq. 14-16 and 21).

    `weight(sigma) / exp(u(sigma)) * (D(y + n; sigma) - y)^2 + u(sigma)` for each element, where
    `weight = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2`, `ln sigma ~ N(P_mean, P_std^2)`,
    `n ~ N(0, sigma^2)` and `u` is the net's log-variance head.

    With a head inside the net (`head_after`) its denoising error, weighted by noise level and by
    the same uncertainty, from which nothing flows back, is added `head_weight` times (arXiv
    2512.24176).

    Args:
        P_mean, P_std: mean and standard deviation of ln sigma.
        sigma_data: standard deviation that the loss and the net take the data to have.
        head_weight: of the head's error; 0 for a net without a head.

    Raises:
        ValueError: P_std < 0, sigma_data <= 0 or head_weight < 0, or a number that is not finite.
    """

    def __init__(
        self,
        P_mean: float = -0.4,
        P_std: float = 1.0,
        sigma_data: float = 0.5,
        head_weight: float = 0.0,
    ) -> None:
        if not math.isfinite(P_mean):
            raise ValueError(f"EDM2Loss: P_mean must be finite, got {P_mean}; -0.4 is usual")
        if not 0 <= P_std < math.inf:
            raise ValueError(f"EDM2Loss: P_std must be >= 0 and finite, got {P_std}; 1.0 is usual")
        if not 0 < sigma_data < math.inf:
            raise ValueError(
                f"EDM2Loss: sigma_data must be > 0 and finite, got {sigma_data}; 0.5 is usual"
            )
        if not 0 <= head_weight < math.inf:
            raise ValueError(
                f"EDM2Loss: head_weight must be >= 0 and finite, got {head_weight}; 0.5 is usual"
            )
        self.P_mean, self.P_std, self.sigma_data = P_mean, P_std, sigma_data
        self.head_weight = head_weight

    def __call__(
        self,
        net: torch.nn.Module,
        images: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        guidance: torch.Tensor | None = None,
        teacher: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Loss of each element, [N, C, H, W] in the dtype of `images`; differentiable.

        Args:
            net: called as `net(x, sigma, class_labels, return_logvar=True)`, and with
                `return_head=True` where the head's error counts.
            images: clean `y` [N, C, H, W], scaled as the net expects.
            class_labels: one-hot [N, label_dim], or None.
            sigma: noise levels [N, 1, 1, 1]; default: drawn.
            noise: standard normal, shaped as `images`; default: drawn.
            generator: the source of what is drawn; default: the global one.
            guidance: weights [N] for a net that takes them as an input.
            teacher: gives what the net is to return instead of `y`, from noisy images, sigma,
                labels and guidance; default: the images themselves.
        """
        if sigma is None:
            normal = torch.randn(
                [images.shape[0], 1, 1, 1],
                dtype=images.dtype,
                generator=generator,
                device=images.device,
            )
            sigma = (normal * self.P_std + self.P_mean).exp()
        if noise is None:
            noise = torch.randn(
                images.shape, dtype=images.dtype, generator=generator, device=images.device
            )
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        noisy = images + sigma * noise
        target = images if teacher is None else teacher(noisy, sigma, class_labels, guidance)
        told: dict = {} if guidance is None else {"guidance": guidance}
        if self.head_weight:
            told["return_head"] = True
        denoised, logvar, *head = net(noisy, sigma, class_labels, return_logvar=True, **told)
        logvar = logvar.reshape(-1, 1, 1, 1)
        loss = (weight / logvar.exp()) * (denoised - target) ** 2 + logvar
        for early in head:
            error = (weight / logvar.detach().exp()) * (early - target) ** 2
            loss = loss + self.head_weight * error
        return loss
