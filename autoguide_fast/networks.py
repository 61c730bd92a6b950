"""The EDM2 denoiser: U-Net (EDM2 fig. 21, configuration G), preconditioning (EDM table 1)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops, preconditioning, torch_functional
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
        return self.run_blocks(x, modulations, head, drop)

    def run_blocks(
        self,
        x: Tensor,
        modulations: Iterable[Tensor],
        head: bool = False,
        drop: Drop | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`run` for `x` that has its channel of ones, `[N, C + 1, H, W]`."""
        early: Tensor | None = None
        rows, skips = iter(modulations), []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("conv") else module(x, next(rows), None, drop)
            skips.append(x)
        for name, module in self.dec.items():
            x = module(x, next(rows), skips.pop() if "block" in name else None, drop)
            if head and name == self.head_after and self.head_conv is not None:
                early = self.head_conv(x, gain=self.head_gain)
        return self.out_conv(x, gain=self.out_gain), early


def _width(block: torch.nn.Module) -> int:
    assert isinstance(block, Block)
    return block.conv_res1.weight.shape[0]


def _option(name: str) -> Any:
    """The entry `name` of a `Precond`'s `config`, as an attribute that may be set."""

    def set_option(net: Precond, value: object) -> None:
        net.config = NetConfig(**{**net.config, name: value}).as_dict()

    return property(lambda net: net.config[name], set_option)


