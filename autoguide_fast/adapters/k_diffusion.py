"""Denoisers of k-diffusion, which are denoisers already but for the form of their arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .adapter import Adapter


class KDiffusionDenoiser(Adapter):
    """A denoiser `(x, sigma [N], **extra_args) -> D` as k-diffusion has them.

    Args:
        net: The denoiser.
        sigma_min, sigma_max: Default: `net.sigma_min` and `net.sigma_max`, which those with
            numbered timesteps have.
        **options: As for `Adapter`.
    """

    def __init__(
        self,
        net: Any,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        **options: Any,
    ):
        own: dict[str, Any] = {"sigma_min": sigma_min, "sigma_max": sigma_max}
        for name, value in own.items():
            own[name] = getattr(net, name, None) if value is None else value
            if own[name] is None:
                raise ValueError(
                    f"KDiffusionDenoiser: {name} must be given for a net that does not tell it, "
                    "got None; pass the noise level that it was trained with"
                )
        super().__init__(net, float(own["sigma_min"]), float(own["sigma_max"]), **options)

    def _denoise(self, x: Tensor, levels: Tensor, conditioning: dict[str, Any]) -> Tensor:
        return self._evaluated(x, levels, conditioning)
