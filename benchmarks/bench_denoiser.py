"""One evaluation of a denoiser: our eager modules against the textbook ones, eager and compiled."""
import pytest
import torch
from racing import race
from torch.utils.flop_counter import FlopCounterMode

import autoguide_fast
from autoguide_fast.networks import Precond
from autoguide_fast.textbook import TextbookPrecond


def random_net(**options):
    """Return a net with random weights and all gains away from zero, so that all of it matters."""
    net = Precond(**options).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.7)
    return net


NETS = {
    "digits": lambda: autoguide_fast.load("digits"),
    "pixel-32": lambda: random_net(
        img_resolution=32, img_channels=3, label_dim=10, model_channels=64,
        channel_mult=[1, 2, 2], num_blocks=2, attn_resolutions=[16, 8],
    ),
    "edm2-xxs": lambda: random_net(
        img_resolution=64, img_channels=4, label_dim=1000, model_channels=64
    ),
}


@pytest.mark.parametrize("net_name, batch", [("digits", 16), ("pixel-32", 1), ("edm2-xxs", 1)])
def bench_denoiser(net_name, batch, benchmark):
    """Race one evaluation of one net at one batch size."""
    torch.manual_seed(0)
    net = NETS[net_name]()
    size = net.img_resolution
    x = torch.randn(batch, net.img_channels, size, size)
    sigma = torch.full((batch,), 1.5)
    labels = torch.eye(net.label_dim)[torch.arange(batch) % net.label_dim]
    textbook = TextbookPrecond(net)
    compiled = torch.compile(textbook, fullgraph=True, dynamic=False, mode="max-autotune")
    expected = textbook(x, sigma, labels)
    torch.testing.assert_close(net(x, sigma, labels), expected, rtol=1e-4, atol=1e-4)
    with torch._inductor.config.patch(freezing=True):
        torch.testing.assert_close(compiled(x, sigma, labels), expected, rtol=1e-4, atol=1e-4)
    counter = FlopCounterMode(display=False)
    with counter:
        textbook(x, sigma, labels)
    benchmark.group = "denoiser"
    race(
        benchmark,
        lambda: net(x, sigma, labels),
        {
            "eager": lambda: textbook(x, sigma, labels),
            "compile": lambda: compiled(x, sigma, labels),
        },
        gflop=counter.get_total_flops() / 1e9,
    )
