"""Networks on disk: saving, loading, and the pairs that come with the package."""

from .bundled import BUNDLED, bundled_guide, bundled_path
from .conversion import convert
from .format import read, read_header
from .native import find, load, save
from .reference import read_statistics

__all__ = [
    "BUNDLED",
    "bundled_guide",
    "bundled_path",
    "convert",
    "find",
    "load",
    "read",
    "read_header",
    "read_statistics",
    "save",
]
