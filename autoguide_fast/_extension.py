"""Loads the compiled extension, or says in one sentence what to do."""

import re
import warnings
from typing import Any

import torch

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "autoguide_fast's compiled extension does not load for this Python and torch "
        f"{torch.__version__} ({error}); run `pip install -e .` in its source folder, or leave "
        "that folder if you installed it elsewhere"
    ) from error

from . import runtime_kernels


def build_info() -> dict[str, Any]:
    """Return facts of the compiled extension as a dict.

    Returns:
        Keys `version`, `compiler`, `build_type`, `torch_built_with`, `torch_oldest` and
        `torch_tested` (the releases that it loads under, and the newest of them that was tried),
        `pybind11`, `cuda` (what was built or why not), `cuda_architectures`, `isa` (the
        instruction set in use), `isa_available` (all that this machine runs) and `amx` ("available"
        or why it is not).
    """
    return _C.build_info()


def check_torch(found: str, oldest: str, tested: str) -> None:
    """Refuse a torch older than the stable ABI in use; warn of one newer than was tried.

    Args:
        found, oldest, tested: releases, such as "2.13.0+cpu" and "2.11".

    Raises:
        ImportError: `found` is older than `oldest`.
    """

    def release(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", text)[:2]))

    if release(found) < release(oldest):
        raise ImportError(
            f"autoguide_fast needs torch>={oldest}, found {found}; "
            f"run `pip install 'torch>={oldest}'`"
        )
    if release(found) > release(tested):
        warnings.warn(
            f"autoguide_fast was tested with torch {oldest} to {tested}, found {found}, which its "
            "stable ABI should serve as well; if something fails here and not there, please report",
            stacklevel=2,
        )


_facts = build_info()
check_torch(torch.__version__, _facts["torch_oldest"], _facts["torch_tested"])

_C.set_kernel_loader(runtime_kernels.load)
