"""Networks on disk: saving, loading, and the pairs that come with the package."""

from .bundled import BUNDLED, bundled_guide, bundled_path
from .native import find, load, save

__all__ = ["BUNDLED", "bundled_guide", "bundled_path", "find", "load", "save"]
