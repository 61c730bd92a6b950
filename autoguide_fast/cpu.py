"""The CPU's instruction set in use, and what follows from it: set and asked here, nowhere else."""

import functools
import platform
from pathlib import Path

import torch

from ._extension import _C, build_info

_X86 = platform.machine() in ("x86_64", "AMD64")
_WITH_BFLOAT16 = ("avx512_bf16", "amx")
_WITH_TILES = ("amx", "amx_portable")


def isa() -> str:
    """The instruction set in use, a name of `build_info()["isa_available"]`."""
    return _isa


def processor() -> str:
    """The processor's name, as the system tells it."""
    return processor_facts().get("model name") or platform.processor() or platform.machine()


@functools.cache
def processor_facts() -> dict[str, str]:
    """What the system tells of the first processor that does not change from run to run.

    Virtual machines often have a name in common: family, model and caches tell more.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {"machine": platform.machine(), "processor": platform.processor()}
    pairs = [line.partition(":")[::2] for line in text.split("\n\n")[0].splitlines()]
    facts = {name.strip(): value.strip() for name, value in pairs}
    lasting = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size")
    arm = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
    return {name: facts[name] for name in lasting + arm if name in facts}


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
