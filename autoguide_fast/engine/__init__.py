"""The engine: a trained pair made ready once, to be run many times."""

from .cache import cached, clear
from .engine import Engine
from .graphs import lacks_memory
from .profile import Profile

__all__ = ["Engine", "Profile", "cached", "clear", "lacks_memory"]
