"""The engine: a trained pair made ready once, to be run many times."""

from .cache import cached, clear
from .engine import Engine, pair_objection
from .graphs import lacks_memory
from .profile import Profile

__all__ = ["Engine", "Profile", "cached", "clear", "lacks_memory", "pair_objection"]
