"""The untrained net of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autoguide_fast.networks import Precond

from .draws import stream
from .options import TrainOptions

# What `TrainOptions.precision` names; None is float32.
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.inference_mode(False)
def make_net(options: TrainOptions, shape: Sequence[int], channels_last: bool = True) -> Precond:
    """The untrained net of a run, its weights drawn from the run's seed, on the CPU.

    Args:
        options: of the run; the type may still be open, and is then float32.
        shape: resolution, channels and classes of what the net sees.
        channels_last: the layout of the weights of convolutions.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(stream(options.seed, 0))
        net = Precond(*shape, **options.net_options())
    net.run_dtype = DTYPES.get(options.precision)
    # As the images are: convolutions then take weights, and give their gradients, without a copy.
    for p in net.parameters():
        if channels_last and p.ndim == 4 and p.shape[-1] > 1:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    return net.train()
