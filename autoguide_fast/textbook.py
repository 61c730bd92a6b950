"""The denoiser as the papers write it: plain PyTorch, one equation after the other.

Nothing here is fused or compiled. Tests compare `networks.Precond` with it, and benchmarks race it,
eagerly and under `torch.compile`.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import preconditioning
from .networks import Precond
from .nn import MPConv, MPFourier
from .ops import (
    attention_split_reference,
    mp_cat_reference,
    mp_fourier_reference,
    mp_silu_reference,
    mp_sum_reference,
    mp_weight_reference,
    normalize_reference,
    resample_reference,
)
from .unet import Block

Net = TypeVar("Net", bound=torch.nn.Module)


def draw_gains(net: Net, mean: float = 0.8, std: float = 0.2) -> Net:
    """Draw the gains of an untrained `Precond`, which are 0, and return it; on its own device.

    With gains of 0 it returns `c_skip x`; tests and benchmarks want all of it to matter.
    """
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.normal_(parameter, mean, std)
    return net


class TextbookPrecond(torch.nn.Module):
    """The same function as a `networks.Precond`, with the same parameters, unfused.

    Called like the network it is made from: `(x, sigma, class_labels=None, return_logvar=False,
    guidance=1.0)`.
    Shares the parameters, so training the one trains the other. Float64 parameters compute in
    float64. Differentiable; compilable as a full graph. Inductor of torch 2.13 computes wrong
    gradients for it on a CPU unless `torch._inductor.config.layout_optimization` is off; its
    forward pass is right either way.

    Args:
        net: whose parameters to use.
    """

    def __init__(self, net: Precond) -> None:
        super().__init__()
        self.net = net
        self.img_resolution, self.img_channels = net.img_resolution, net.img_channels
        self.label_dim, self.sigma_data = net.label_dim, net.sigma_data
        self.train(net.training)

    @property
    def encoder(self) -> Any:
        """That of the network, which is no layer of this one either."""
        return self.net.encoder

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        return_logvar: bool = False,
        guidance: Tensor | float = 1.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if x.is_meta:  # which autocast does not know
            return self._denoise(x, sigma, class_labels, return_logvar, guidance)
        with torch.autocast(x.device.type, enabled=False):  # which changes types
            return self._denoise(x, sigma, class_labels, return_logvar, guidance)

    def _denoise(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None,
        return_logvar: bool,
        guidance: Tensor | float,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self.normalize_weights()
        dtype = self.net.unet.out_gain.dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1, 1, 1, 1)

        c_skip, c_out = preconditioning.c_skip_and_c_out(sigma, self.sigma_data)
        c_in = preconditioning.c_in(sigma, self.sigma_data)
        c_noise = preconditioning.c_noise(sigma.flatten())
        if class_labels is None and self.label_dim:
            class_labels = torch.zeros([1, self.label_dim], device=x.device)
        if class_labels is not None:
            class_labels = class_labels.to(dtype)
        half = self.net.use_fp16 and x.is_cuda
        run = torch.float16 if half else dtype
        denoised = c_skip * x + c_out * self._unet(
            (c_in * x).to(run),
            c_noise.to(run),
            class_labels if class_labels is None else class_labels.to(run),
            torch.as_tensor(guidance, dtype=run, device=x.device).reshape(-1),
        ).to(dtype)
        if not return_logvar:
            return denoised
        # EDM2 eq. 14-16: the uncertainty u(sigma).
        u = _layer(self.net.logvar_linear, _fourier(self.net.logvar_fourier, c_noise))
        return denoised, u.reshape(-1, 1, 1, 1)

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Forced weight normalisation: what training does before each pass (EDM2 section 2.3)."""
        for module in self.net.modules():
            if isinstance(module, MPConv):
                module.weight.copy_(normalize_reference(module.weight))

    def _unet(
        self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None, guidance: Tensor
    ) -> Tensor:
        # EDM2 fig. 21.
        unet = self.net.unet
        emb = _layer(unet.emb_noise, _fourier(unet.emb_fourier, c_noise))
        if unet.emb_label is not None:
            assert class_labels is not None  # see `_denoise`
            label = _layer(unet.emb_label, class_labels * class_labels.shape[1] ** 0.5)
            emb = mp_sum_reference(emb, label, t=unet.label_balance)
        if unet.emb_guidance is not None:
            features = _fourier(unet.emb_guidance_fourier, preconditioning.c_guidance(guidance))
            emb = emb + unet.emb_guidance_gain * _layer(unet.emb_guidance, features)
        emb = mp_silu_reference(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for block in unet.enc.values():
            if isinstance(block, Block):
                x = _encoder_block(block, x, emb)
            else:
                assert isinstance(block, MPConv)
                x = _layer(block, x)
            skips.append(x)
        for name, block in unet.dec.items():
            assert isinstance(block, Block)
            if "block" in name:
                x = mp_cat_reference(x, skips.pop(), t=block.concat_balance)
            x = _decoder_block(block, x, emb)
        return _layer(unet.out_conv, x, gain=unet.out_gain)


def _layer(layer: MPConv, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
    """Magnitude-preserving convolution or linear layer (EDM2 eq. 47 and 66)."""
    w = mp_weight_reference(layer.weight, gain=gain, dtype=x.dtype)
    return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


def _fourier(layer: MPFourier, x: Tensor) -> Tensor:
    return mp_fourier_reference(x, layer.freqs, layer.phases)


def _encoder_block(block: Block, x: Tensor, emb: Tensor) -> Tensor:
    x = resample_reference(x, block.resample_mode)
    if block.conv_skip is not None:
        x = _layer(block.conv_skip, x)
    x = normalize_reference(x, dim=1)  # pixel norm
    if block.left_out:
        return x
    return _join(block, x, _residual(block, x, emb))


def _decoder_block(block: Block, x: Tensor, emb: Tensor) -> Tensor:
    x = resample_reference(x, block.resample_mode)
    y = _residual(block, x, emb)
    if block.conv_skip is not None:
        x = _layer(block.conv_skip, x)
    return x if block.left_out else _join(block, x, y)


def _residual(block: Block, x: Tensor, emb: Tensor) -> Tensor:
    y = _layer(block.conv_res0, mp_silu_reference(x))
    c = _layer(block.emb_linear, emb, gain=block.emb_gain) + 1
    y = mp_silu_reference(y * c[:, :, None, None])
    y = F.dropout(y, p=block.dropout, training=block.training)
    return _layer(block.conv_res1, y)


def _join(block: Block, x: Tensor, y: Tensor) -> Tensor:
    x = mp_sum_reference(x, y, t=block.res_balance)  # EDM2 eq. 88
    if block.attn_qkv is not None and block.attn_proj is not None:
        q, k, v = attention_split_reference(_layer(block.attn_qkv, x), block.num_heads)
        y = v
        if block.attn_temperature:
            y = F.scaled_dot_product_attention(q / block.attn_temperature, k, v)
        y = y.transpose(2, 3).reshape(x.shape)
        x = mp_sum_reference(x, _layer(block.attn_proj, y), t=block.attn_balance)
    return x if block.clip_act is None else x.clamp(-block.clip_act, block.clip_act)
