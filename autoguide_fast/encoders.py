"""What stands between a network's samples and images that one can look at."""

import torch


class PixelEncoder:
    """Pixels as they are: bytes to `[-1, 1]` and back.

    `encode` maps 0..255 to `x / 127.5 - 1`; `decode` maps back with `x * 127.5 + 128`, clamped
    and truncated to bytes, so that encoding and decoding a byte gives that byte.
    """

    name = "pixels"

    def encode(self, images):
        """uint8 `[N, C, H, W]` to float32 in `[-1, 1]`."""
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x):
        """Floating-point samples `[N, C, H, W]` to uint8 images."""
        return (x.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def __repr__(self):
        return "PixelEncoder()"


ENCODERS = {PixelEncoder.name: PixelEncoder}


def encoder(name):
    """The encoder called `name` in a checkpoint; None for no name.

    Raises ValueError for an unknown name.
    """
    if name is None:
        return None
    if name not in ENCODERS:
        known = ", ".join(repr(known) for known in ENCODERS)
        raise ValueError(
            f"encoder: name must be one of {known} or None, got {name!r}; the checkpoint may "
            "need a later version of autoguide_fast"
        )
    return ENCODERS[name]()
