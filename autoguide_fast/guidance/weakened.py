"""A guide from the model's own weights: blocks left out, attention weakened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .denoisers import Unlabelled

if TYPE_CHECKING:
    from ..networks import Precond


def weakened(
    net: Precond,
    left_out: Sequence[str] = (),
    attn_temperature: float = 1.0,
) -> Precond:
    """`net` with parts of it missing, as a guide that no one has to train.

    It shares the weights of `net`: training the one trains the other. The two options are options
    of a `Precond` (`net_config.NetConfig`), so engines run it and files hold it.

    Args:
        net: a `Precond`.
        left_out: names of blocks that are left out, such as "dec.8x8_block0" (skip-layer guidance;
            stochastic self-guidance, arXiv 2508.12880, draws them at random). The last block must
            stay.
        attn_temperature: what attention's scores are divided by, 1 or more: a large one smooths
            attention to a mean over all pixels (arXiv 2504.13987; smoothed energy guidance, arXiv
            2408.00760, blurs the queries to the same end). 0: each pixel attends to itself alone
            (perturbed-attention guidance, arXiv 2403.17377).

    Returns:
        A `Precond`, in evaluation mode if `net` is.

    Raises:
        TypeError, ValueError: `net` that is no `Precond`, or options that change nothing or that it
            does not have.
    """
    from ..networks import Precond

    if isinstance(net, Unlabelled) or not isinstance(net, Precond):
        raise TypeError(
            f"weakened: net must be a Precond, got {type(net).__name__}; weaken the network, then "
            "wrap it"
        )
    if not left_out and attn_temperature == 1:
        raise ValueError(
            "weakened: left_out or attn_temperature must weaken the net, got neither; "
            "attn_temperature=0 is perturbed-attention guidance"
        )
    options = {"left_out": list(left_out), "attn_temperature": attn_temperature}
    with torch.device("meta"):
        guide = Precond(**{**net.config, **options})
    guide.load_state_dict(net.state_dict(keep_vars=True), assign=True)
    guide.encoder, guide.info = net.encoder, {}
    return guide.train(net.training)
