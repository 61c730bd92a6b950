"""The engines: a trained pair made ready once, to be run many times, on a CPU or on a GPU."""

from .base_engine import (
    BaseEngine,
    Guides,
    guide_list,
    undisturbed_nets,
    unsupported_reason_of,
)
from .cache import cached, clear
from .graphs import lacks_memory
from .make import make_engine, of_modules
from .prepared import PreparedDenoiser
from .profile import Profile

__all__ = [
    "BaseEngine",
    "Guides",
    "PreparedDenoiser",
    "Profile",
    "cached",
    "clear",
    "guide_list",
    "lacks_memory",
    "make_engine",
    "of_modules",
    "undisturbed_nets",
    "unsupported_reason_of",
]
