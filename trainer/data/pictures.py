"""From the bytes of a file to an array, and from pixels to the bytes of a PNG."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np

from autoguide_fast.encoders import LatentEncoder

from .errors import BrokenFileError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_ARRAY_MAGIC = b"\x93NUMPY"
_CHANNELS = {"L": 1, "RGB": 3}
_ALPHA = ("LA", "RGBA", "PA", "La", "RGBa")
_MOMENTS = 2 * LatentEncoder.channels


def decode(data: bytes, where: str) -> np.ndarray:
    """An image as it is, uint8 [C, H, W] with C = 1 or 3, or latents, float32 [C, H, W].

    Args:
        data: content of an image file or an NPY file.
        where: what messages call the file.

    Raises:
        BrokenFileError: it cannot be decoded, or is an image of another kind.
    """
    if data.startswith(_ARRAY_MAGIC):
        return _latents(data, where)
    image = open_picture(data, where)
    if image.mode not in _CHANNELS or may_be_transparent(image):
        colour = " with a transparent colour" * (image.mode in _CHANNELS)
        raise BrokenFileError(
            where,
            "an RGB or grey image of 8 bits",
            f"mode {image.mode}{colour}",
            "run `autoguide-fast dataset convert`",
        )
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_picture(data: bytes, where: str) -> Picture:
    """A `PIL.Image` with its pixels read, the first of several, turned as its EXIF data say.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        _turn_upright(image)
    except UnidentifiedImageError:
        reason = "what no decoder knows" if data else "an empty file"
    except Exception as error:  # decoders raise what they please: SyntaxError, struct.error ...
        reason = error
    else:
        return image
    raise BrokenFileError(where, "a readable image", reason) from None


def _turn_upright(image: Picture) -> None:
    """Turns and mirrors a picture as its EXIF data say, in place; not where they are damaged."""
    from PIL import ImageOps

    with contextlib.suppress(Exception):  # their decoder raises what it pleases
        ImageOps.exif_transpose(image, in_place=True)


def holds_several(image: Picture) -> bool:
    """Whether the file of a `PIL.Image` has more than this picture; may move on to the next."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # what follows is damaged
        return True


def may_be_transparent(image: Picture) -> bool:
    """Whether a `PIL.Image` has transparency, by pixel or by colour."""
    return image.mode in _ALPHA or "transparency" in image.info


def lay_over(image: Picture, background: tuple[int, int, int]) -> tuple[Picture, bool]:
    """A `PIL.Image` in RGB where it had transparency, composited over a colour; and whether it did.

    The colours of transparent pixels, which nobody was meant to see, are gone then. A picture whose
    pixels are all opaque is as it was.
    """
    from PIL import Image

    if not may_be_transparent(image):
        return image, False
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB"), False
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image).convert("RGB"), True


def encode_png(image: Picture) -> bytes:
    """A `PIL.Image` as PNG, compressed as little as pays: data are read more often than written.

    Its pixels alone: neither profiles nor what else the picture came with.
    """
    image = image.copy()
    image.info.clear()
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def encode_array(array: np.ndarray) -> bytes:
    """An array as the content of an NPY file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _latents(data: bytes, where: str) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged header may raise anything
        raise BrokenFileError(where, "a readable NPY file", error) from None
    if array.ndim != 3 or array.dtype.kind != "f" or len(array) != _MOMENTS or not array.size:
        raise BrokenFileError(
            where,
            f"latents: floating-point numbers [{_MOMENTS}, H, W], means and standard deviations of "
            f"{_MOMENTS // 2} channels",
            f"{array.dtype} {list(array.shape)}",
            "run `autoguide-fast dataset encode`",
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, order="C")
    if not np.isfinite(array).all():
        raise BrokenFileError(
            where, "latents that are finite", f"{(~np.isfinite(array)).sum()} numbers that are not"
        )
    least = array[_MOMENTS // 2 :].min()
    if least < 0:
        raise BrokenFileError(
            where,
            "latents whose standard deviations are >= 0",
            f"{least:g}",
            "if they are logarithms of variances, store exp(x / 2)",
        )
    return array
