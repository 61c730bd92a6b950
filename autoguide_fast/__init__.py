"""Sampling diffusion models with autoguidance: a model guided by a worse version of itself."""

import sys as _sys

if _sys.argv[:1] == ["-m"] and {"autoguide_fast.cli", "-mautoguide_fast.cli"} & {*_sys.orig_argv}:
    # As a program, which imports this first of all, for seconds.
    from autoguide_fast_command import leave_when_interrupted

    leave_when_interrupted()
    del leave_when_interrupted

from ._extension import build_info as _build_info
from .checkpoints import load
from .diagnosis import Diagnosis, diagnose
from .facade import Engine
from .generate import StepInfo, sample
from .guidance import unlabelled

__all__ = ["Diagnosis", "Engine", "StepInfo", "diagnose", "load", "sample", "unlabelled"]
__version__ = _build_info()["version"]
