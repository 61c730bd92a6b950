"""Nets of other libraries as denoisers `(x, sigma, class_labels) -> D`, which `sample` takes.

The other way round, `diffusers_guider` brings autoguidance into pipelines of diffusers, and
`guidance.guided_denoiser` into samplers of k-diffusion.
"""

from .adapter import Adapter
from .diffusers import from_diffusers
from .diffusers_guider import diffusers_guider
from .discrete import EpsilonDenoiser, SampleDenoiser, VDenoiser
from .flow import FlowDenoiser
from .k_diffusion import KDiffusionDenoiser

__all__ = [
    "Adapter",
    "EpsilonDenoiser",
    "FlowDenoiser",
    "KDiffusionDenoiser",
    "SampleDenoiser",
    "VDenoiser",
    "diffusers_guider",
    "from_diffusers",
]
