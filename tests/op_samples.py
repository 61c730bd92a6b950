"""One list of sample inputs for every operator; test_ops.py feeds it to every property."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from autoguide_fast import ops

LAYOUTS = ["contiguous", "channels_last", "sliced", "channels_last_sliced", "offset"]


@dataclass
class Sample:
    """One way to call an operator: `make(rand)` returns arguments drawn with `rand(*shape)`."""

    name: str  # of the function in autoguide_fast.ops
    label: str
    make: Callable
    # Arguments whose dtype is fixed whatever the dtype under test, by position.
    keeps_dtype: tuple = ()

    @property
    def function(self):
        return getattr(ops, self.name)

    @property
    def reference(self):
        return getattr(ops, f"{self.name}_reference")

    def __str__(self):
        return f"{self.name}-{self.label}" if self.label else self.name

    def arguments(self, dtype=torch.float32, layout="contiguous", seed=0, device="cpu"):
        """Return the arguments: the same values, but for rounding, in whatever way they lie."""
        generator = torch.Generator().manual_seed(seed)

        def rand(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        arguments = self.make(rand)
        return tuple(
            lay_out(a.to(device, torch.float64 if i in self.keeps_dtype else dtype), layout)
            if isinstance(a, torch.Tensor)
            else a
            for i, a in enumerate(arguments)
        )


def lay_out(x, layout):
    """Return `x` with other strides: channels-last, or sliced from a larger buffer; or `offset`,
    contiguous and off the alignment that vector loads want.
    """
    if layout == "offset" and x.ndim:
        buffer = torch.full([x.numel() + 1], float("nan"), dtype=x.dtype, device=x.device)
        return buffer[1:].view(x.shape).copy_(x)
    if layout.startswith("channels_last") and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if layout.endswith("sliced") and x.ndim:
        # A larger buffer in the same order of dimensions, of which x is the middle.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        shape = [x.shape[d] + 2 for d in order]
        buffer = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
        view = buffer[tuple(slice(1, -1) for _ in order)]
        view = view.permute([order.index(d) for d in range(x.ndim)])
        view.copy_(x)
        x = view
    return x


def level(value):
    """Return a noise level as the guided step wants it."""
    return torch.tensor(value, dtype=torch.float64)


IMAGE = (2, 24, 6, 10)
SAMPLES = [
    Sample("normalize", "weight", lambda rand: (rand(5, 7, 3, 3),)),
    Sample("normalize", "pixel", lambda rand: (rand(*IMAGE), 1)),
    Sample("normalize", "pixel_2d", lambda rand: (rand(4, 300), 1)),
    Sample("normalize", "wide", lambda rand: (rand(2, 3, 5, 70), 1)),
    # 2048 is where a block takes the place of a warp on a GPU.
    Sample("normalize", "long_row", lambda rand: (rand(3, 2600),)),
    Sample("mp_silu", "", lambda rand: (rand(*IMAGE) * 4,)),
    Sample("mp_silu", "long", lambda rand: (rand(70001),)),
    Sample("modulate_mp_silu", "", lambda rand: (rand(*IMAGE), rand(2, 24))),
    Sample("modulate_mp_silu", "shared", lambda rand: (rand(*IMAGE), rand(1, 24))),
    Sample("modulate_mp_silu", "many_channels", lambda rand: (rand(2, 300, 2, 3), rand(2, 300))),
    Sample("modulate_mp_silu", "large", lambda rand: (rand(1, 2, 46, 46), rand(1, 2))),
    Sample("mp_sum", "", lambda rand: (rand(*IMAGE), rand(*IMAGE), 0.3)),
    Sample("mp_sum", "clip", lambda rand: (rand(*IMAGE), rand(*IMAGE), 0.3, 0.8)),
    Sample("mp_sum", "broadcast", lambda rand: (rand(1, 24), rand(5, 24), 0.5)),
    Sample("mp_cat", "", lambda rand: (rand(*IMAGE), rand(2, 9, 6, 10), 0.5)),
    Sample("mp_cat", "2d", lambda rand: (rand(4, 300), rand(4, 5), 0.2)),
    Sample("mp_cat", "even", lambda rand: (rand(*IMAGE), rand(2, 16, 6, 10))),
    Sample("mp_cat_mp_silu", "", lambda rand: (rand(*IMAGE), rand(2, 9, 6, 10), 0.4)),
    Sample("mp_fourier", "", lambda rand: (rand(5), rand(33), rand(33))),
    Sample("mp_fourier", "even", lambda rand: (rand(5), rand(64), rand(64))),
    Sample("resample", "up", lambda rand: (rand(*IMAGE), "up")),
    Sample("resample", "down", lambda rand: (rand(*IMAGE), "down")),
    Sample("resample", "wide_up", lambda rand: (rand(2, 3, 2, 47), "up")),
    Sample("resample", "wide_down", lambda rand: (rand(2, 3, 2, 94), "down")),
    Sample("resample_normalize_mp_silu", "keep", lambda rand: (rand(*IMAGE), "keep")),
    Sample("resample_normalize_mp_silu", "up", lambda rand: (rand(*IMAGE), "up")),
    Sample("resample_normalize_mp_silu", "down", lambda rand: (rand(*IMAGE), "down")),
    Sample("resample_normalize_mp_silu", "many", lambda rand: (rand(1, 300, 4, 4), "down")),
    Sample("mp_weight", "", lambda rand: (rand(5, 7, 3, 3), 1.3)),
    Sample("mp_weight", "plain", lambda rand: (rand(5, 7, 3, 3),)),
    Sample("mp_weight", "gain", lambda rand: (rand(5, 70), level(0.7)), keeps_dtype=(1,)),
    Sample("mp_weight", "long_row", lambda rand: (rand(3, 288, 3, 3), 1.3)),
    Sample("attention_split", "", lambda rand: (rand(2, 24, 3, 5), 2)),
    Sample("attention_split", "one_head", lambda rand: (rand(2, 48, 2, 2), 1)),
    Sample(
        "combine", "", lambda rand: (rand(2, 3), rand(*IMAGE), rand(*IMAGE), rand(*IMAGE)), (0,)
    ),
    Sample("combine", "shared", lambda rand: (rand(1, 2), rand(2, 5000), rand(2, 5000)), (0,)),
    Sample("inner_products", "", lambda rand: (rand(*IMAGE), rand(*IMAGE), rand(*IMAGE))),
    Sample("inner_products", "long", lambda rand: (rand(2, 5000), rand(2, 5000))),
    Sample("attention_split", "edm2", lambda rand: (rand(1, 384, 2, 3), 2)),
]


def _guided(rand, count, guided=True):
    """Return `count` states, then the raw outputs of the nets."""
    tensors = [rand(2, 3, 8, 8) for _ in range(count + 2)]
    return (*tensors[:-1], tensors[-1] if guided else None, level(3.0), level(2.0), level(1.7))


GUIDED_SAMPLES = [
    Sample("guided_heun_first", "raw", lambda rand: (*_guided(rand, 1), 0.5), (3, 4, 5)),
    Sample("guided_heun_first", "denoised", lambda rand: _guided(rand, 1), (3, 4, 5)),
    Sample(
        "guided_heun_first", "unguided", lambda rand: (*_guided(rand, 1, False), 0.5), (3, 4, 5)
    ),
    Sample("guided_heun_second", "raw", lambda rand: (*_guided(rand, 3), 0.5), (5, 6, 7)),
    Sample("guided_heun_second", "denoised", lambda rand: _guided(rand, 3), (5, 6, 7)),
    Sample(
        "guided_heun_second", "unguided", lambda rand: (*_guided(rand, 3, False), 0.5), (5, 6, 7)
    ),
]
