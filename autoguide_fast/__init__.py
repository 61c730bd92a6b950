"""Sampling diffusion models with autoguidance: a model guided by a worse version of itself."""

from ._extension import build_info as _build_info
from .checkpoints import load
from .diagnosis import Diagnosis, diagnose
from .facade import Engine
from .generate import StepInfo, sample
from .guidance import unlabelled

__all__ = ["Diagnosis", "Engine", "StepInfo", "diagnose", "load", "sample", "unlabelled"]
__version__ = _build_info()["version"]
