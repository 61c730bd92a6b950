"""How far a result may lie from its float64 reference, by dtype: the one table of the tests.

No tolerance bounds how far two float32 results lie apart: that depends on the processor, whose
kernels add in an order of their own. `assert_as_exact` judges both by float64 instead.
"""

import torch

# Relative to the largest magnitude of the reference: a few units in the last place for the 64- and
# 32-bit types; one rounding of the result (half a unit is 2^-9 and 2^-12) for the 16-bit types,
# plus the rounding of one intermediate result where an operator returns two.
OP = {torch.float64: 1e-14, torch.float32: 1.5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
# Gradients sum over up to a few hundred values.
GRADIENT = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# Numbers read off the reference implementation, float32 on a CPU.
GOLDEN_NETWORK = 2e-6
GOLDEN_SAMPLES = 1e-5
GOLDEN_SAMPLES_FLOAT64_STATE = 5e-6

# One evaluation by the engine against float64, by what its convolutions multiply. Winograd's
# float32 loses twice what a plain sum does; int8 depends on the net, these are random ones.
ENGINE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.int8: 0.2}

# The same for the GPU's engine, by the type of its maps; FP8 has 3 bits of mantissa.
BAKED = {
    torch.float32: 3e-6,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
    torch.float8_e4m3fn: 0.15,
}


# A mean over a batch, float32, of one training step from one state.
LOSS = 2e-6

# How many times as far from float64 as plain PyTorch's result ours may lie, where both have come
# through as many roundings: one draw of rounding errors is up to twice as large as another.
FACTOR = 4


def relative_error(value, reference):
    """Return max |value - reference| / max |reference|, NaN where either has one."""
    value, reference = value.detach().cpu().double(), reference.detach().cpu().double()
    if reference.numel() == 0:
        return 0.0
    return ((value - reference).abs().max() / reference.abs().max()).item()


def assert_as_exact(value, plain, exact, factor=FACTOR, name=""):
    """Assert that `value` errs at most `factor` times as far as plain PyTorch in the same type.

    `plain` is PyTorch's result, `exact` the same in float64. One rounding (`OP`) is free.
    """
    error, allowed = relative_error(value, exact), factor * relative_error(plain, exact)
    allowed += OP[plain.dtype]
    assert error <= allowed, f"{name}: errs by {error:.2e}, more than {allowed:.2e}"
