"""Nets of other libraries as denoisers `(x, sigma, class_labels) -> D`, which `sample` takes."""

from .denoiser import Denoiser
from .diffusers import from_diffusers
from .discrete import EpsilonDenoiser, SampleDenoiser, VDenoiser
from .flow import FlowDenoiser
from .k_diffusion import KDiffusionDenoiser

__all__ = [
    "Denoiser",
    "EpsilonDenoiser",
    "FlowDenoiser",
    "KDiffusionDenoiser",
    "SampleDenoiser",
    "VDenoiser",
    "from_diffusers",
]
