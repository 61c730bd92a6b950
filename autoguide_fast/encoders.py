"""What stands between a network's samples and images that one can look at."""

import functools
import os
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .arguments import count

STABILITY_VAE = "stabilityai/sd-vae-ft-mse"


class Decoder(Protocol):
    """What the `encoder` of a model has to be for `sample`: something that decodes."""

    def decode(self, x: Tensor, /) -> Tensor:
        """Samples `[N, C, H, W]` to as many images."""
        ...


class PixelEncoder:
    """Pixels as they are: bytes to `[-1, 1]` and back.

    `encode` maps 0..255 to `x / 127.5 - 1`; `decode` maps back with `x * 127.5 + 128`, clamped
    and truncated to bytes, so that encoding and decoding a byte gives that byte.
    """

    name = "pixels"

    def encode(self, images: Tensor) -> Tensor:
        """uint8 `[N, C, H, W]` to float32 in `[-1, 1]`; TypeError for another type."""
        _check_bytes(self, images)
        return images.to(torch.float32) / 127.5 - 1

    def decode(self, x: Tensor) -> Tensor:
        """Floating-point samples `[N, C, H, W]` to uint8 images."""
        return (x.to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)

    def __repr__(self) -> str:
        return "PixelEncoder()"


class LatentEncoder:
    """Latents of the Stability VAE, scaled to mean 0 and standard deviation 0.5.

    The VAE maps images of `8H x 8W` pixels to a mean and a standard deviation for each of 4
    channels of `H x W`, its *moments*, from which latents are drawn. It comes through the package
    `diffusers` and is loaded when first needed: training on stored moments needs none.

    Args:
        vae: name of an `AutoencoderKL` for `diffusers` to find or download, or the folder of one.
        dtype: what decoding multiplies: float32, float16 or bfloat16 (`torch.autocast`). Encoding
            is float32's.
        images_at_once: how many images are decoded together, which bounds memory.

    Raises ValueError for another `dtype` or count.
    """

    name = "latents"
    # Of the latents of ImageNet-512, channel by channel.
    raw_mean = (5.81, 3.25, 0.12, -2.15)
    raw_std = (4.17, 4.62, 3.71, 3.28)
    channels = 4
    pixels = 8  # on a side that become one

    def __init__(
        self,
        vae: str | os.PathLike = STABILITY_VAE,
        dtype: torch.dtype = torch.float32,
        images_at_once: int = 4,
    ) -> None:
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"LatentEncoder: dtype must be torch.float32, float16 or bfloat16, got {dtype!r}; "
                "leave it out for float32"
            )
        self.vae, self.dtype = str(vae), dtype
        self.images_at_once = count(
            "images_at_once", images_at_once, "4 is usual", caller="LatentEncoder"
        )

    @functools.cached_property
    def _autoencoder(self) -> Any:
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise ImportError(
                "LatentEncoder: the VAE must come through the package diffusers, got an "
                "environment without it; pip install 'autoguide_fast[vae]'"
            ) from None
        try:
            vae = AutoencoderKL.from_pretrained(self.vae)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"LatentEncoder: vae must be an AutoencoderKL that diffusers can load, got "
                f"{self.vae} ({reason[:200]}); name a folder that holds one, or go online"
            ) from None
        options = vae.config
        pixels = 2 ** (len(options.block_out_channels) - 1)
        if (options.latent_channels, options.in_channels, pixels) != (4, 3, self.pixels):
            raise ValueError(
                f"LatentEncoder: vae must turn 3 channels into 4 and {self.pixels} pixels into 1, "
                f"got {self.vae}, which turns {options.in_channels} into "
                f"{options.latent_channels} and {pixels} into 1; use {STABILITY_VAE}"
            )
        return vae.to(torch.float32).eval().requires_grad_(False)

    def load(self) -> Any:
        """Loads the VAE now, so that what is wrong with it shows before any work."""
        return self._autoencoder

    def moments(self, images: Tensor) -> Tensor:
        """uint8 `[N, 3, 8H, 8W]` to float32 `[N, 8, H, W]`: 4 means, 4 standard deviations.

        Runs on the images' device, in float32 whatever autocast says. Pixels go in as `x / 255`:
        that is what `raw_mean` and `raw_std` belong to, and what `decode` gets back.

        Raises TypeError or ValueError for another type or shape.
        """
        _check_bytes(self, images)
        shape = list(images.shape)
        if len(shape) != 4 or shape[1] != 3 or any(n % self.pixels for n in shape[2:]):
            raise ValueError(
                f"LatentEncoder: images must be [N, 3, H, W] with H and W divisible by "
                f"{self.pixels}, got {shape}; crop or pad them"
            )
        vae = self.load().to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            drawn_from = vae.encode(images.to(torch.float32) / 255).latent_dist
        return torch.cat([drawn_from.mean, drawn_from.std], dim=1)

    def encode(self, moments: Tensor, normal: Tensor | None = None) -> Tensor:
        """Latents drawn from moments `[N, 8, H, W]`, scaled, float32 `[N, 4, H, W]`.

        `normal` holds the standard normal numbers to draw them with, `[N, 4, H, W]`; without, they
        are drawn here.

        Raises ValueError for another number of channels, such as latents that were drawn already.
        """
        self._check_channels("moments", moments, 2 * self.channels)
        mean, std = moments.to(torch.float32).chunk(2, dim=1)
        normal = torch.randn_like(mean) if normal is None else normal
        centre, spread = self._scale(mean.device)
        return (mean + std * normal - centre) * (0.5 / spread)

    def decode(self, x: Tensor) -> Tensor:
        """Scaled latents `[N, 4, H, W]` to uint8 images `[N, 3, 8H, 8W]`.

        Raises ValueError for another number of channels.
        """
        self._check_channels("x", x, self.channels)
        if not len(x):  # which the VAE does not take
            height, width = (self.pixels * n for n in x.shape[2:])
            return torch.empty(0, 3, height, width, dtype=torch.uint8, device=x.device)
        centre, spread = self._scale(x.device)
        vae = self.load().to(x.device)
        narrow = self.dtype != torch.float32
        x = x.to(torch.float32) * (spread / 0.5) + centre
        parts = []
        with torch.no_grad(), torch.autocast(x.device.type, self.dtype, enabled=narrow):
            for part in x.split(self.images_at_once):
                images = vae.decode(part).sample.float()
                parts.append((images.clamp(0, 1) * 255).to(torch.uint8))
        return torch.cat(parts)

    def _check_channels(self, name: str, x: Tensor, channels: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"LatentEncoder: {name} must be [N, {channels}, H, W], got {list(x.shape)}; the "
                f"latents of this VAE have {self.channels} channels"
            )

    def _scale(self, device: torch.device) -> Iterator[Tensor]:
        return (
            torch.tensor(values, dtype=torch.float32, device=device).reshape(1, self.channels, 1, 1)
            for values in (self.raw_mean, self.raw_std)
        )

    def __repr__(self) -> str:
        return f"LatentEncoder({self.vae!r})"


def _check_bytes(encoder: object, images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{type(encoder).__name__}: images must be uint8, got {images.dtype}; images that are "
            "scaled already are what encoding gives"
        )


ENCODERS: dict[str, type[PixelEncoder] | type[LatentEncoder]] = {
    each.name: each for each in (PixelEncoder, LatentEncoder)
}


def encoder(name: str | None) -> PixelEncoder | LatentEncoder | None:
    """The encoder called `name` in a checkpoint; None for no name.

    Raises ValueError for an unknown name.
    """
    if name is None:
        return None
    if not isinstance(name, str) or name not in ENCODERS:
        known = ", ".join(repr(known) for known in ENCODERS)
        raise ValueError(
            f"encoder: name must be one of {known} or None, got {name!r}; the checkpoint may "
            "need a later version of autoguide_fast"
        )
    return ENCODERS[name]()
