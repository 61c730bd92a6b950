"""The magnitude-preserving operators, and those of the guided step, each with its reference.

Differentiable means here: to any order, in reverse and forward mode, and under the transforms of
`torch.func`, `vmap` included. Values and a first backward pass are computed by compiled kernels,
everything else by plain PyTorch.
"""

from .attention_split import attention_split, attention_split_reference
from .combine import (
    MOST_TERMS,
    combine,
    combine_reference,
    inner_products,
    inner_products_reference,
)
from .conv3x3 import conv3x3, conv3x3_pays, conv3x3_reference
from .guided_step import (
    guided_heun_first,
    guided_heun_first_reference,
    guided_heun_second,
    guided_heun_second_reference,
)
from .mp_cat import mp_cat, mp_cat_mp_silu, mp_cat_mp_silu_reference, mp_cat_reference
from .mp_fourier import mp_fourier, mp_fourier_reference
from .mp_silu import modulate_mp_silu, modulate_mp_silu_reference, mp_silu, mp_silu_reference
from .mp_sum import mp_sum, mp_sum_reference
from .mp_weight import (
    mp_weight,
    mp_weight_forced,
    mp_weight_forced_reference,
    mp_weight_reference,
)
from .normalize import normalize, normalize_reference
from .resample import (
    resample,
    resample_normalize_mp_silu,
    resample_normalize_mp_silu_reference,
    resample_reference,
)

__all__: list[str] = [
    "MOST_TERMS",
    "attention_split",
    "attention_split_reference",
    "combine",
    "combine_reference",
    "conv3x3",
    "conv3x3_pays",
    "conv3x3_reference",
    "guided_heun_first",
    "guided_heun_first_reference",
    "guided_heun_second",
    "guided_heun_second_reference",
    "inner_products",
    "inner_products_reference",
    "modulate_mp_silu",
    "modulate_mp_silu_reference",
    "mp_cat",
    "mp_cat_mp_silu",
    "mp_cat_mp_silu_reference",
    "mp_cat_reference",
    "mp_fourier",
    "mp_fourier_reference",
    "mp_silu",
    "mp_silu_reference",
    "mp_sum",
    "mp_sum_reference",
    "mp_weight",
    "mp_weight_forced",
    "mp_weight_forced_reference",
    "mp_weight_reference",
    "normalize",
    "normalize_reference",
    "resample",
    "resample_normalize_mp_silu",
    "resample_normalize_mp_silu_reference",
    "resample_reference",
]
