"""One network made ready for a GPU: its weights baked into the device's own convolutions.

The U-Net stays the one of `unet.py`: only its convolutions are replaced, by ones whose weight
was normalised, scaled and laid out once. Between them run the fused operators (`ops`), on maps that
lie channels-last from the first to the last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..guidance import Denoiser
from ..nn import MPConv
from ..preconditioning import denoised, magnitude
from ..unet import Block, Midway, UNet
from . import pack
from .embedding import Embedding
from .float8 import Float8Conv, suits_float8
from .prepared import PreparedDenoiser, check_call, device_of, no_autocast

# Of channels: a tensor core loads 16 bytes of a pixel at a time. Other numbers make cuDNN copy.
MULTIPLE = 8


class BakedConv(torch.nn.Module):
    """`nn.MPConv` with a weight that is ready to be used; its gain is part of it.

    Takes and returns `[N, C, H, W]`, channels-last, of the type of the weight. A 1x1 convolution is
    a product of matrices (cuBLAS), a larger one a convolution (cuDNN).
    """

    weight: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_channels, self.kernel = len(weight), weight.shape[-1]
        weight = weight.to(dtype)
        if self.kernel == 1:
            weight = weight.flatten(1)
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor, gain: None = None) -> Tensor:
        if self.kernel == 1:
            return F.linear(x.permute(0, 2, 3, 1), self.weight).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, padding=self.kernel // 2)


class BakedNet(PreparedDenoiser):
    """A denoiser `(x, sigma, class_labels) -> D` on baked weights; a snapshot of a `Precond`.

    Args:
        net: a `Precond`, perhaps `unlabelled`: float32, on any device.
        dtype: of maps and weights: float16, bfloat16, float32; or float8_e4m3fn for the blocks'
            convolutions where that pays (`float8.py`), with the rest in float16.
        shared: one of the same net, whose weights it then uses.
        float8_width: narrower convolutions stay in float16.

    Attributes:
        alike: of a guide, how many of its layers, from the first on, are the model's.
    """

    embedding: Embedding
    unet: UNet
    alike = 0

    def __init__(
        self,
        net: Denoiser,
        dtype: torch.dtype,
        shared: BakedNet | None = None,
        **float8_options: int,
    ) -> None:
        super().__init__(net)
        self.multiplies = dtype
        self.dtype = torch.float16 if dtype == torch.float8_e4m3fn else dtype
        self.device = device_of(net)
        if shared is not None:
            self.embedding, self.unet = shared.embedding, shared.unet
        else:
            with torch.no_grad(), no_autocast(self.device.type):
                source = self.source(net)
                self.embedding = Embedding(source)
                self.unet = _baked(source.unet, dtype, **float8_options)
        blocks = [*self.unet.enc.values(), *self.unet.dec.values()]
        widths = [b.conv_res1.out_channels for b in blocks if isinstance(b, Block)]
        self.columns: list[slice] = []  # of each block among the embedding's modulations
        start = 0
        for width in widths:
            self.columns.append(slice(start, start + width))
            start += pack.padded(width)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return sum(b.nbytes for b in self.unet.buffers()) + self.embedding.bytes

    def modulations(
        self,
        levels: Tensor,
        class_labels: Tensor | None,
        batch: int,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The blocks' modulations for noise levels `[L]` and labels `[N or 1, label_dim]`.

        `guidance` holds weights `[N or 1]` of a net that takes them, or is None.

        Returns `[L, batch * channels of all blocks]`: block after block, each `[batch, channels]`.
        """
        labels = None if self.unlabelled else class_labels
        with no_autocast(self.device.type):
            rows = self.embedding.modulations(levels, labels, guidance)
        return self._by_block(rows.expand(-1, batch, -1))

    def modulations_at(
        self,
        sigma: Tensor,
        class_labels: Tensor | None,
        batch: int,
        noise: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The modulations of one evaluation, at one level, 0-dim, or at those of images `[N]`.

        `noise`, `[N, emb_channels]`, is added to the embedding of the levels; `guidance` as for
        `modulations`.

        Returns `[1, batch * channels of all blocks]`, as a row of `modulations`.
        """
        if not sigma.ndim and noise is None:
            level = sigma.reshape(1).to(torch.float32)
            return self.modulations(level, class_labels, batch, guidance)
        labels = None if self.unlabelled else class_labels
        with no_autocast(self.device.type):
            rows = self.embedding.of_images(sigma.reshape(-1), labels, noise, guidance)
            return self._by_block(rows[None])

    def image(self, batch: int) -> Tensor:
        """Return a buffer for `run`: zeros, but for the channel of ones that stands for biases."""
        shape = batch, _padded(self.img_channels + 1), self.img_resolution, self.img_resolution
        image = torch.empty(
            shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
        ).zero_()
        image[:, self.img_channels] = 1
        return image

    def run(self, at: Midway, modulations: Tensor) -> Tensor:
        """Return `F [N, C, H, W]`, of the maps' type, of an evaluation under way.

        It begins with an `image` that holds `c_in x`; `modulations` is a row of what `modulations`
        returned.
        """
        at = self.advance(at, modulations)
        return self.unet.out_conv(at.x)[:, : self.img_channels]

    def advance(self, at: Midway, modulations: Tensor, until: int | None = None) -> Midway:
        """`UNet.advance`, with `modulations` as for `run`."""
        rows, start, images = [], 0, len(at.x)
        for columns in self.columns:
            count = images * (columns.stop - columns.start)
            rows.append(modulations[start : start + count].view(images, -1))
            start += count
        return self.unet.advance(at, rows, until)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """See `PreparedDenoiser.__call__`."""
        check_call(x, sigma, class_labels, guidance)
        with torch.no_grad(), no_autocast(self.device.type):
            x = x.to(torch.float32)
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
            labels = None if self.unlabelled else class_labels
            rows = self.embedding.of_images(sigma, labels, None, guidance)
            modulations = self._by_block(rows.expand(len(x), -1)[None])[0]
            sigma = sigma.reshape(-1, 1, 1, 1)
            image = self.image(len(x))
            image[:, : self.img_channels] = x / magnitude(sigma, self.sigma_data)
            raw = self.run(Midway(image), modulations).float()
            return denoised(x, raw, sigma, self.sigma_data)

    def _by_block(self, rows: Tensor) -> Tensor:
        """`[L, N, modulations]` -> `[L, -1]`, so that each block's rows lie side by side."""
        blocks = [rows[..., columns].flatten(1) for columns in self.columns]
        empty = rows.new_empty(len(rows), 0)
        return torch.cat([empty, *blocks], dim=1).to(self.dtype)


def _baked(unet: UNet, dtype: torch.dtype, **float8_options: int) -> UNet:
    """A `UNet`, which is changed, so that nothing in it is left to be prepared."""
    maps = torch.float16 if dtype == torch.float8_e4m3fn else dtype
    for name, module in unet.enc.items():
        if isinstance(module, MPConv):
            weight = ops.mp_weight(module.weight.detach())
            rest = _padded(weight.shape[1]) - weight.shape[1]
            unet.enc[name] = BakedConv(F.pad(weight, (0, 0, 0, 0, 0, rest)), maps)
    for block in (*unet.enc.values(), *unet.dec.values()):
        if not isinstance(block, Block):
            continue
        del block.emb_gain, block.emb_linear
        for name, module in list(block.named_children()):
            assert isinstance(module, MPConv)  # as all that a block has
            weight = ops.mp_weight(module.weight.detach())
            if dtype == torch.float8_e4m3fn and suits_float8(weight, **float8_options):
                block.add_module(name, Float8Conv(weight, maps))
            else:
                block.add_module(name, BakedConv(weight, maps))
    weight = ops.mp_weight(unet.out_conv.weight.detach(), unet.out_gain.detach())
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, _padded(len(weight)) - len(weight)))
    unet.add_module("out_conv", BakedConv(weight, maps))
    unet.register_parameter("out_gain", None)
    del unet.emb_fourier, unet.emb_noise, unet.emb_label
    if unet.emb_guidance is not None:
        del unet.emb_guidance_fourier, unet.emb_guidance, unet.emb_guidance_gain
    return unet


def _padded(channels: int) -> int:
    return -(-channels // MULTIPLE) * MULTIPLE
