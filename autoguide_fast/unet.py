"""The U-Net of EDM2 (fig. 21, configuration G) and its blocks, as layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops, torch_functional
from .modes import transformed, without_autocast
from .net_config import NetConfig
from .nn import MPConv, MPFourier

Flavor = Literal["enc", "dec"]
Mode = Literal["keep", "up", "down"]
Drop = Callable[[Tensor], Tensor]


class Block(torch.nn.Module):
    """One encoder or decoder block of the U-Net (EDM2 fig. 21).

    Encoder: resample, 1x1 skip convolution where the width changes, pixel norm, residual branch.
    Decoder: concatenation with the encoder's feature map or resampling, residual branch beside a
    1x1 skip convolution. Both end in a magnitude-preserving sum, optional self-attention and a
    clip to `+-clip_act`.

    Args:
        in_channels, out_channels: widths of the input (after concatenation) and the output.
        config: of these options: `channels_per_head`, `dropout`, `res_balance`, `attn_balance`,
            `attn_temperature`, `clip_act`, `concat_balance` (used where `skip` is given), and what
            makes the embedding's width.
        flavor: of the encoder or of the decoder.
        resample_mode: what happens to height and width.
        attention: whether to end in self-attention with `out_channels // channels_per_head` heads.
            As in the published networks, a block narrower than `channels_per_head` has no
            attention.
        left_out: whether residual branch, attention and clip are left out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: NetConfig,
        flavor: Flavor = "enc",
        resample_mode: Mode = "keep",
        attention: bool = False,
        left_out: bool = False,
    ) -> None:
        super().__init__()
        self.flavor, self.left_out = flavor, left_out
        self.resample_mode = resample_mode
        self.num_heads = out_channels // config.channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(
                "Block: channels_per_head must split the width into equal heads, got "
                f"channels_per_head={config.channels_per_head} for {out_channels} channels; choose "
                "a divisor of the width"
            )
        self.dropout = config.dropout
        self.res_balance = config.res_balance
        self.attn_balance = config.attn_balance
        self.attn_temperature = config.attn_temperature
        self.clip_act = config.clip_act
        self.concat_balance = config.concat_balance

        self.emb_gain = torch.nn.Parameter(torch.zeros([], dtype=torch.float32))
        branch_in = out_channels if flavor == "enc" else in_channels
        self.conv_res0 = MPConv(branch_in, out_channels, kernel=[3, 3])
        self.emb_linear = MPConv(config.emb_channels, out_channels, kernel=[])
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=[3, 3])
        self.conv_skip: MPConv | None = None
        if in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, kernel=[1, 1])
        self.attn_qkv: MPConv | None = None
        self.attn_proj: MPConv | None = None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, out_channels * 3, kernel=[1, 1])
            self.attn_proj = MPConv(out_channels, out_channels, kernel=[1, 1])

    def modulation(self, emb: Tensor) -> Tensor:
        """Numbers near 1, `[N or 1, out_channels]`, by which the embedding scales channels."""
        return self.emb_linear(emb, gain=self.emb_gain) + 1

    def forward(
        self, x: Tensor, modulation: Tensor, skip: Tensor | None = None, drop: Drop | None = None
    ) -> Tensor:
        """`x [N, C, H, W]`, what `modulation` returned, `skip` a feature map or None."""
        x, y = self._enter(x, skip)
        if self.left_out:
            in_decoder = self.flavor == "dec" and self.conv_skip is not None
            return self.conv_skip(x) if in_decoder else x  # type: ignore[misc]
        y = self.conv_res0(y)
        y = ops.modulate_mp_silu(y, modulation)
        if self.dropout and self.training:
            y = F.dropout(y, p=self.dropout)
        if drop is not None:
            y = drop(y)
        y = self.conv_res1(y)

        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        if not self.num_heads:
            return ops.mp_sum(x, y, t=self.res_balance, clip=self.clip_act)
        x = ops.mp_sum(x, y, t=self.res_balance)
        return ops.mp_sum(x, self._attend(x), t=self.attn_balance, clip=self.clip_act)

    def _enter(self, x: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
        """The block's main path and its activated copy, which starts the residual branch."""
        if self.flavor == "enc":
            mode = self.resample_mode
            if self.conv_skip is not None:
                x, mode = self.conv_skip(ops.resample(x, mode)), "keep"
            return ops.resample_normalize_mp_silu(x, mode=mode)
        x = ops.resample(x, self.resample_mode)
        if skip is None:
            return x, ops.mp_silu(x)
        return ops.mp_cat_mp_silu(x, skip, t=self.concat_balance)

    def _attend(self, x: Tensor) -> Tensor:
        """Cosine self-attention over the pixels (EDM2 fig. 21)."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        q, k, v = ops.attention_split(self.attn_qkv(x), self.num_heads)
        if self.attn_temperature == 0:  # each pixel attends to itself
            y = v
        else:
            if self.attn_temperature != 1:
                q = q / self.attn_temperature
            y = torch_functional.attention(q, k, v)  # [N, heads, H*W, channels]
        # Attention leaves a pixel's channels side by side, so that this copies nothing.
        y = y.transpose(1, 2).reshape(x.shape[0], *x.shape[2:], x.shape[1])
        return self.attn_proj(y.permute(0, 3, 1, 2))


@dataclass(frozen=True)
class Midway:
    """An evaluation of a `UNet` under way.

    x: the map that the last layer made, at first the images with their channel of ones.
    skips: the encoder's maps that the decoder has not taken yet.
    done: how many layers have run.
    """

    x: Tensor
    skips: tuple[Tensor, ...] = ()
    done: int = 0


class UNet(torch.nn.Module):
    """The raw network F(x, c_noise, label) of EDM2 fig. 21, for a `NetConfig`."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        widths, num_blocks = config.widths, config.num_blocks
        self.label_balance = config.label_balance
        attn_resolutions = set(config.attn_resolutions)
        self.out_gain = torch.nn.Parameter(torch.zeros([], dtype=torch.float32))

        # Embedding of noise level and class.
        self.emb_fourier = MPFourier(config.noise_channels)
        self.emb_noise = MPConv(config.noise_channels, config.emb_channels, kernel=[])
        self.emb_label: MPConv | None = None
        if config.label_dim:
            self.emb_label = MPConv(config.label_dim, config.emb_channels, kernel=[])
        self.emb_guidance: MPConv | None = None
        if config.guidance_range:
            self.emb_guidance_fourier = MPFourier(config.noise_channels)
            self.emb_guidance = MPConv(config.noise_channels, config.emb_channels, kernel=[])
            self.emb_guidance_gain = torch.nn.Parameter(torch.zeros([], dtype=torch.float32))

        # Blocks are known by the part that they are in and their name there.
        left_out, last = set(config.left_out), f"dec.{config.img_resolution}x"
        last += f"{config.img_resolution}_block{num_blocks}"

        def block(
            name: str,
            c_in: int,
            c_out: int,
            resolution: int,
            mode: Mode = "keep",
            attention: bool | None = None,
        ) -> Block:
            if attention is None:
                attention = resolution in attn_resolutions
            flavor: Flavor = "enc" if name.startswith("enc.") else "dec"
            known.append(name)
            return Block(c_in, c_out, config, flavor, mode, attention, name in left_out)

        known: list[str] = []

        # Encoder: one more input channel, of ones, stands in for biases.
        self.enc = torch.nn.ModuleDict()
        width, skips = config.img_channels + 1, []
        for level, c_out in enumerate(widths):
            res = config.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(width, c_out, kernel=[3, 3])
                width = c_out
            else:
                name = f"{res}x{res}_down"
                self.enc[name] = block(
                    f"enc.{name}", width, width, res, mode="down", attention=False
                )
            skips.append(width)
            for i in range(num_blocks):
                name = f"{res}x{res}_block{i}"
                self.enc[name] = block(f"enc.{name}", width, c_out, res)
                width = c_out
                skips.append(width)

        # Decoder.
        self.dec = torch.nn.ModuleDict()
        for level, c_out in reversed(list(enumerate(widths))):
            res = config.img_resolution >> level
            if level == len(widths) - 1:
                for i, attention in enumerate((True, False)):
                    name = f"{res}x{res}_in{i}"
                    self.dec[name] = block(f"dec.{name}", width, width, res, attention=attention)
            else:
                name = f"{res}x{res}_up"
                self.dec[name] = block(f"dec.{name}", width, width, res, mode="up", attention=False)
            for i in range(num_blocks + 1):
                c_in = width + skips.pop()
                name = f"{res}x{res}_block{i}"
                self.dec[name] = block(f"dec.{name}", c_in, c_out, res)
                width = c_out
        known.remove(last)
        if not left_out <= set(known):
            raise ValueError(
                f"Precond: left_out must name blocks but the last, got {sorted(left_out)}; the net "
                f"has {', '.join(known)}"
            )
        size = f"{config.img_resolution}x{config.img_resolution}_"
        ends = [f"dec.{name}" for name in self.dec if name.startswith(size)][:-1]
        for option in ("head_after", "ends_after"):
            if getattr(config, option) not in ("", *ends):
                raise ValueError(
                    f"Precond: {option} must name a block of the decoder at full resolution but "
                    f"the last, got {getattr(config, option)!r}; the net has {', '.join(ends)}"
                )
        if config.ends_after:
            names = list(self.dec)
            last = config.ends_after.removeprefix("dec.")
            for name in names[names.index(last) + 1 :]:
                del self.dec[name]
            width = _width(self.dec[last])
        self.out_conv = MPConv(width, config.img_channels, kernel=[3, 3])
        self.head_after = config.head_after.removeprefix("dec.")
        self.head_conv: MPConv | None = None
        if self.head_after:
            width = _width(self.dec[self.head_after])
            self.head_conv = MPConv(width, config.img_channels, kernel=[3, 3])
            self.head_gain = torch.nn.Parameter(torch.zeros([], dtype=torch.float32))

    def embed(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        noise: Tensor | None = None,
        c_guidance: Tensor | None = None,
    ) -> Tensor:
        """Embedding `[N or 1, emb_channels]` of `c_noise`, labels, `c_guidance` (or None).

        `c_noise` and `c_guidance` are `[N or 1]`; `noise` is added to that of the noise level.
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if noise is not None:
            emb = emb + noise
        if self.emb_label is not None:
            # A one-hot row times sqrt(label_dim) has unit magnitude.
            assert class_labels is not None
            labels = class_labels * class_labels.shape[1] ** 0.5
            emb = ops.mp_sum(emb, self.emb_label(labels), t=self.label_balance)
        if self.emb_guidance is not None:
            # The guidance weight as an input (arXiv 2210.03142, section 3.1). At a gain of 0 the
            # net is the one that it was made from.
            assert c_guidance is not None
            features = self.emb_guidance_fourier(c_guidance)
            emb = emb + self.emb_guidance(features, gain=self.emb_guidance_gain)
        return ops.mp_silu(emb)

    def modulations(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        noise: Tensor | None = None,
        c_guidance: Tensor | None = None,
    ) -> list[Tensor]:
        """All blocks' modulations, in the order of the blocks; independent of the images."""
        emb = self.embed(c_noise, class_labels, noise, c_guidance)
        modules = [*self.enc.values(), *self.dec.values()]
        return [m.modulation(emb) for m in modules if isinstance(m, Block)]

    def run(
        self,
        x: Tensor,
        modulations: Iterable[Tensor],
        head: bool = False,
        drop: Drop | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`x [N, C, H, W]` scaled to unit variance -> `F [N, C, H, W]`, and that of the head.

        The latter is None if it is not asked for.
        """
        grey = x.shape[1] == 1
        x = _with_ones(x)
        if grey and self.training and not transformed():  # `vmap` knows no layouts
            # The layout of one channel says nothing; training runs faster on channels-last.
            x = x.contiguous(memory_format=torch.channels_last)
        rows, at, early = list(modulations), Midway(x), None
        if head and self.head_conv is not None:
            count = len(self.enc) + 1 + list(self.dec).index(self.head_after)
            at = self.advance(at, rows, count, drop)
            early = self.head_conv(at.x, gain=self.head_gain)
        at = self.advance(at, rows, drop=drop)
        return self.out_conv(at.x, gain=self.out_gain), early

    @property
    def layers(self) -> list[tuple[str, torch.nn.Module]]:
        """The layers but the last, in the order in which they run, by their names in their part."""
        return [*self.enc.items(), *self.dec.items()]

    def advance(
        self,
        at: Midway,
        modulations: Sequence[Tensor],
        until: int | None = None,
        drop: Drop | None = None,
    ) -> Midway:
        """The evaluation after the first `until` of the `layers`, by default all.

        `at` is where it stands, and stays as it is; `modulations` are those of all blocks.
        """
        x, skips, layers = at.x, list(at.skips), self.layers[at.done : until]
        for i, (name, layer) in enumerate(layers, at.done):
            if i == 0:  # the images' own convolution, which no block is
                x = layer(x)
            else:
                skip = skips.pop() if i >= len(self.enc) and "block" in name else None
                x = layer(x, modulations[i - 1], skip, drop)
            if i < len(self.enc):
                skips.append(x)
        return Midway(x, tuple(skips), at.done + len(layers))


def _width(block: torch.nn.Module) -> int:
    assert isinstance(block, Block)
    return block.conv_res1.weight.shape[0]


@without_autocast
def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
