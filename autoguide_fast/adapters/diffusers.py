"""Nets of the library diffusers, with all that their configuration and scheduler tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .adapter import Adapter
from .discrete import EpsilonDenoiser, SampleDenoiser, VDenoiser
from .flow import FlowDenoiser
from .flux import FluxImages

_KINDS: dict[str, Callable[..., Adapter]] = {
    "epsilon": EpsilonDenoiser,
    "v_prediction": VDenoiser,
    "sample": SampleDenoiser,
}


def from_diffusers(
    net: Any,
    scheduler: Any,
    *,
    cond: Mapping[str, Any] | None = None,
    **options: Any,
) -> Adapter:
    """A net of diffusers and its scheduler as a denoiser `(x, sigma, class_labels) -> D`.

    Taken are nets that are called with a batch of images or latents and a timestep, such as
    `UNet2DModel`, `UNet2DConditionModel`, `DiTTransformer2DModel`, `SD3Transformer2DModel` and
    `FluxTransformer2DModel` (with its `guidance [1]` in `cond` where guidance was distilled).
    What they predict, and what their timesteps mean, comes from the scheduler: any that has
    `alphas_cumprod` (DDPM, DDIM, Euler, DPM-Solver and so on) or a flow-matching one. Its steps and
    their spacing play no part: those are `sample`'s.

    Args:
        net: The net.
        scheduler: Its scheduler.
        cond: What the net wants beside labels, by name, such as `encoder_hidden_states`, prompts'
            embeddings `[1, length, width]`, or `[N, length, width]` for batches of `N`.
        **options: Of `adapters.Adapter`, to be used instead of what the configurations say.

    Raises ValueError for a scheduler or net of another kind.
    """
    config, rules = getattr(net, "config", None), getattr(scheduler, "config", None)
    if config is None or rules is None:
        raise ValueError(
            "from_diffusers: net and scheduler must have a config, as those of diffusers, got "
            f"{type(net).__name__} and {type(scheduler).__name__}; use EpsilonDenoiser, VDenoiser "
            "or FlowDenoiser"
        )
    options = _of_config(net, config) | options
    options["cond"] = cond
    _needs_embeddings(net, cond)
    is_flux = type(net).__name__ == "FluxTransformer2DModel"
    call = FluxImages(net) if is_flux else _Call(net)
    if hasattr(scheduler, "alphas_cumprod"):
        prediction = getattr(rules, "prediction_type", "epsilon")
        if prediction not in _KINDS:
            raise ValueError(
                f"from_diffusers: scheduler must predict one of {', '.join(_KINDS)}, got "
                f"{prediction!r}; choose another scheduler of the same training"
            )
        return _KINDS[prediction](call, scheduler.alphas_cumprod, **options)
    if "FlowMatch" in type(scheduler).__name__:
        # Flux's own code multiplies by 1000.
        options.setdefault("time_scale", 1.0 if is_flux else float(rules.num_train_timesteps))
        return FlowDenoiser(call, **options)
    raise ValueError(
        "from_diffusers: scheduler must have alphas_cumprod or be one of flow matching, got "
        f"{type(scheduler).__name__}; use the scheduler that the net was trained with"
    )


class _Call(torch.nn.Module):
    """A net of diffusers called by position and name as all of them can be."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, time: torch.Tensor, **conditioning: Any) -> Any:
        return self.net(x, timestep=time, return_dict=False, **conditioning)[0]


def _of_config(net: Any, config: Any) -> dict[str, Any]:
    """What a net's configuration says of images and labels, as options of an `Adapter`."""
    found: dict[str, Any] = {}
    side = getattr(config, "sample_size", None)
    if isinstance(side, (list, tuple)) and len(set(side)) == 1:
        side = side[0]
    if isinstance(side, int):
        found |= {"img_resolution": side, "img_channels": config.in_channels}
    if type(net).__name__ == "FluxTransformer2DModel":  # which takes any size
        found["img_channels"] = config.in_channels // 4
    if type(net).__name__ == "DiTTransformer2DModel":
        classes = config.num_embeds_ada_norm  # and one more, which stands for none
        found |= {"label_dim": classes, "label_format": "index", "null_label": classes}
    elif getattr(config, "num_class_embeds", None) and not getattr(
        config, "class_embed_type", None
    ):
        found |= {"label_dim": config.num_class_embeds, "label_format": "index"}
    return found


def _needs_embeddings(net: Any, cond: Mapping[str, Any] | None) -> None:
    needed = {
        "UNet2DConditionModel": ("encoder_hidden_states",),
        "SD3Transformer2DModel": ("encoder_hidden_states", "pooled_projections"),
        "FluxTransformer2DModel": ("encoder_hidden_states", "pooled_projections"),
    }.get(type(net).__name__, ())
    if getattr(net.config, "guidance_embeds", False):  # of a guidance that was distilled
        needed = (*needed, "guidance")
    missing = [name for name in needed if name not in (cond or {})]
    if missing:
        raise ValueError(
            f"from_diffusers: cond must hold {', '.join(missing)} for a {type(net).__name__}, got "
            f"{sorted(cond or {})}; pass the prompt's embeddings, [1, length, width]"
        )
