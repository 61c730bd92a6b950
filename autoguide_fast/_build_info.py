"""Facts of the build, for `autoguide-fast info`."""
from ._extension import build_info

__all__ = ["build_info"]
