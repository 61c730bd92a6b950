"""Does a guide help, at which noise levels, and how much? Answered from data, without sampling."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import arguments, checkpoints, image_arguments, net_arguments
from .arrays import as_tensor
from .eager import input_dtype
from .engine import cached, unsupported_reason_of
from .files import write_atomically
from .guidance import Denoiser, evaluated, module_of
from .networks import Precond
from .request import Net

# Where guidance acts: below, the nets agree; above, both see little but noise.
SIGMAS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.02, 20, 13))
BANDS = ("coarse", "middle", "fine")  # thirds of the spatial frequencies, in each direction


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
        sets: `Moments` of each set of images, by name.
    """

    sigmas: np.ndarray
    guides: tuple[str, ...]
    sets: Mapping[str, Moments]

    def weights(
        self, data: str | None = None, band: str | None = None, label: int | None = None
    ) -> np.ndarray:
        """The best weight of each guide at each level, float64 `[levels, guides]`.

        The weights w that minimise `|y - D_w|^2` with `D_w = D1 + sum_i (w_i - 1) (D1 - D_i)`
        (arXiv 2406.02507, eq. 6): for one guide `1 + <r, d> / <d, d>`. NaN where guides differ
        from the model by nothing, or are multiples of each other.

        Args:
            data: name of a set; default: the first.
            band: one of `BANDS`; default: all frequencies together.
            label: only images of this class; default: of all.
        """
        moments = self._of(data)
        chosen = self._chosen(moments, label)
        return _best(*_sums(moments, chosen, band))

    def schedule(self, factor: float = 1.0, data: str | None = None) -> Callable[[float], float]:
        """The best weight of the one guide as a function of the noise level, for `sample`.

        `w(sigma) = 1 + factor (w*(sigma) - 1)`, with `w*` of `weights`: linear in log sigma between
        the levels, constant beyond, 1 where `w*` is NaN.

        Args:
            factor: 1 is the weight that brings a single evaluation nearest to the perfect denoiser;
                more guides more strongly.
            data: name of a set; default: the first.

        Raises ValueError for a diagnosis of several guides.
        """
        if len(self.guides) != 1:
            raise ValueError(
                "Diagnosis.schedule: there must be one guide, got "
                f"{', '.join(self.guides)}; diagnose each by itself"
            )
        order = np.argsort(self.sigmas)
        levels = np.log(self.sigmas[order])
        weights = 1 + factor * np.nan_to_num(self.weights(data)[order, 0] - 1)
        return lambda sigma: float(np.interp(math.log(sigma), levels, weights))

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

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, intervals and gains as JSON."""
        found: dict[str, Any] = {"sigmas": self.sigmas.tolist(), "guides": list(self.guides)}
        for name in self.sets:
            low, high = self.interval(name)
            found[name] = {
                "images": self.sets[name].error.shape[1],
                "weights": self.weights(name).tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "gain": self.gain(name).tolist(),
                "bands": {band: self.weights(name, band).tolist() for band in BANDS},
            }
        text = json.dumps(found, indent=1).replace("NaN", "null") + "\n"
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


def diagnose(
    model: Net,
    guide: Net | Mapping[str, Net],
    images: Mapping[str, Any] | Any,
    class_labels: Mapping[str, Any] | Any = None,
    sigmas: Sequence[float] = SIGMAS,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Find the guidance weights that bring a guided denoiser nearest to the perfect one.

    For clean images y and `x = y + sigma n`, the perfect denoiser is E[y | x], so the weight whose
    `D_w = D0 + w (D1 - D0)` has the least squared distance to y has the least distance to it, too:
    `w(sigma) = 1 + <y - D1, D1 - D0> / |D1 - D0|^2`, summed over images. One evaluation of each net
    for each image and level; nothing is sampled.

    Args:
        model: name of a bundled net, path of a checkpoint, or denoiser `(x, sigma, class_labels) ->
            D`, as for `sample`.
        guide: likewise, or a dict of several by name, which are then weighted together.
        images: clean images `[N, C, H, W]`, uint8 where the model has an encoder of pixels,
            otherwise floating point as the net sees them; or a dict of such sets by name, to
            compare what the model was trained on with what it was not.
        class_labels: classes `[N]`, or a dict of them for the same sets. Needed by nets with
            labels.
        sigmas: noise levels, in units of the data.
        seed: of the noise n.
        batch_size: images at a time.
        device: where nets by name or path run; default: the CPU.
        progress: called with (evaluations done, of how many).

    Raises:
        TypeError, ValueError: bad input, before any work.
    """
    device = arguments.present_device("cpu" if device is None else device, "diagnose")
    levels = _levels(sigmas)
    batch_size = arguments.count("batch_size", batch_size, "64 is usual", caller="diagnose")
    (seed,) = image_arguments.image_seeds([seed], "diagnose")
    net = _net(model, "model", device)
    named = dict(guide) if isinstance(guide, Mapping) else {"guide": guide}
    if not named:
        raise ValueError("diagnose: guide must be a net or a dict of nets, got an empty dict")
    guides = {name: _net(each, f"guide {name}", device) for name, each in named.items()}
    sets = images if isinstance(images, Mapping) else {"images": images}
    labels = class_labels if isinstance(class_labels, Mapping) else {n: class_labels for n in sets}
    clean = {name: _clean(net, each, name) for name, each in sets.items()}
    classes = {name: _classes(net, labels.get(name), len(clean[name]), name) for name in sets}
    total, done = len(levels) * sum(-(-len(y) // batch_size) for y in clean.values()), 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    nets = _ready(net, tuple(guides.values()))
    found = {
        name: _moments(nets, clean[name], classes[name], levels, seed, batch_size, device, count)
        for name in sets
    }
    return Diagnosis(np.array(levels), tuple(guides), found)


@torch.no_grad()
def _moments(
    nets: Sequence[Denoiser],
    clean: Tensor,
    classes: Tensor | None,
    levels: Sequence[float],
    seed: int,
    batch_size: int,
    device: torch.device,
    count: Callable[[], None],
) -> Moments:
    # A stream of its own: images may have been drawn from torch's with this same seed.
    stream = np.random.SeedSequence([seed, 2406_02507]).generate_state(1, np.uint64)[0]
    generator = torch.Generator("cpu").manual_seed(int(stream >> np.uint64(1)))
    one_hot = None
    if classes is not None:
        width = max(getattr(net, "label_dim", 0) or 0 for net in nets)
        one_hot = torch.nn.functional.one_hot(classes, width).float()
    split = _frequency_bands(clean.shape[-2:])
    rows: list[list[tuple[Tensor, ...]]] = []
    for level in levels:
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32, device="cpu")
        sigma = torch.tensor(level, dtype=torch.float32, device=device)
        rows.append([])
        for first in range(0, len(clean), batch_size):
            part = slice(first, first + batch_size)
            y, n = clean[part].to(device), noise[part].to(device)
            labels = None if one_hot is None else one_hot[part].to(device)
            x = y + level * n
            denoised, *worse = (
                _denoised(net, x, sigma, labels if getattr(net, "label_dim", 1) else None)
                for net in nets
            )
            left = split(y.double() - denoised.double())
            apart = torch.stack([split(denoised.double() - w.double()) for w in worse], dim=2)
            rows[-1].append(
                (
                    left.square().sum(-1).cpu(),
                    torch.einsum("nbp,nbgp->nbg", left, apart).cpu(),
                    torch.einsum("nbgp,nbhp->nbgh", apart, apart).cpu(),
                )
            )
            count()
    error, along, gram = (
        np.stack([torch.cat([batch[i] for batch in row]).numpy() for row in rows]) for i in range(3)
    )
    return Moments(error, along, gram, None if classes is None else classes.numpy())


def _denoised(net: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """What a net makes of `x`, fed in its own floating type."""
    dtype = input_dtype(net, x.dtype)
    labels = None if labels is None else labels.to(dtype)
    denoised = evaluated(net, x.to(dtype), sigma.to(dtype), labels)
    if not isinstance(denoised, Tensor) or denoised.shape != x.shape:
        got = list(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
        raise ValueError(
            f"diagnose: model and guides must return images {list(x.shape)} like their input, got "
            f"{got}; return the denoised images themselves"
        )
    return denoised


def _frequency_bands(size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """What turns images `[N, C, H, W]` into coefficients `[N, bands, all]`; lengths stay.

    The orthonormal cosine transform (DCT-II); a band's coefficients are 0 in the others' rows.
    """
    matrices, thirds = [], []
    for length in size:
        frequency = torch.arange(length, dtype=torch.float64, device="cpu")
        angle = torch.pi / length * frequency[:, None] * (frequency + 0.5)
        matrix = angle.cos() * (2 / length) ** 0.5
        matrix[0] *= 0.5**0.5
        matrices.append(matrix)
        thirds.append(frequency * len(BANDS) // length)
    band = torch.maximum(thirds[0][:, None], thirds[1])
    masks = torch.stack([band == i for i in range(len(BANDS))])

    def split(x: Tensor) -> Tensor:
        down, across = (m.to(x.device) for m in matrices)
        coefficients = torch.einsum("ij,ncjk,lk->ncil", down, x, across)
        return (coefficients[:, None] * masks.to(x.device)[:, None]).flatten(2)

    return split


def _sums(moments: Moments, chosen: np.ndarray, band: str | None) -> tuple[np.ndarray, np.ndarray]:
    """`along [levels, guides]` and `gram [levels, guides, guides]` over images and bands."""
    if band is not None and band not in BANDS:
        raise ValueError(f"Diagnosis: band must be one of {', '.join(BANDS)}, got {band!r}")
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


def _levels(sigmas: Sequence[float]) -> list[float]:
    low, high = arguments.LEVELS
    levels = [
        arguments.number(
            "sigmas",
            sigma,
            f"noise levels from {low:g} to {high:g}",
            lambda level: low <= level <= high,
            "in units of the data",
            "diagnose",
        )
        for sigma in sigmas
    ]
    if not levels:
        raise ValueError("diagnose: sigmas must hold at least one noise level, got none")
    return levels


def _net(net: Net, role: str, device: torch.device) -> Denoiser:
    """The denoiser that was named, passed, or stored at a path; modules in evaluation mode."""
    if isinstance(net, (str, os.PathLike)):
        return checkpoints.load(net, device)
    if not callable(net):
        raise TypeError(
            f"diagnose: {role} must be a name, a path or a callable (x, sigma, class_labels) -> D, "
            f"got {type(net).__name__}"
        )
    module = module_of(net)
    if module is not None and module.training:
        raise ValueError(
            f"diagnose: {role} must be in evaluation mode, got a module in training; call .eval()"
        )
    return net


def _clean(net: Any, images: Any, name: str) -> Tensor:
    y = as_tensor(images).cpu()
    if y.dtype == torch.uint8 and getattr(net, "encoder", None) is not None:
        y = net.encoder.encode(y)
    shape = net_arguments.sample_shape(None, net)
    if y.ndim != 4 or not y.is_floating_point() or (shape and list(y.shape[1:]) != list(shape)):
        wanted = "C, H, W" if shape is None else ", ".join(map(str, shape))
        raise ValueError(
            f"diagnose: images must be [N, {wanted}], floating point or bytes that the model's "
            f"encoder takes, got {y.dtype} {list(y.shape)} for {name}; resize or scale them"
        )
    if not len(y) or not y.isfinite().all():
        raise ValueError(f"diagnose: images must be finite and at least one, got others for {name}")
    return y.float()


def _classes(net: Denoiser, labels: Any, count: int, name: str) -> Tensor | None:
    width = getattr(net, "label_dim", None)
    if not width:
        return None
    if labels is None:
        raise ValueError(
            f"diagnose: class_labels must be given for a model with {width} classes, got none for "
            f"{name}"
        )
    classes = as_tensor(labels).cpu()
    whole = classes.ndim == 1 and not classes.is_floating_point()
    if not whole or len(classes) != count or not ((classes >= 0) & (classes < width)).all():
        raise ValueError(
            f"diagnose: class_labels must be {count} classes from 0 to {width - 1}, got "
            f"{classes.dtype} {list(classes.shape)} for {name}"
        )
    return classes.long()


def _ready(model: Denoiser, guides: tuple[Denoiser, ...]) -> tuple[Denoiser, ...]:
    """The nets, as an engine runs them where it can."""
    if not isinstance(model, Precond):
        return model, *guides
    ready: list[Denoiser] = [
        cached(model).model if unsupported_reason_of(model, []) is None else model
    ]
    for guide in guides:
        fits = unsupported_reason_of(guide, []) is None
        ready.append(cached(guide).model if fits else guide)
    return tuple(ready)
