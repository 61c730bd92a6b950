"""The EDM2 denoiser: the U-Net with EDM's preconditioning (EDM table 1)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import preconditioning
from .net_config import NetConfig
from .nn import MPConv, MPFourier
from .unet import Drop, UNet


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


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"Precond: {name} must be a tensor, got {type(value).__name__}; use torch.as_tensor"
        )
