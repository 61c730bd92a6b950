"""A guide from within the model: what a head in its decoder already makes of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .denoisers import Unlabelled

if TYPE_CHECKING:
    from ..networks import Precond


def intermediate_head(net: Precond) -> Precond:
    """The denoiser that ends at the head within `net`, as a guide that was trained along with it.

    Internal guidance (arXiv 2512.24176): a second output after a block of the decoder learns the
    same task from less of the net (`autoguide-fast train --head-after`), so that it is a worse
    version of it. All that it computes but its last convolution the model computes as well; engines
    do so once, and guidance then costs hardly more than the model alone.

    It shares the weights of `net`: training the one trains the other.

    Args:
        net: a `Precond` with a head (option `head_after`).

    Returns:
        A `Precond` (option `ends_after`), in evaluation mode if `net` is.

    Raises:
        TypeError, ValueError: `net` that is no `Precond`, or has no head.
    """
    from ..networks import Precond

    if isinstance(net, Unlabelled) or not isinstance(net, Precond):
        raise TypeError(
            f"intermediate_head: net must be a Precond, got {type(net).__name__}; take the head of "
            "the network, then wrap it"
        )
    block = net.config.get("head_after")
    if not block:
        raise ValueError(
            "intermediate_head: net must have a head, got one without; train it with --head-after"
        )
    with torch.device("meta"):
        guide = Precond(**{**net.config, "head_after": "", "ends_after": block})
    state = net.state_dict(keep_vars=True)
    for name in ("conv.weight", "gain"):
        state[f"unet.out_{name}"] = state[f"unet.head_{name}"]
    guide.load_state_dict({name: state[name] for name in guide.state_dict()}, assign=True)
    guide.encoder, guide.info = net.encoder, {}
    return guide.train(net.training)
