"""Nets trained along a variance-preserving process with numbered timesteps: DDPM's and its heirs.

There `x_t = alpha x_0 + s eps` with `alpha^2 + s^2 = 1`. Divided by alpha this is
`x = x_0 + sigma eps` with `sigma = s / alpha`, so that the net is given `x / sqrt(1 + sigma^2)` and
the timestep whose sigma it is.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .adapter import Adapter

_MOST_SIGMA = 1e6  # beyond, there is nothing left of the data


class DiscreteAdapter(Adapter):
    """A net with numbered timesteps; `EpsilonDenoiser`, `VDenoiser`, `SampleDenoiser` are some.

    Args:
        net: As for `Adapter`, with timesteps `[N]`, which begin at 0.
        alphas_cumprod: `alpha^2` of each timestep, falling, as a scheduler of diffusers has it: a
            tensor or a sequence.
        fractional: Whether timesteps may lie between the numbered ones; if not, the nearest is
            taken, as int64.
        sigma_min, sigma_max: Default: those of the first and last timestep.
        **options: As for `Adapter`.
    """

    log_sigmas: Tensor

    def __init__(
        self,
        net: Any,
        alphas_cumprod: Any,
        *,
        fractional: bool = True,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        **options: Any,
    ):
        name = type(self).__name__
        alphas = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64).flatten()
        inside = bool(((alphas >= 0) & (alphas < 1)).all())
        if len(alphas) < 2 or not inside or bool((alphas.diff() >= 0).any()):
            raise ValueError(
                f"{name}: alphas_cumprod must fall from below 1 to 0 or more, got {len(alphas)} "
                "others; pass scheduler.alphas_cumprod"
            )
        sigmas = ((1 - alphas) / alphas).sqrt()
        sigmas = sigmas[sigmas < _MOST_SIGMA]  # a last timestep of pure noise has none
        super().__init__(
            net,
            float(sigmas[0]) if sigma_min is None else sigma_min,
            float(sigmas[-1]) if sigma_max is None else sigma_max,
            **options,
        )
        self.fractional = fractional
        self.register_buffer("log_sigmas", sigmas.log(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiscreteAdapter:
        # The table keeps its precision, whatever type the net is turned to.
        table = self.log_sigmas
        super()._apply(fn, recurse)
        self.log_sigmas = table.to(fn(table).device)
        return self

    def timesteps(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timesteps whose noise levels are `sigma`; outside the table, those at its ends."""
        table = self.log_sigmas.to(sigma.device)
        wanted = sigma.to(torch.float64).log()
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        time = (above - 1 + (wanted - low) / (high - low)).clamp(0, len(table) - 1)
        return time.to(torch.float32) if self.fractional else time.round().long()

    def _denoise(self, x: Tensor, levels: Tensor, conditioning: dict[str, Any]) -> Tensor:
        x_t = x / (levels**2 + 1).sqrt()
        output = self._evaluated(x_t, self.timesteps(levels.flatten()), conditioning)
        if output.shape != x.shape:
            return output
        return self._combined(x, levels, output)

    @abc.abstractmethod
    def _combined(self, x: Tensor, levels: Tensor, output: Tensor) -> Tensor:
        """The denoised images of `x` at `levels` where the net returned `output`."""


class EpsilonDenoiser(DiscreteAdapter):
    """A net that predicts the noise, as DDPM's does: `D = x - sigma eps`.

    For the arguments see `DiscreteAdapter`.
    """

    prediction = "the noise"

    def _combined(self, x: Tensor, levels: Tensor, output: Tensor) -> Tensor:
        return x - levels * output


class VDenoiser(DiscreteAdapter):
    """A net that predicts `v = alpha eps - s x_0`: `D = alpha (alpha x - sigma v)`.

    Here `alpha = 1 / sqrt(1 + sigma^2)`. For the arguments see `DiscreteAdapter`.
    """

    prediction = "v"

    def _combined(self, x: Tensor, levels: Tensor, output: Tensor) -> Tensor:
        alpha = 1 / (levels**2 + 1).sqrt()
        return alpha * (alpha * x - levels * output)


class SampleDenoiser(DiscreteAdapter):
    """A net that predicts the data, which are `D`.

    For the arguments see `DiscreteAdapter`.
    """

    prediction = "the data"

    def _combined(self, x: Tensor, levels: Tensor, output: Tensor) -> Tensor:
        return output
