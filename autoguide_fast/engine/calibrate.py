"""The ranges that int8 maps have to cover, measured once on the network itself.

Magnitude preservation keeps activations near unit variance on average, but not each of them at each
noise level: the embedding's modulation scales what second convolutions read, so that in a trained
network their standard deviations differ several times over. One range for all maps would therefore
waste most of int8 on the smallest; each map has its own.
"""

import torch
from torch import Tensor

from ..networks import Precond
from ..preconditioning import magnitude
from ..unet import Block

# Noise levels and images that stand for a run; what exceeds the quantile is clipped.
LEVELS, IMAGES, QUANTILE = (0.005, 0.05, 0.2, 0.5, 1.0, 3.0, 20.0), 4, 0.9999


def ranges(net: Precond) -> dict[torch.nn.Module, tuple[float, float]]:
    """Return `{convolution: (low, high)}` of the inputs of a `Precond`'s blocks, 0 included.

    Runs the net, which must be the engine's own and in evaluation mode, on noise of the variance
    that noisy data have, classes in turn, at a few noise levels. Deterministic.
    """
    found: dict[torch.nn.Module, tuple[float, float]] = {}

    def watch(convolution: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].flatten()
        rank = max(1, round((1 - QUANTILE) * x.numel()))
        low = x.kthvalue(rank).values.item()
        high = x.kthvalue(x.numel() + 1 - rank).values.item()
        before = found.get(convolution, (0.0, 1e-3))
        found[convolution] = min(low, before[0]), max(high, before[1])

    names = ("conv_res0", "conv_res1", "conv_skip", "attn_qkv", "attn_proj")
    convolutions = [
        convolution
        for block in net.unet.modules()
        if isinstance(block, Block)
        for name in names
        if (convolution := getattr(block, name)) is not None
    ]
    hooks = [c.register_forward_pre_hook(watch) for c in convolutions]
    generator = torch.Generator("cpu").manual_seed(0)
    shape = IMAGES, net.img_channels, net.img_resolution, net.img_resolution
    for number, level in enumerate(LEVELS):
        x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        labels = None
        if net.label_dim:
            first = IMAGES * number
            classes = torch.arange(first, first + IMAGES, device="cpu") % net.label_dim
            labels = torch.nn.functional.one_hot(classes, net.label_dim).float()
        with torch.no_grad():
            sigma = torch.tensor(level, dtype=torch.float64, device="cpu")
            net(x * magnitude(sigma, net.sigma_data).item(), sigma.float(), labels)
    for hook in hooks:
        hook.remove()
    return found
