"""What sampling may begin from besides noise: images, and which parts of them are to stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrays import Array, as_tensor


@dataclass(frozen=True)
class Start:
    """Images to begin from, checked.

    Attributes:
        images: `[N or 1, ...]` as the model sees them, of the state's type, on its device.
        mask: `[N or 1, ...]`, likewise, 1 where images are sampled and 0 where they stay; or None.
    """

    images: Tensor
    mask: Tensor | None

    def known(self, rows: slice) -> tuple[Tensor, Tensor] | None:
        """Images and mask of a part of the batch, each `[n or 1, ...]`; None without a mask."""
        return None if self.mask is None else (self.of(rows), _part(self.mask, rows))

    def of(self, rows: slice) -> Tensor:
        """The images of a part of the batch, `[n or 1, ...]`."""
        return _part(self.images, rows)


def _part(value: Tensor, rows: slice) -> Tensor:
    return value if len(value) == 1 else value[rows]


def starting(
    init: Array | None,
    mask: Array | None,
    model: object,
    num_images: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Start | None:
    """Check `init` and `mask` of `sample`, documented there; None without them.

    Raises:
        TypeError, ValueError: of other shapes or types, not finite, a mask without images.
    """
    if init is None:
        if mask is not None:
            raise ValueError(
                "sample: init must be given beside mask, got None; mask says which part of those "
                "images is sampled anew"
            )
        return None
    images = _tensor("init", init)
    if images.dtype == torch.uint8:
        encode = getattr(getattr(model, "encoder", None), "encode", None)
        if getattr(getattr(model, "encoder", None), "name", None) != "pixels" or encode is None:
            raise ValueError(
                "sample: init must be what the model sees for a model that has no encoder of "
                "pixels, got uint8; encode the images first"
            )
        images = encode(images)
    _check_images(images, num_images, shape)
    begin = images.to(device=device, dtype=dtype)
    if mask is None:
        return Start(begin, None)
    return Start(begin, _checked_mask(_tensor("mask", mask), num_images, shape).to(begin))


def _tensor(name: str, value: Array) -> Tensor:
    try:
        return as_tensor(value)
    except (TypeError, OverflowError):
        raise TypeError(
            f"sample: {name} must be a dense tensor or array of numbers, got "
            f"{type(value).__name__}; use torch.as_tensor"
        ) from None


def _check_images(images: Tensor, num_images: int, shape: tuple[int, ...]) -> None:
    wanted = ", ".join(map(str, shape))
    if tuple(images.shape[1:]) != shape or len(images) not in (1, num_images):
        raise ValueError(
            f"sample: init must be [{num_images} or 1, {wanted}], got {list(images.shape)}; it "
            "needs the shape of the model's images, and one for each seed or one for all"
        )
    if not images.is_floating_point() or not torch.isfinite(images).all():
        raise ValueError(
            f"sample: init must be finite floating-point numbers, or uint8 images, got "
            f"{images.dtype} with others among them; encode images as the model sees them"
        )


def _checked_mask(mask: Tensor, num_images: int, shape: tuple[int, ...]) -> Tensor:
    count = len(mask) if mask.ndim == len(shape) + 1 else 1
    try:
        whole = mask.to(torch.float64).expand(count, *shape)
    except RuntimeError:
        whole = mask.new_empty(0)
    if count not in (1, num_images) or not len(whole):
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"sample: mask must broadcast to [{num_images} or 1, {wanted}], got "
            f"{list(mask.shape)}; [{', '.join(map(str, shape[1:])) or wanted}] will do"
        )
    if not ((whole >= 0) & (whole <= 1)).all():
        raise ValueError(
            "sample: mask must lie from 0 (what stays) to 1 (what is sampled), got others among "
            "its numbers; divide it by 255 if it is an image"
        )
    return whole
