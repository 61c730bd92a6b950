"""How a picture of any shape becomes one of the resolution asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def center_crop(image: Picture, width: int, height: int) -> Picture:
    """The largest centred part of the right shape, resized with a Lanczos filter."""
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    part_width, part_height = round(width * scale), round(height * scale)
    left, top = (image.width - part_width) // 2, (image.height - part_height) // 2
    part = image.crop((left, top, left + part_width, top + part_height))
    return part.resize((width, height), Image.Resampling.LANCZOS)


def center_crop_wide(image: Picture, width: int, height: int) -> Picture:
    """`center_crop` to a wide shape, between black bars that make it a square of `width`."""
    from PIL import Image

    square = Image.new(image.mode, (width, width))
    square.paste(center_crop(image, width, height), (0, (width - height) // 2))
    return square


def center_crop_dhariwal(image: Picture, width: int, height: int) -> Picture:
    """ADM's centre crop of a square (Dhariwal and Nichol, 2021), that of the published nets.

    The picture is halved with a box filter while its shorter side is at least twice the target,
    resized with a bicubic filter until that side is the target, and its centre cut out.
    """
    from PIL import Image

    while min(image.size) >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = width / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def stretch(image: Picture, width: int, height: int) -> Picture:
    """All of the picture, whatever its shape, resized with a Lanczos filter."""
    from PIL import Image

    return image.resize((width, height), Image.Resampling.LANCZOS)


TRANSFORMS = {
    "center-crop": center_crop,
    "center-crop-wide": center_crop_wide,
    "center-crop-dhariwal": center_crop_dhariwal,
    "stretch": stretch,
}
