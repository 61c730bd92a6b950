"""What `sample` is asked for, and what a manifest asks for once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """The options on which the images depend; see the help of `autoguide-fast sample`.

    `guidance` may be one text, "auto" or the path of weights that `diagnose` saved, or one dict
    with such weights, as a manifest has them.

    Raises ValueError for options that contradict each other.
    """

    model: str = "digits"
    guide: Sequence[str] | None = None
    guidance: Sequence[float | str | dict[str, Any]] | None = None
    interval: Sequence[float] | None = None
    kind: str | None = None
    sampler: str = "heun"
    schedule: str = "rho"
    steps: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: Sequence[float] = (0.0,)
    compute_dtype: str | None = None
    seeds: Sequence[int] = range(64)
    classes: Sequence[int] | None = None
    balanced: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if len(self.churn) > 4:
            raise ValueError(
                f"--churn must be at most four numbers, got {len(self.churn)}; "
                "they are S_churn S_min S_max S_noise"
            )
        if self.balanced and self.classes is not None:
            raise ValueError(
                "--balanced must come without --classes, got both; it deals out all classes"
            )

        by_level = [w for w in self.guidance or () if isinstance(w, (str, dict))]
        if by_level and (len(self.guidance or ()) > 1 or self.kind is not None):
            raise ValueError(
                "--guidance must be one file or auto by itself, without numbers and --kind, got "
                f"{' '.join(map(str, self.guidance or ()))}; it has the weights of all guides"
            )
        if self.interval is not None and len(self.interval) % 2:
            raise ValueError(
                f"--interval must be pairs of noise levels, got {len(self.interval)} numbers; give "
                "LO HI for all guides, or for each of them"
            )
        if self.kind is not None and len(self.guidance or ()) > 1:
            raise ValueError(
                f"--kind must be for one guide, got {len(self.guidance or ())} weights; several "
                "guides are weighted and added up"
            )

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """The intervals: none, one for all guides, or one for each."""
        numbers = list(self.interval or ())
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    @property
    def all_churn(self) -> list[float]:
        """S_churn, S_min, S_max and S_noise."""
        return [*self.churn, *[0.0, 0.0, math.inf, 1.0][len(self.churn) :]]
