"""What nets tell about themselves, checked: levels, shapes, classes, encoders, weights."""

import math
import numbers
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import CALLER, count, shown


def trained_levels(
    sigma_min: float | None, sigma_max: float | None, nets: Mapping[str, object]
) -> list[float]:
    """Return the two levels, those of the model (the first net) for None, or else 0.002 and 80.

    Warns of levels given that a net says it was not trained for.
    """
    levels = {"sigma_min": (sigma_min, 0.002, -1), "sigma_max": (sigma_max, 80.0, 1)}
    chosen = []
    for name, (value, usual, sign) in levels.items():
        own = [_trained_level(net, name) for net in nets.values()]
        if value is None:
            value = usual if own[0] is None else own[0]
        chosen.append(value)
        for role, level in zip(nets, own, strict=True):
            is_number = isinstance(value, numbers.Real)
            if level is not None and is_number and sign * (value - level) > 1e-3 * level:
                warnings.warn(
                    f"{CALLER}: {name} {value:g} lies beyond what the {role} was trained for, "
                    f"{level:g}; its output there is a guess",
                    stacklevel=5,
                )
    return chosen


def _trained_level(net: object, name: str) -> float | None:
    """The level `name` that a net says it was trained for, or None."""
    level = getattr(net, name, None)
    as_float = float(level) if isinstance(level, numbers.Real) else math.nan
    return as_float if 0 < as_float < math.inf else None


def nets_agree(model: object, guide: object, role: str = "guide") -> None:
    """Check that model and guide are made for the same images and labels."""
    for name in ("img_resolution", "img_channels"):
        ours, theirs = getattr(model, name, None), getattr(guide, name, None)
        if None not in (ours, theirs) and ours != theirs:
            raise ValueError(
                f"{CALLER}: {role} must have the model's {name} {ours}, got {theirs}; a guide is a "
                "worse version of the same model, for the same data"
            )
    shapes = _shape_of(model), _shape_of(guide)
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(
            f"{CALLER}: {role} must have the model's sample_shape {shapes[0]}, got {shapes[1]}; a "
            "guide is a worse version of the same model, for the same data"
        )
    ours, theirs = getattr(model, "label_dim", None), getattr(guide, "label_dim", None)
    if ours is not None and theirs and ours != theirs:
        raise ValueError(
            f"{CALLER}: {role} must have the model's label_dim {ours} or none, got {theirs}; "
            + (
                "use a guide without labels for a model without labels"
                if ours == 0
                else "train it on the same classes, or without labels"
            )
        )


def label_dim(model: object, *guides: object) -> int | None:
    """Number of classes that model and guides are told, or None where none of them says."""
    found = getattr(model, "label_dim", None)
    for guide in guides:
        if found is None:
            found = getattr(guide, "label_dim", None) or None
    if found is None:
        return None
    if isinstance(found, numbers.Integral) and int(found) >= 0:
        return int(found)
    raise ValueError(
        f"{CALLER}: label_dim must be the number of classes, got {shown(found)}; set the model's "
        "attribute to 0 for a model without labels"
    )


def sample_shape(shape: Sequence[int] | None, *nets: object) -> tuple[int, ...] | None:
    """Shape of one sample: `shape`, or what the first of `nets` that tells is made for, or None.

    A net tells by `sample_shape`, any shape, or by `img_channels` and `img_resolution`.
    """
    remedy = "give the sizes that stand after N, such as (3, 64, 64), (2, 128) or (2,)"
    given = None if shape is None else _sizes("shape", shape, remedy)
    known = next((found for net in nets if (found := _shape_of(net)) is not None), None)
    if given is not None and known is not None and given != known:
        raise ValueError(
            f"{CALLER}: shape must be {list(known)} for this model, got {list(given)}; leave it out"
        )
    return known if given is None else given


def _shape_of(net: object) -> tuple[int, ...] | None:
    """Shape of the samples that a net says it is made for, or None."""
    remedy = "set the model's attribute to one number, or pass a callable without it"
    shape = getattr(net, "sample_shape", None)
    if shape is not None:
        return _sizes("the model's sample_shape", shape, "set it to the sizes that stand after N")
    channels = getattr(net, "img_channels", None)
    resolution = getattr(net, "img_resolution", None)
    if channels is None or resolution is None:
        return None
    channels = count("img_channels", channels, remedy)
    resolution = count("img_resolution", resolution, remedy)
    return channels, resolution, resolution


def _sizes(name: str, shape: Any, remedy: str) -> tuple[int, ...]:
    """`shape` as a tuple of at least one whole number >= 1."""
    try:
        if isinstance(shape, (str, bytes, dict, set)):
            raise TypeError
        sizes = [operator.index(size) for size in shape]
    except TypeError:
        raise TypeError(
            f"{CALLER}: {name} must be a sequence of whole numbers, got {shown(shape)}; {remedy}"
        ) from None
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{CALLER}: {name} must be one or more numbers >= 1, got {shown(shape)}; {remedy}"
        )
    return tuple(sizes)


def decoder(model: object, raw: bool | None, shape: tuple[int, ...] | None) -> Any:
    """What decodes the model's samples of `shape` (C, H, W), or None where they stay raw.

    The attribute `encoder` of a model counts where it has a method `decode`: networks of other
    libraries may call a part of theirs so.
    """
    encoder = getattr(model, "encoder", None)
    if not callable(getattr(encoder, "decode", None)):
        encoder = None
    if encoder is None and raw is False:
        raise ValueError(
            f"{CALLER}: raw must be True or None for a model without an encoder, got False; set "
            "model.encoder, for instance to autoguide_fast.encoders.PixelEncoder()"
        )
    if encoder is None or raw:
        return None
    channels = getattr(encoder, "channels", None)
    if channels is not None and shape is not None and channels != shape[0]:
        raise ValueError(
            f"{CALLER}: model must have the {channels} channels that its encoder decodes, got "
            f"{shape[0]}; pass raw=True, or set model.encoder to another, or to None"
        )
    return encoder


def finite_weights(role: str, module: torch.nn.Module) -> None:
    """Check that no weight of `module` is NaN or infinite."""
    name = not_finite([*module.named_parameters(), *module.named_buffers()])
    if name is not None:
        raise ValueError(
            f"{CALLER}: {role} must have finite weights, got NaN or infinity in {name}; load "
            "another checkpoint, or look at where its training diverged"
        )


def not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first name of `named`, pairs of name and tensor, whose tensor has NaN or infinity."""
    wide = [
        (name, t if t.itemsize > 1 else t.float())
        for name, t in named
        if t.is_floating_point() and not t.is_meta
    ]
    if not wide:
        return None
    # A sum is finite only if all of it is, and takes half the time of the exact question.
    if torch.stack([t.sum().double() for _, t in wide]).isfinite().all():
        return None
    return next((name for name, t in wide if not torch.isfinite(t).all()), None)
