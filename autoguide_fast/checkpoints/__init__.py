"""Networks on disk: saving, loading, and the pairs that come with the package."""

from .bundled import BUNDLED, bundled_guide, bundled_path, default_guidance
from .conversion import convert
from .format import read, read_header
from .loading import find, load
from .native import save
from .preset_files import read_preset, write_preset
from .presets import presets
from .recorded_objects import is_pickle
from .run_folder import Snapshots
from .statistics import read_statistics
from .weights import fetch

__all__ = [
    "BUNDLED",
    "Snapshots",
    "bundled_guide",
    "bundled_path",
    "convert",
    "default_guidance",
    "fetch",
    "find",
    "is_pickle",
    "load",
    "presets",
    "read",
    "read_header",
    "read_preset",
    "read_statistics",
    "save",
    "write_preset",
]
