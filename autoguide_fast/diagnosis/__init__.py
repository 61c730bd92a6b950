"""Does a guide help, at which noise levels, and how much? Answered from data, without sampling."""

from .bands import BANDS
from .found import AUTO_FACTOR, Diagnosis, Moments, sets_of
from .measure import SIGMAS, diagnose

__all__ = ["AUTO_FACTOR", "BANDS", "SIGMAS", "Diagnosis", "Moments", "diagnose", "sets_of"]
