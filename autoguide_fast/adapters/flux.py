"""Flux transformers of diffusers, which take latents as rows of tokens, called with images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 2  # of the squares of latent pixels that become one token


class FluxImages(torch.nn.Module):
    """A `FluxTransformer2DModel` called as `(x [N, C, H, W], time [N], **conditioning)`.

    Each token is a square of 2x2 pixels, all channels of it; its place is told by its row and
    column. The prompt's tokens have no place.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        if x.shape[2] % _SIDE or x.shape[3] % _SIDE:
            raise ValueError(
                f"from_diffusers: x must have an even height and width for Flux, got "
                f"{list(x.shape)}; it takes squares of 2x2 latent pixels"
            )
        squares = F.pixel_unshuffle(x, _SIDE)
        rows, columns = (torch.arange(n, device=x.device) for n in squares.shape[2:])
        places = torch.cartesian_prod(rows, columns)
        prompt = conditioning["encoder_hidden_states"]
        tokens = self.net(
            squares.flatten(2).transpose(1, 2),
            timestep=time,
            img_ids=F.pad(places, (1, 0)).to(x.dtype),
            txt_ids=x.new_zeros(prompt.shape[1], 3),
            return_dict=False,
            **conditioning,
        )[0]
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, squares.shape[2:]), _SIDE)
