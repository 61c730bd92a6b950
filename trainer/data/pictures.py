"""From the bytes of a file to an array, and from pixels to the bytes of a PNG."""

from __future__ import annotations

import io

import numpy as np

from .errors import BrokenFileError

_ARRAY_MAGIC = b"\x93NUMPY"
_CHANNELS = {"L": 1, "RGB": 3}


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
    if image.mode not in _CHANNELS:
        raise BrokenFileError(
            where, "an RGB or grey image of 8 bits", f"mode {image.mode}",
            "run `autoguide-fast dataset convert`",
        )  # fmt: skip
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def open_picture(data: bytes, where: str):
    """A `PIL.Image` with its pixels read.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        reason = "what no decoder knows" if data else "an empty file"
    except Exception as error:  # decoders raise what they please: SyntaxError, struct.error ...
        reason = error
    else:
        return image
    raise BrokenFileError(where, "a readable image", reason) from None


def encode_png(image) -> bytes:
    """A `PIL.Image` as PNG, compressed as little as pays: data are read more often than written."""
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
    except (ValueError, EOFError, OSError) as error:
        raise BrokenFileError(where, "a readable NPY file", error) from None
    if array.ndim != 3 or array.dtype.kind != "f":
        raise BrokenFileError(
            where, "latents: floating-point numbers [C, H, W]",
            f"{array.dtype} {list(array.shape)}", "run `autoguide-fast dataset encode`",
        )  # fmt: skip
    return array.astype(np.float32)
