"""Each fused operator against its plain-PyTorch reference, eager and compiled.

Sizes: an image of the bundled 8x8 pair at batch 16, and of EDM2-S (192 channels) at 32x32;
channels-last float32. GB/s counts each input read once and each output written once.
"""

import ceilings
import pytest
import torch
from pinning import unpinned
from racing import copies_past_cache, race, rotating

from autoguide_fast import ops

SIZES = {"digits": (16, 16, 8, 8), "edm2-s": (1, 192, 32, 32)}


def image(shape):
    """Return a random channels-last image batch."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def level(value):
    """Return a noise level as the guided step wants it."""
    return torch.tensor(value, dtype=torch.float64)


LEVELS = (level(3.0), level(2.0), level(1.7))

CASES = {
    "normalize": lambda s: (image(s), 1),
    "mp_silu": lambda s: (image(s),),
    "modulate_mp_silu": lambda s: (image(s), torch.randn(s[0], s[1])),
    "mp_sum": lambda s: (image(s), image(s), 0.3, 256.0),
    "mp_cat": lambda s: (image(s), image(s), 0.5),
    "mp_cat_mp_silu": lambda s: (image(s), image(s), 0.5),
    "mp_fourier": lambda s: (torch.randn(s[0]), torch.randn(s[1]), torch.randn(s[1])),
    "resample": lambda s: (image(s), "down"),
    "resample_normalize_mp_silu": lambda s: (image(s), "down"),
    "mp_weight": lambda s: (torch.randn(s[1], s[1], 3, 3), level(1.0)),
    "attention_split": lambda s: (image((s[0], 3 * s[1], *s[2:])), max(1, s[1] // 64)),
    "combine": lambda s: (torch.randn(s[0], 3, dtype=torch.float64), *(image(s) for _ in range(3))),
    "inner_products": lambda s: (image(s), image(s), image(s)),
    "guided_heun_first": lambda s: (image(s), image(s), image(s), *LEVELS, 0.5),
    "guided_heun_second": lambda s: (*(image(s) for _ in range(5)), *LEVELS, 0.5),
}


@pytest.mark.parametrize("size", ["edm2-s", pytest.param("digits", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CASES)
def bench_op(name, size, benchmark):
    """Race one operator at one size."""
    function, reference = getattr(ops, name), getattr(ops, f"{name}_reference")
    compiled = torch.compile(reference, fullgraph=True, dynamic=False, mode="max-autotune")
    arguments = CASES[name](SIZES[size])
    expected, value = reference(*arguments), function(*arguments)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    with unpinned():
        torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-4, atol=1e-5)
    tensors = [
        a
        for a in (*arguments, *(value if isinstance(value, tuple) else (value,)))
        if isinstance(a, torch.Tensor)
    ]
    copies = copies_past_cache(arguments)
    benchmark.group = "op"
    race(
        benchmark,
        rotating(function, arguments, copies),
        {
            "eager": rotating(reference, arguments, copies),
            "compile": rotating(compiled, arguments, copies),
        },
        ceilings.copy(),
        sum(t.nbytes for t in tensors) / 1e9,
    )
