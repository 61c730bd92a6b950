"""Nets trained by flow matching on straight lines between data and noise: SiT, SD3 and others.

With `t` the share of noise, `x_t = (1 - t) data + t noise`. Divided by `1 - t` this is
`x = data + sigma noise` with `sigma = t / (1 - t)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .adapter import Adapter

VELOCITIES = ("noise - data", "data - noise")


class FlowDenoiser(Adapter):
    """A net that predicts a velocity: `D = x_t - t (noise - data)`.

    Args:
        net: As for `Adapter`; its times `[N]` run from 0 to `time_scale`.
        velocity: What it predicts: "noise - data" as nets of diffusers do (SD3, Flux), or
            "data - noise" as SiT.
        data_at: Time at which there are data: 0 for nets of diffusers, 1 for SiT.
        time_scale: What the net is told for time 1: 1000 for nets of diffusers.
        sigma_min, sigma_max: The noise levels; the net knows all of them.
        **options: As for `Adapter`.
    """

    prediction = "a velocity"

    def __init__(
        self,
        net: Any,
        *,
        velocity: str = "noise - data",
        data_at: int = 0,
        time_scale: float = 1.0,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        **options: Any,
    ):
        if velocity not in VELOCITIES:
            raise ValueError(
                f"FlowDenoiser: velocity must be one of {VELOCITIES}, got {velocity!r}; the first "
                "is that of diffusers, the second that of SiT"
            )
        if data_at not in (0, 1):
            raise ValueError(
                f"FlowDenoiser: data_at must be 0 or 1, got {data_at!r}; it is the time at which "
                "there are data"
            )
        super().__init__(net, sigma_min, sigma_max, **options)
        self.velocity, self.data_at, self.time_scale = velocity, data_at, time_scale

    def _denoise(self, x: Tensor, levels: Tensor, conditioning: dict[str, Any]) -> Tensor:
        noise_share = levels / (1 + levels)
        time = noise_share if self.data_at == 0 else 1 / (1 + levels)
        x_t = x / (1 + levels)
        output = self._evaluated(x_t, time * self.time_scale, conditioning)
        if output.shape != x.shape:
            return output
        sign = 1 if self.velocity == VELOCITIES[0] else -1
        return x_t - sign * noise_share * output
