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


def conditional_unet(width, seed=0):
    """Return an untrained net of diffusers for `[N, 4, 8, 8]` and prompts `[N, length, 6]`."""
    import diffusers

    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, width),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        norm_num_groups=4,
        attention_head_dim=4,
    ).eval()
