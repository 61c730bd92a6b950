"""The two-dimensional toy of arXiv 2406.02507, section 3: its distribution, known exactly, its net.

`autoguide-fast toy` trains the nets and draws what guidance does to their samples; the program is
`trainer/toy`.
"""

from .distribution import Fractal, fractal
from .model import ToyModel

__all__ = ["Fractal", "ToyModel", "fractal"]
