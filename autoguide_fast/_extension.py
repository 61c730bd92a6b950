"""Loads the compiled extension, or says in one sentence what to do."""
import platform

import torch

# The range of pyproject.toml. Within it the extension is safe by torch's stable ABI.
_OLDEST, _TOO_NEW = (2, 11), (2, 14)

_release = tuple(int(part) for part in torch.__version__.split(".")[:2])
if not _OLDEST <= _release < _TOO_NEW:
    raise ImportError(
        f"autoguide_fast needs torch>=2.11,<2.14, found {torch.__version__}; "
        "run `pip install 'torch>=2.11,<2.14'`"
    )
try:
    from . import _C
except ImportError as error:
    raise ImportError(
        f"autoguide_fast's compiled extension does not load for this Python and torch ({error}); "
        "run `pip install -e .` in its source folder, or leave that folder if you installed it "
        "elsewhere"
    ) from error

from . import runtime_kernels  # noqa: E402  needs _C


def build_info():
    """Return facts of the compiled extension as a dict.

    Returns:
        Keys `version`, `compiler`, `build_type`, `torch_built_with`, `pybind11`, `cuda` (what was
        built or why not), `cuda_architectures`, `isa` (the instruction set in use) and
        `isa_available` (all that this machine runs).
    """
    return _C.build_info()


# Types that this processor multiplies; in others PyTorch's products are plain loops. A constant,
# which torch.compile can trace.
MULTIPLIED = {torch.float32, torch.float64}
if platform.machine() not in ("x86_64", "AMD64"):
    MULTIPLIED |= {torch.bfloat16, torch.float16}  # left to PyTorch there
elif build_info()["isa"] == "avx512_bf16":
    MULTIPLIED |= {torch.bfloat16}

set_isa = _C.set_isa
Map, Plan = _C.Map, _C.Plan
_C.set_kernel_loader(runtime_kernels.load)
