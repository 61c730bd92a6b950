"""One network made ready for a GPU: its weights baked into the device's own convolutions.

The U-Net stays the one of `networks.py`: only its convolutions are replaced, by ones whose weight
was normalised, scaled and laid out once. Between them run the fused operators (`ops`), on maps that
lie channels-last from the first to the last.
"""

import torch
import torch.nn.functional as F

from .. import ops
from ..networks import Block
from ..nn import MPConv
from ..preconditioning import denoised, magnitude
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

    def __init__(self, weight, dtype):
        super().__init__()
        self.kernel = weight.shape[-1]
        weight = weight.to(dtype)
        if self.kernel == 1:
            weight = weight.flatten(1)
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)

    def forward(self, x, gain=None):
        if self.kernel == 1:
            return F.linear(x.permute(0, 2, 3, 1), self.weight).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, padding=self.kernel // 2)


class BakedNet(PreparedDenoiser):
    """A denoiser `(x, sigma, class_labels) -> D` on baked weights; a snapshot of a `Precond`.

    Args:
        net (Precond or Unlabelled): float32, on any device.
        dtype (torch.dtype): Of maps and weights: float16, bfloat16, float32; or float8_e4m3fn for
            the blocks' convolutions where that pays (`float8.py`), with the rest in float16.
        shared (BakedNet, optional): One of the same net, whose weights it then uses.
        float8_width (int): Narrower convolutions stay in float16.
    """

    def __init__(self, net, dtype, shared=None, **float8_options):
        super().__init__(net)
        self.dtype = torch.float16 if dtype == torch.float8_e4m3fn else dtype
        self.device = device_of(net)
        if shared is not None:
            self.embedding, self.unet = shared.embedding, shared.unet
        else:
            with torch.no_grad(), no_autocast(self.device.type):
                net = self.source(net)
                self.embedding = Embedding(net)
                self.unet = _baked(net.unet, dtype, **float8_options)
        blocks = [*self.unet.enc.values(), *self.unet.dec.values()]
        widths = [b.conv_res1.channels for b in blocks if isinstance(b, Block)]
        self.columns, start = [], 0  # of each block among the embedding's modulations
        for width in widths:
            self.columns.append(slice(start, start + width))
            start += pack.padded(width)

    @property
    def weight_bytes(self):
        """Memory of the weights."""
        return sum(b.nbytes for b in self.unet.buffers()) + self.embedding.bytes

    def modulations(self, levels, class_labels, batch):
        """The blocks' modulations for noise levels `[L]` and labels `[N or 1, label_dim]`.

        Returns `[L, batch * channels of all blocks]`: block after block, each `[batch, channels]`.
        """
        labels = None if self.unlabelled else class_labels
        with no_autocast(self.device.type):
            rows = self.embedding.modulations(levels, labels)
        return self._by_block(rows.expand(-1, batch, -1))

    def image(self, batch):
        """Return a buffer for `run`: zeros, but for the channel of ones that stands for biases."""
        shape = batch, _padded(self.img_channels + 1), self.img_resolution, self.img_resolution
        image = torch.empty(
            shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last
        ).zero_()
        image[:, self.img_channels] = 1
        return image

    def run(self, image, modulations):
        """Return `F [N, C, H, W]`, of the maps' type, for an `image` that holds `c_in x`.

        `modulations` is a row of what `modulations` returned.
        """
        rows, start = [], 0
        for columns in self.columns:
            count = len(image) * (columns.stop - columns.start)
            rows.append(modulations[start : start + count].view(len(image), -1))
            start += count
        return self.unet.run_blocks(image, rows)[:, : self.img_channels]

    def __call__(self, x, sigma, class_labels=None):
        """Denoise `x [N, C, H, W]` at `sigma` (0-dim or [N]), as `Precond.forward` does.

        Returns float32 `[N, C, H, W]`, which requires no gradient. Not differentiable: raises
        ValueError where a derivative is asked for.
        """
        check_call(x, sigma, class_labels)
        with torch.no_grad(), no_autocast(self.device.type):
            x = x.to(torch.float32)
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
            rows = self.embedding.of_images(sigma, None if self.unlabelled else class_labels)
            modulations = self._by_block(rows.expand(len(x), -1)[None])[0]
            sigma = sigma.reshape(-1, 1, 1, 1)
            image = self.image(len(x))
            image[:, : self.img_channels] = x / magnitude(sigma, self.sigma_data)
            raw = self.run(image, modulations).float()
            return denoised(x, raw, sigma, self.sigma_data)

    def _by_block(self, rows):
        """`[L, N, modulations]` -> `[L, -1]`, so that each block's rows lie side by side."""
        blocks = [rows[..., columns].flatten(1) for columns in self.columns]
        empty = rows.new_empty(len(rows), 0)
        return torch.cat([empty, *blocks], dim=1).to(self.dtype)


def _baked(unet, dtype, **float8_options):
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
            weight = ops.mp_weight(module.weight.detach())
            if dtype == torch.float8_e4m3fn and suits_float8(weight, **float8_options):
                baked = Float8Conv(weight, maps)
            else:
                baked = BakedConv(weight, maps)
            baked.channels = len(weight)
            setattr(block, name, baked)
    weight = ops.mp_weight(unet.out_conv.weight.detach(), unet.out_gain.detach())
    weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, _padded(len(weight)) - len(weight)))
    unet.out_conv = BakedConv(weight, maps)
    unet.register_parameter("out_gain", None)
    del unet.emb_fourier, unet.emb_noise, unet.emb_label
    return unet


def _padded(channels):
    return -(-channels // MULTIPLE) * MULTIPLE
