"""What a diagnosis found: the best weights, their intervals, what they remove, and words for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically
from ..guidance import table
from .bands import BANDS, bands_of

# c of "auto", w = 1 + c (w* - 1): what docs/prediction.md found best.
AUTO_FACTOR = 2.0
RESERVED = ("sigmas", "guides", "auto", "nets")  # in a file beside the sets, by name


@dataclass(frozen=True)
class Moments:
    """Inner products of what the nets do to one set of images, which say all of a diagnosis.

    With `r = y - D1`, what the model leaves of the clean image y, and `d_i = D1 - D_i`, its
    difference from guide i, each split by spatial frequency:

    error: |r|^2, `[levels, images, bands]`; along: <r, d_i>, `[..., guides]`; gram: <d_i, d_j>,
    `[..., guides, guides]`; labels: classes `[images]`, or None. All float64.
    """

    error: np.ndarray
    along: np.ndarray
    gram: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        sigmas: noise levels `[levels]`, float64.
        guides: names of the guides.
        sets: `Moments` of each set of samples, by name.
        shape: of one sample, what stands after N.
        nets: fingerprints of the model and the guides (`guidance.fingerprint`), in this order.
    """

    sigmas: np.ndarray
    guides: tuple[str, ...]
    sets: Mapping[str, Moments]
    shape: tuple[int, ...]
    nets: tuple[str | None, ...]

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands of spatial frequencies: `BANDS`, or none for vectors."""
        return bands_of(self.shape)

    def alone(self, guide: str) -> Diagnosis:
        """What was found of one of the guides, as if there had been no other.

        Raises ValueError for a name that is none of `guides`.
        """
        if guide not in self.guides:
            raise ValueError(
                f"Diagnosis.alone: guide must be one of {', '.join(self.guides)}, got {guide!r}"
            )
        at = self.guides.index(guide)
        one = slice(at, at + 1)
        sets = {
            name: replace(m, along=m.along[..., one], gram=m.gram[..., one, one])
            for name, m in self.sets.items()
        }
        nets = self.nets[0], self.nets[1 + at]
        return replace(self, guides=(guide,), sets=sets, nets=nets)

    def classes(self, data: str | None = None) -> list[int]:
        """The classes that a set has, none without labels."""
        labels = self._of(data).labels
        return [] if labels is None else np.unique(labels).tolist()

    def weights(
        self, data: str | None = None, band: str | None = None, label: int | None = None
    ) -> np.ndarray:
        """The best weight of each guide at each level, float64 `[levels, guides]`.

        The weights w that minimise `|y - D_w|^2` with `D_w = D1 + sum_i (w_i - 1) (D1 - D_i)`
        (arXiv 2406.02507, eq. 6): for one guide `1 + <r, d> / <d, d>`. NaN where guides differ
        from the model by nothing, or are multiples of each other.

        Args:
            data: name of a set; default: the first.
            band: one of `bands`; default: all frequencies together.
            label: only images of this class; default: of all.
        """
        if band is not None and band not in self.bands:
            rule = f"be one of {', '.join(self.bands)}" if self.bands else "be None for vectors"
            raise ValueError(f"Diagnosis: band must {rule}, got {band!r}")
        moments = self._of(data)
        chosen = self._chosen(moments, label)
        return _best(*_sums(moments, chosen, band))

    def schedule(self, factor: float = 1.0, data: str | None = None) -> Callable[[float], float]:
        """The best weight of the one guide as a function of the noise level, for `sample`.

        `w(sigma) = 1 + factor (w*(sigma) - 1)`, with `w*` of `weights`: linear in log sigma between
        the levels, constant beyond, 1 where `w*` is NaN.

        Args:
            factor: 1 is the weight that brings a single evaluation nearest to the perfect denoiser;
                more guides more strongly; `guidance="auto"` takes `AUTO_FACTOR`.
            data: name of a set; default: the first.

        Raises ValueError for a diagnosis of several guides: `schedules` has one for each.
        """
        if len(self.guides) != 1:
            raise ValueError(
                "Diagnosis.schedule: there must be one guide, got "
                f"{', '.join(self.guides)}; schedules() has one for each, or diagnose them apart"
            )
        return self.schedules(factor, data)[0]

    def schedules(
        self, factor: float = 1.0, data: str | None = None
    ) -> list[Callable[[float], float]]:
        """As `schedule`, a list with one function for each guide, which `sample` takes."""
        weights = self._scheduled(factor, data)
        return [
            table(dict(zip(self.sigmas.tolist(), column, strict=True)))
            for column in weights.T.tolist()
        ]

    def _scheduled(self, factor: float, data: str | None) -> np.ndarray:
        return 1 + factor * np.nan_to_num(self.weights(data) - 1)

    def interval(
        self,
        data: str | None = None,
        level: float = 0.95,
        repeats: int = 1000,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bootstrap interval of `weights` over the images: lower and upper ends, as these.

        Args:
            data: name of a set; default: the first.
            level: share of the resampled weights that lie inside.
            repeats: resamplings.
            seed: of the resampling.
        """
        moments = self._of(data)
        count = moments.error.shape[1]
        drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, repeats)
        along = np.einsum("rn,lng->rlg", drawn, moments.along.sum(2), optimize=True)
        gram = np.einsum("rn,lngh->rlgh", drawn, moments.gram.sum(2), optimize=True)
        # NaN stays NaN, without the warning of a quantile that leaves it out.
        ends = np.quantile(_best(along, gram), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return ends[0], ends[1]

    def gain(self, data: str | None = None) -> np.ndarray:
        """The share of the model's squared error that the best weights remove, `[levels]`.

        Not negative, and found on the same images as the weights, so at least a little too good.
        """
        moments = self._of(data)
        along, gram = _sums(moments, self._chosen(moments, None), None)
        removed = np.einsum("lg,lg->l", along, np.nan_to_num(_best(along, gram) - 1))
        return removed / moments.error.sum((1, 2))

    def signed_gain_of_each(self, data: str | None = None) -> np.ndarray:
        """`gain` with each guide as the only one, negative where its best weight is below 1.

        `[levels, guides]`; 0 where a guide is the model. What is removed by guiding backwards, as
        an untrained guide can, counts against a guide.
        """
        moments = self._of(data)
        along, gram = _sums(moments, self._chosen(moments, None), None)
        own = np.einsum("lgg->lg", gram)
        removed = np.divide(along**2, own, out=np.zeros_like(along), where=own > 0)
        return np.sign(along) * removed / moments.error.sum((1, 2))[:, None]

    def predicted_gain(self, data: str | None = None) -> float:
        """The mean of `gain` over the levels: a number by which to compare guides of one model.

        The levels should be spread evenly over ln sigma, as the default ones are. How far it
        foretells what guidance does to samples: docs/prediction.md.
        """
        return float(self.gain(data).mean())

    def verdict(self) -> str:
        """What was found, of all sets together, in sentences."""
        first, *others = self.sets
        shares = ", ".join(f"{100 * self.predicted_gain(n):.2f} % ({n})" for n in self.sets)
        low, high = self.interval(first)
        if not ((low > 1) | (high < 1)).any():
            return f"Nothing tells that guidance helps: no weight of {first} differs from 1."
        lines = [f"The best weights remove of the squared error, averaged over ln sigma: {shares}."]
        if not (low > 1).any():
            lines.append(
                "None is above 1 for certain, some are below: this guide does not help the model."
            )
        for name in others:
            top = self.interval(name)[1]
            weaker = np.any((top < low) & (low > 1), axis=1)
            if weaker.any():
                where = _runs(self.sigmas, np.asarray(weaker))
                lines.append(
                    f"{name} asks for less guidance than {first} at sigma {where}: the model fits "
                    f"{first} more closely than what it has not seen."
                )
        return "\n".join(lines)

    def summary(self, data: str | None = None) -> str:
        """The weights as a table, and what they mean in words."""
        low, high = self.interval(data)
        weights, gain = self.weights(data), self.gain(data)
        head = "  ".join(f"{name:>12}    95 %     " for name in self.guides)
        lines = [f"{'sigma':>8}  {head}  error removed"]
        for i, sigma in enumerate(self.sigmas):
            cells = "  ".join(
                f"{weights[i, g]:12.3f} {low[i, g]:6.3f}..{high[i, g]:6.3f}"
                for g in range(len(self.guides))
            )
            lines.append(f"{sigma:8.3g}  {cells}  {100 * gain[i]:8.3f} %")
        lines += [self._verdict(g, low[:, g], high[:, g]) for g in range(len(self.guides))]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """What `save` writes: weights, intervals, gains; those of "auto", and of which nets."""

        def plain(values: np.ndarray) -> list:
            if values.ndim > 1:
                return [plain(row) for row in values]
            return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]

        found: dict[str, Any] = {"sigmas": self.sigmas.tolist(), "guides": list(self.guides)}
        for name in self.sets:
            low, high = self.interval(name)
            found[name] = {
                "images": self.sets[name].error.shape[1],
                "weights": plain(self.weights(name)),
                "low": plain(low),
                "high": plain(high),
                "gain": plain(self.gain(name)),
                "predicted_gain": self.predicted_gain(name),
                "bands": {band: plain(self.weights(name, band)) for band in self.bands},
                "classes": {str(c): plain(self.weights(name, label=c)) for c in self.classes(name)},
            }
        first = next(iter(self.sets))
        return found | {
            "auto": {"weights": self._scheduled(AUTO_FACTOR, first).tolist(), "data": first},
            "nets": {"model": self.nets[0], "guides": list(self.nets[1:])},
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write what was found as JSON, which `sample(guidance=path)` takes for these nets."""
        text = json.dumps(self.as_dict(), allow_nan=False) + "\n"
        write_atomically(Path(path), lambda temporary: temporary.write_text(text))

    def _of(self, data: str | None) -> Moments:
        if data is None:
            return next(iter(self.sets.values()))
        if data not in self.sets:
            raise ValueError(f"Diagnosis: data must be one of {', '.join(self.sets)}, got {data!r}")
        return self.sets[data]

    def _chosen(self, moments: Moments, label: int | None) -> np.ndarray:
        if label is None:
            return np.ones(moments.error.shape[1], bool)
        if moments.labels is None or not (moments.labels == label).any():
            raise ValueError(
                f"Diagnosis: label must be a class of the images, got {label}; pass class_labels"
            )
        return moments.labels == label

    def _verdict(self, guide: int, low: np.ndarray, high: np.ndarray) -> str:
        name = self.guides[guide]
        helps, harms = low > 1, high < 1
        if not helps.any() and not harms.any():
            return f"{name}: no level at which these images tell the best weight from 1"
        parts = []
        if helps.any():
            where = _runs(self.sigmas, helps)
            parts.append(f"a weight above 1 is nearer to the data at sigma {where}")
        if harms.any():
            where = _runs(self.sigmas, harms)
            parts.append(f"one below 1, which guides backwards, at {where}")
        return f"{name}: {'; '.join(parts)}"


def sets_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The sets of samples, by name, of a diagnosis as `Diagnosis.save` writes it."""
    return {name: v for name, v in found.items() if name not in RESERVED and isinstance(v, dict)}


def _sums(moments: Moments, chosen: np.ndarray, band: str | None) -> tuple[np.ndarray, np.ndarray]:
    """`along [levels, guides]` and `gram [levels, guides, guides]` over images and bands."""
    bands = slice(None) if band is None else [BANDS.index(band)]
    along = moments.along[:, chosen][:, :, bands]
    gram = moments.gram[:, chosen][:, :, bands]
    return along.sum((1, 2)), gram.sum((1, 2))


def _best(along: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """The minimisers `1 + gram^-1 along`, NaN where there are none."""
    scale = np.sqrt(np.maximum(np.einsum("...gg->...g", gram), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = gram / (scale[..., :, None] * scale[..., None, :])
        right = along / scale
    known = np.isfinite(unit).all((-1, -2))
    unit[~known] = np.eye(gram.shape[-1])
    known &= np.linalg.matrix_rank(unit, tol=1e-10) == gram.shape[-1]
    unit[~known] = np.eye(gram.shape[-1])
    right[~known] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 + np.linalg.solve(unit, right[..., None])[..., 0] / scale


def _runs(sigmas: np.ndarray, chosen: np.ndarray) -> str:
    """The chosen levels as ranges of neighbours: `0.02 to 0.063, 2`."""
    runs: list[list[float]] = []
    for i in np.flatnonzero(chosen):
        if i and chosen[i - 1]:
            runs[-1].append(sigmas[i])
        else:
            runs.append([sigmas[i]])
    return ", ".join(
        f"{run[0]:.3g} to {run[-1]:.3g}" if len(run) > 1 else f"{run[0]:.3g}" for run in runs
    )
