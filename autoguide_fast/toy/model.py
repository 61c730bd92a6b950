"""The denoiser of the two-dimensional toy (arXiv 2406.02507, section 3): a small MLP."""

import itertools
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..nn import MPConv


class ToyModel(torch.nn.Module):
    """A density over the plane, learned as a scalar; its gradient is the score.

    The log-density, up to a constant, is `mean(y^2) gain / sigma - |x_in|^2 / 2` with
    `x_in = x / sqrt(sigma^2 + sigma_data^2)` and `y` what five magnitude-preserving layers make of
    `(x_in, ln(sigma) / 4, 1)`. The denoiser is `D = x + sigma^2 score`.

    Args:
        hidden_dim: width of the layers.
        sigma_data: standard deviation of the data.
    """

    # What `sample` asks a model for: the shape of a point, and the noise levels of the toy.
    sample_shape = (2,)
    sigma_min, sigma_max = 0.002, 5.0

    def __init__(self, hidden_dim: int = 64, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.hidden_dim, self.sigma_data = hidden_dim, sigma_data
        self.encoder: Any = None
        self.info: dict[str, Any] = {}
        self.label_dim = 0
        self.gain = torch.nn.Parameter(torch.zeros([]))
        widths = [4, *[hidden_dim] * 5]
        layers: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [MPConv(before, after, kernel=[]), _MPSiLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make such a net."""
        return {"hidden_dim": self.hidden_dim, "sigma_data": self.sigma_data}

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Log-densities `[N]`, but for a constant, of points `x [N, 2]` at the noise level."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        x_in = x / (sigma**2 + self.sigma_data**2).sqrt()
        level = (sigma.log() / 4).expand(len(x), 1)
        y = self.layers(torch.cat([x_in, level, torch.ones_like(level)], dim=1))
        return (y**2).mean(dim=1) * self.gain / sigma[:, 0] - (x_in**2).sum(dim=1) / 2

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Gradient `[N, 2]` of the log-density with respect to `x`."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            return torch.autograd.grad(self.log_density(x, sigma).sum(), x)[0]

    def forward(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None
    ) -> Tensor:
        """Denoised points `[N, 2]`; labels are ignored."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1)
        return x + level**2 * self.score(x, sigma)


class _MPSiLU(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.mp_silu(x)
