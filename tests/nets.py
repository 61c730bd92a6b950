"""Small networks for tests of what is built on them."""

import torch

from autoguide_fast.networks import Precond
from autoguide_fast.textbook import draw_gains


def tiny(label_dim=5, seed=0, model_channels=8, **options):
    """Return a net for `[N, 2, 8, 8]` whose random gains let every branch reach the output."""
    torch.manual_seed(seed)
    options = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], **options}
    options = {"channels_per_head": model_channels, **options}
    return draw_gains(Precond(8, 2, label_dim, model_channels=model_channels, **options).eval())