class Precond(torch.nn.Module):
    """EDM2 denoiser `D(x; sigma, label)`: the U-Net with EDM's preconditioning.

    `D = c_skip x + c_out F(c_in x; c_noise, label)` with `c_skip = sd^2 / (sigma^2 + sd^2)`,
    `c_out = sigma sd / sqrt(sigma^2 + sd^2)`, `c_in = 1 / sqrt(sigma^2 + sd^2)`,
    `c_noise = ln(sigma) / 4` and `sd = sigma_data` (EDM table 1).

    The net chooses the types that it computes in: neither autocast nor the default dtype changes
    them. `.half()`, `.bfloat16()` and `.double()` change those of its weights alone. Products obey
    `torch.set_float32_matmul_precision`. New weights are float32, on the default device.

    Args:
        img_resolution: height and width of the images or latents; divisible by `2 **
            (len(channel_mult) - 1)`.
        img_channels: channels of the images or latents.
        label_dim: number of classes; 0 for a network without labels, which ignores the ones it is
            given.
        model_channels: base width.
        channel_mult: width of each level in multiples of `model_channels`, highest resolution
            first.
        channel_mult_noise, channel_mult_emb: width of the Fourier features and of the embedding, in
            the same multiples; None for the first and for the largest of the level widths.
        num_blocks: encoder blocks per level; the decoder has one more.
        attn_resolutions: resolutions whose blocks have self-attention.
        label_balance, concat_balance, res_balance, attn_balance: weight of the second term in the
            sums that join label, skip feature map, residual branch and attention.
        resample_filter: only `[1, 1]` is supported.
        channels_per_head: width of an attention head; a block narrower than this has no attention.
        dropout: dropout probability in the residual branches, in training mode.
        left_out: names of blocks, such as "dec.8x8_block0", whose residual branch and attention are
            left out; see `guidance.weakened`. The last block must stay.
        attn_temperature: what attention's scores are divided by, 1 or more; 0: each pixel attends
            to itself alone.
        guidance_range: `[lowest, highest]` guidance weight that the net takes as an input, 1 among
            them, and has learnt to answer as if a guide were there (arXiv 2210.03142;
            `autoguide-fast distill`); empty for a net without.
        head_after: name of a block of the decoder at full resolution, such as "dec.8x8_block0",
            after which a convolution of its own gives a second result, so that a net with it is its
            own guide (`guidance.intermediate_head`); "" for a net without.
        ends_after: name of such a block, after which the decoder ends; "" for the whole.
        clip_act: bound on the activations at the end of each block, or None.
        sigma_data: standard deviation of the data.
        logvar_channels: Fourier features of the uncertainty head u(sigma) (EDM2 eq. 14-16).
        use_fp16: run the U-Net in float16 on CUDA devices. Preconditioning and result stay float32,
            and so does everything on other devices.

    Attributes:
        config: all constructor arguments, as of `NetConfig.as_dict`, ready for JSON:
            `Precond(**net.config)` is the same network. Layers are built from it: of its entries
            only `sigma_data` and `use_fp16` may be set afterwards, as attributes of the net.
        info: what else a checkpoint recorded about the network; empty for one that was not loaded.
        encoder: what turns raw samples into images (`autoguide_fast.encoders`); None for raw
            samples. It is no layer of the network: a module is not among its parameters, weights or
            sub-modules, and keeps its types. `.to`, `.cpu` and `.cuda` take it along;
            `copy.deepcopy` and pickles hold it.
        run_dtype: type that the U-Net runs in, on any device; None leaves it to `use_fp16`.
            Training in mixed precision sets it; it is not stored.
    """

    def __init__(self, *options: Any, **named_options: Any) -> None:
        super().__init__()
        config = NetConfig(*options, **named_options)
        self.config = config.as_dict()
        self.img_resolution = config.img_resolution
        self.img_channels = config.img_channels
        self.label_dim = config.label_dim
        self.encoder: Any = None
        self.info: dict[str, Any] = {}
        self.run_dtype: torch.dtype | None = None
        self.unet = UNet(config)
        self.logvar_fourier = MPFourier(config.logvar_channels)
        self.logvar_linear = MPConv(config.logvar_channels, 1, kernel=[])

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder":  # torch would make a module a layer
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Precond:
        net = super()._apply(fn, recurse)
        device = self.unet.out_gain.device
        if isinstance(self.encoder, torch.nn.Module) and device.type != "meta":
            self.encoder.to(device)
        return net

    # Options that nothing was built from, so that they may be changed later.
    sigma_data: float = _option("sigma_data")
    use_fp16: bool = _option("use_fp16")

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        return_logvar: bool = False,
        embedding_noise: Tensor | None = None,
        guidance: Tensor | float | None = None,
        return_head: bool = False,
        drop: Drop | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Denoise `x`.

        Args:
            x: noisy images `[N, img_channels, img_resolution, img_resolution]`; computed in
                float32.
            sigma: noise levels > 0, in units of `x`: a number, 0-dim, `[N]` or `[N, 1, 1, 1]`. One
                level for the whole batch is embedded once.
            class_labels: one-hot (or soft) labels `[N or 1, label_dim]`; None stands for all zeros.
            return_logvar: also return u(sigma), `[N or 1, 1, 1, 1]`.
            embedding_noise: float32 `[N or 1, emb_channels]`, added to the embedding of the noise
                level (`guidance.disturbed`).
            guidance: guidance weights, a number, 0-dim or `[N]`, of a net with a `guidance_range`;
                None is 1, the net without guidance. A number is held against the range.
            return_head: also return what the head after a block denoises (`head_after`).
            drop: what is done to the residual branch of each block in turn, `[N, C, h, w]`, where
                training has its dropout (`guidance.disturbed`).

        Returns:
            float32 `[N, C, H, W]`, u(sigma) if asked for, and the head's float32 `[N, C, H, W]` if
            asked for.

        Raises ValueError where shapes do not fit, TypeError for what is not a tensor.
        Differentiable to any order, in reverse and forward mode and under the transforms of
        `torch.func`; graph-capturable in evaluation mode when `sigma` is a tensor on the device.
        """
        if return_head and self.unet.head_conv is None:
            raise ValueError(
                "Precond: return_head must be False for a net without a head, got True; make it "
                "with head_after"
            )
        x, sigma = self._inputs(x, sigma)
        raw, early = self._raw(x, sigma, class_labels, embedding_noise, guidance, return_head, drop)
        denoised = preconditioning.denoised(x, raw, sigma, self.sigma_data)
        found: tuple[Tensor, ...] = (denoised,)
        if return_logvar:
            c_noise = preconditioning.c_noise(sigma.flatten())
            logvar = self.logvar_linear(self.logvar_fourier(c_noise)).reshape(-1, 1, 1, 1)
            found += (logvar,)
        if early is not None:
            found += (preconditioning.denoised(x, early, sigma, self.sigma_data),)
        return found if len(found) > 1 else denoised

    def raw(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        """The network's output `F` before `c_skip` and `c_out`, float32 `[N, C, H, W]`.

        Arguments as in `forward`. This is what the fused sampler step takes, which computes
        `c_skip x + c_out F` on its way.
        """
        return self._raw(*self._inputs(x, sigma), class_labels, None, guidance)[0]

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> Precond:
        """The network in a folder that `save_pretrained` wrote, or in a repository.

        Args:
            name: the folder, or a repository of the Hugging Face Hub, `"user/name"`,
                where huggingface_hub is installed.
            revision: branch, tag or commit of the repository.
            device: where to put it.
            **options: others of `huggingface_hub.hf_hub_download`, such as `token`.

        Returns what `autoguide_fast.load` does, and raises likewise.
        """
        from .checkpoints import hub

        return hub.from_pretrained(name, revision, device, **options)

    def save_pretrained(self, folder: str | os.PathLike, **info: Any) -> None:
        """Write the network to `model.safetensors` in `folder`, which is made if need be.

        `info` is kept beside the weights; `autoguide_fast.save` says what may be in it, what is
        raised, and writes to any other file.
        """
        from .checkpoints import hub

        hub.save_pretrained(self, folder, **info)

    def push_to_hub(
        self,
        name: str,
        private: bool | None = None,
        message: str | None = None,
        token: str | None = None,
        **info: Any,
    ) -> str:
        """Upload the network to a repository of the Hugging Face Hub, made if need be.

        Args:
            name: `"user/name"`, or the name alone for whoever is logged in.
            private: whether a new repository is private; None leaves it to the
                account.
            message: of the commit.
            token: to log in with; None for the one that is stored.
            **info: as for `save_pretrained`.

        Returns:
            address of the commit.

        Raises ImportError where huggingface_hub is not installed; what it raises itself for an
        account, a name or a network that it cannot use.
        """
        from .checkpoints import hub

        return hub.push_to_hub(self, name, private, message, token, **info)

    def _raw(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None,
        embedding_noise: Tensor | None,
        guidance: Tensor | float | None,
        head: bool = False,
        drop: Drop | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.float16 if self.use_fp16 and x.is_cuda else torch.float32
        dtype = self.run_dtype or dtype
        labels = self._labels(x, class_labels, torch.float32)
        c_in = preconditioning.c_in(sigma, self.sigma_data)
        c_noise = preconditioning.c_noise(sigma.flatten())
        # Embedded in float32: in bfloat16 neighbouring noise levels would become one.
        c_guidance = self._c_guidance(x, guidance)
        embedded = self.unet.modulations(c_noise, labels, embedding_noise, c_guidance)
        modulations = [m.to(dtype) for m in embedded]
        raw, early = self.unet.run((c_in * x).to(dtype), modulations, head, drop)
        return raw.float(), None if early is None else early.float()

    def _inputs(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """`x` and `sigma` as float32, the latter `[N or 1, 1, 1, 1]`."""
        expected = (self.img_channels, self.img_resolution, self.img_resolution)
        _check_tensor("x", x)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(
                f"Precond: x must be [N, {', '.join(map(str, expected))}], got "
                f"{list(x.shape)}; resize it or use a network made for that shape"
            )
        x = x.to(torch.float32)
        # Of a number, too: the default dtype may be another.
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1, 1, 1, 1)
        if sigma.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"Precond: sigma must hold one noise level or one per image, got {sigma.shape[0]} "
                f"for {x.shape[0]} images; pass a scalar or a tensor [N]"
            )
        return x, sigma

    def _c_guidance(self, x: Tensor, guidance: Tensor | float | None) -> Tensor | None:
        """What the embedding takes for the guidance weights, `[N or 1]`; None for a net without."""
        limits = self.config.get("guidance_range")
        if not limits:
            if guidance is None:
                return None
            raise ValueError(
                "Precond: guidance must be left out for a net without a guidance_range, got "
                f"{type(guidance).__name__}; sample it with a guide, or distill the pair"
            )
        if isinstance(guidance, (int, float)) and not limits[0] <= guidance <= limits[1]:
            raise ValueError(
                f"Precond: guidance must lie in [{limits[0]:g}, {limits[1]:g}], which the net has "
                f"learnt, got {guidance:g}; choose one there"
            )
        weights = 1.0 if guidance is None else guidance
        w = torch.as_tensor(weights, dtype=torch.float32, device=x.device).reshape(-1)
        if w.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"Precond: guidance must hold one weight or one per image, got {w.shape[0]} for "
                f"{x.shape[0]} images; pass a scalar or a tensor [N]"
            )
        return preconditioning.c_guidance(w)

    def _labels(self, x: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return torch.zeros([1, self.label_dim], device=x.device, dtype=dtype)
        _check_tensor("class_labels", class_labels)
        rows_fit = class_labels.ndim == 2 and class_labels.shape[0] in (1, x.shape[0])
        if not rows_fit or class_labels.shape[1] != self.label_dim:
            raise ValueError(
                f"Precond: class_labels must be [{x.shape[0]}, {self.label_dim}] (one-hot), got "
                f"{list(class_labels.shape)}; use torch.nn.functional.one_hot on class indices"
            )
        return class_labels.to(dtype)


# What `help(Precond)` and editors show: the options by name.
functools.update_wrapper(Precond.__init__, NetConfig.__init__, assigned=())


@without_autocast
def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"Precond: {name} must be a tensor, got {type(value).__name__}; use torch.as_tensor"
        )
