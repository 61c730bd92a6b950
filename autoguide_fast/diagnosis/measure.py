"""Runs a model and its guides on noisy data: `diagnose`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import arguments, checkpoints, image_arguments, net_arguments
from ..arrays import as_tensor
from ..eager import input_dtype
from ..engine import cached, unsupported_reason_of
from ..guidance import (
    Denoiser,
    Disturbed,
    evaluated,
    fingerprint,
    guide_of_model,
    is_of_model,
    module_of,
)
from ..networks import Precond
from ..request import Net
from .bands import frequency_bands
from .found import RESERVED, Diagnosis, Moments

# Where guidance acts: below, the nets agree; above, both see little but noise.
SIGMAS = tuple(float(f"{s:.3g}") for s in np.geomspace(0.02, 20, 13))


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
        guide: likewise, or what names a guide of the model's own weights, such as
            "self:attn_temperature=0"; or a dict of several by name, which are then weighted
            together. None may be disturbed: noise is drawn in sampling alone.
        images: clean samples `[N, ...]` of any shape, such as images `[N, C, H, W]`, uint8 where
            the model has an encoder of pixels, otherwise floating point as the net sees them; or a
            dict of such sets by name, to compare what the model was trained on with what it was
            not.
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
    guides = {
        name: _undisturbed(
            guide_of_model(each, net) if is_of_model(each) else _net(each, f"guide {name}", device),
            name,
        )
        for name, each in named.items()
    }
    sets = images if isinstance(images, Mapping) else {"images": images}
    if taken := [name for name in sets if name in RESERVED]:
        raise ValueError(
            f"diagnose: images must have other names than {', '.join(RESERVED)}, got {taken[0]}; "
            "'training' and 'held out' are usual"
        )
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
    shape = tuple(next(iter(clean.values())).shape[1:])
    prints = tuple(fingerprint(each) for each in (net, *guides.values()))
    return Diagnosis(np.array(levels), tuple(guides), found, shape, prints)


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
    split = frequency_bands(clean.shape[1:])
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


def _undisturbed(guide: Denoiser, name: str) -> Denoiser:
    if isinstance(guide, Disturbed):
        raise ValueError(
            f"diagnose: guide {name} must not be disturbed, got one whose noise is drawn in "
            "sampling; diagnose a net, or one weakened"
        )
    return guide


def _clean(net: Any, images: Any, name: str) -> Tensor:
    y = as_tensor(images).cpu()
    if y.dtype == torch.uint8 and getattr(net, "encoder", None) is not None:
        y = net.encoder.encode(y)
    shape = net_arguments.sample_shape(None, net)
    if y.ndim < 2 or not y.is_floating_point() or (shape and list(y.shape[1:]) != list(shape)):
        wanted = "..." if shape is None else ", ".join(map(str, shape))
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
