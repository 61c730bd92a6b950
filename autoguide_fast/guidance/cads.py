"""CADS: labels that are noise at first, for samples that differ more (arXiv 2310.17347)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from .. import arguments
from .evaluation import Batch, Evaluation
from .kind import Around, Guidance
from .several import Linear
from .weights import AnyWeight


class CADS(Around):
    """Condition-annealed sampling (Sadat et al., arXiv 2310.17347) beside another kind of guidance.

    With the time t, which falls from 1 to 0 with the steps, all nets are told
    `y' = sqrt(g) y + s sqrt(1 - g) n` for the labels y: `g` is 0 for `t >= t2`, 1 for `t <= t1` and
    linear between, n standard normal, from each image's own seed and fresh at each step. Then `y'`
    gets back mean and standard deviation of y, as far as `mix` says. The paper has embeddings in
    the place of y; here it is the one-hot row.

    Args:
        guidance: a weight, or a kind of guidance.
        t1, t2: from 0 to 1, `t1 <= t2`.
        scale: s.
        mix: from 0 (none) to 1 (all) of the rescaling.

    For models with labels, and seeds. Raises TypeError, ValueError for other numbers.
    """

    def __init__(
        self,
        guidance: AnyWeight | Guidance = 1.5,
        t1: float = 0.6,
        t2: float = 0.9,
        scale: float = 0.25,
        mix: float = 1.0,
    ) -> None:
        super().__init__(guidance if isinstance(guidance, Guidance) else Linear([guidance]))
        share = "from 0 to 1", lambda v: 0 <= v <= 1
        self.t1 = arguments.number("t1", t1, *share, "0.6 is published", "CADS")
        self.t2 = arguments.number("t2", t2, *share, "0.9 is published", "CADS")
        if self.t1 > self.t2:
            raise ValueError(f"CADS: t1 must not exceed t2, got {t1:g} and {t2:g}; swap them")
        self.scale = arguments.number(
            "scale", scale, ">= 0 and finite", lambda v: 0 <= v < math.inf, "0.25 is usual", "CADS"
        )
        self.mix = arguments.number("mix", mix, *share, "1 rescales", "CADS")
        self._randn: Callable[[Sequence[int]], Tensor] | None = None
        self._noise: tuple[int, Tensor] | None = None

    def begin(self, batch: Batch) -> CADS:
        """See `Guidance.begin`."""
        if batch.class_labels is None or batch.randn is None:
            missing = "labels" if batch.class_labels is None else "seeds"
            raise ValueError(
                f"sample: guidance must be another kind than CADS without {missing}, got CADS; it "
                "adds noise to labels, from the images' seeds"
            )
        run = super().begin(batch)
        run._randn, run._noise = batch.randn, None
        return run

    def class_labels(self, labels: Tensor | None, step: Evaluation) -> Tensor | None:
        """See `Guidance.class_labels`."""
        assert labels is not None and self._randn is not None  # since `begin`
        time = 1 - step.index / step.num_steps
        if time <= self.t1:
            return labels
        keep = 0.0 if time >= self.t2 else (self.t2 - time) / (self.t2 - self.t1)
        if self._noise is None or self._noise[0] != step.index:
            self._noise = step.index, self._randn([labels.shape[1]]).to(labels)
        told = math.sqrt(keep) * labels + self.scale * math.sqrt(1 - keep) * self._noise[1]
        centred = told - told.mean(1, keepdim=True)
        deviation = told.std(1, keepdim=True).clamp_min(1e-12)
        scaled = centred / deviation * labels.std(1, keepdim=True) + labels.mean(1, keepdim=True)
        return self.mix * scaled + (1 - self.mix) * told
