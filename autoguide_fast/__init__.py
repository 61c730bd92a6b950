"""Sampling diffusion models with autoguidance: a model guided by a worse version of itself."""

from ._extension import build_info as _build_info
from .checkpoints import load
from .engine import Engine
from .generate import StepInfo, sample
from .guidance import unlabelled

__all__ = ["Engine", "StepInfo", "load", "sample", "unlabelled"]
__version__ = _build_info()["version"]
