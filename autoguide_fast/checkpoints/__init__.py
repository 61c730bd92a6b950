"""Networks on disk: saving, loading, and the pairs that come with the package."""

from .bundled import BUNDLED, bundled_guide, bundled_path
from .format import read, read_header
from .native import find, load, save

__all__ = [
    "BUNDLED",
    "bundled_guide",
    "bundled_path",
    "find",
    "load",
    "read",
    "read_header",
    "save",
]
