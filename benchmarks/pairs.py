"""The pairs that the benchmarks race: one table."""

import functools
from dataclasses import dataclass

import torch

import autoguide_fast
from autoguide_fast.networks import Precond
from autoguide_fast.textbook import draw_gains


@dataclass(frozen=True)
class Entry:
    """A pair, the batch sizes at which it is raced, and those of them at which it is sampled."""

    options: dict | None  # of the main net; its guide has half the width. None: the bundled pair
    batches: tuple
    sampled: tuple
    short: tuple = ()  # the batch sizes of `pytest --benchmark` without further choice


def _options(resolution, channels, label_dim, width, mult, num_blocks, attention):
    return {
        "img_resolution": resolution,
        "img_channels": channels,
        "label_dim": label_dim,
        "model_channels": width,
        "channel_mult": mult,
        "num_blocks": num_blocks,
        "attn_resolutions": attention,
    }


# resolution, image channels, classes, width, multipliers, blocks, resolutions with attention
NETS = {
    "digits": Entry(None, (1, 4, 16), (1, 16), (16,)),
    "16x16x1": Entry(_options(16, 1, 10, 32, [1, 2], 2, [8]), (1, 4, 16), (1,), (1,)),
    "16x16x3": Entry(_options(16, 3, 10, 64, [1, 2], 2, [8]), (1, 4, 16, 64), (1, 16, 64)),
    "32x32x3": Entry(_options(32, 3, 10, 64, [1, 2, 2], 2, [16, 8]), (1, 4, 16), (1, 16)),
    "edm2-xxs": Entry(_options(64, 4, 1000, 64, [1, 2, 3, 4], 3, [16, 8]), (1, 4, 16), (1,)),
    "edm2-xs": Entry(_options(64, 4, 1000, 128, [1, 2, 3, 4], 3, [16, 8]), (1, 4, 16), (1,)),
}


@functools.lru_cache(maxsize=1)
def pair(name):
    """Return `(model, guide)` of that name, in evaluation mode; random ones always the same."""
    options = NETS[name].options
    if options is None:
        return autoguide_fast.load(name), autoguide_fast.load(f"{name}-guide")
    guide_options = {**options, "model_channels": options["model_channels"] // 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return random_net(options), random_net(guide_options)


def random_net(options):
    """A net with random weights, and all gains away from zero so that all of it matters."""
    return draw_gains(Precond(**options).eval(), mean=0.7, std=0.1)


def inputs(net, batch):
    """Return `(noise, class_labels)` for `net`: standard normal, and one-hot rows."""
    generator = torch.Generator().manual_seed(1)
    size = net.img_resolution
    noise = torch.randn(batch, net.img_channels, size, size, generator=generator)
    return noise, torch.eye(net.label_dim)[torch.arange(batch) % net.label_dim]
