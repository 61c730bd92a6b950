"""The CPU's instruction set in use, and what follows from it: set and asked here, nowhere else."""

import platform

import torch

from ._extension import _C, build_info

_X86 = platform.machine() in ("x86_64", "AMD64")
_WITH_BFLOAT16 = ("avx512_bf16", "amx")
_WITH_TILES = ("amx", "amx_portable")


def isa() -> str:
    """The instruction set in use, a name of `build_info()["isa_available"]`."""
    return _isa


def native_types() -> frozenset[torch.dtype]:
    """Floating types that this processor multiplies; in others PyTorch's products are plain loops.

    `torch.compile` traces this, and compiles again after `set_isa`.
    """
    return _native_types


def has_bfloat16() -> bool:
    """Whether the engine's products of bfloat16 are the processor's own, and so fast."""
    return _isa in _WITH_BFLOAT16


def has_tiles() -> bool:
    """Whether bfloat16 and int8 are multiplied on AMX's tiles."""
    return _isa in _WITH_TILES


def set_isa(isa: str) -> None:
    """Use another instruction set from now on, in all threads.

    Tests may also set "amx_portable": AMX's tiles in plain C++, on every machine.

    Raises:
        ValueError: the machine does not have it.
    """
    global _isa, _native_types
    _C.set_isa(isa)
    _isa, _native_types = isa, _native_types_of(isa)


def _native_types_of(isa: str) -> frozenset[torch.dtype]:
    types = {torch.float32, torch.float64}
    if not _X86:
        types |= {torch.bfloat16, torch.float16}  # left to PyTorch there
    elif isa in _WITH_BFLOAT16:
        types |= {torch.bfloat16}
    return frozenset(types)


_isa: str = build_info()["isa"]
_native_types = _native_types_of(_isa)
