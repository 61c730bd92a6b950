"""The learning rate over training: linear ramp, plateau, inverse square root."""

from __future__ import annotations

import math


def learning_rate(
    nimg: float,
    batch_size: int,
    alpha_ref: float = 0.01,
    t_ref: float = 70_000.0,
    rampup_nimg: float = 10e6,
) -> float:
    """Learning rate after `nimg` images, `alpha_ref / sqrt(max(t / t_ref, 1))` (EDM2 eq. 67).

    `t = nimg / batch_size` counts optimiser steps; a linear ramp from 0 multiplies it over the
    first `rampup_nimg` images.

    Args:
        nimg: images seen so far, >= 0.
        batch_size: images per optimiser step, >= 1.
        alpha_ref: the rate on the plateau, >= 0.
        t_ref: steps after which the decay begins; 0 means no decay.
        rampup_nimg: length of the ramp in images; 0 means no ramp.

    Returns:
        The rate as a float.

    Raises:
        ValueError: an argument lies outside its range.
    """
    if not nimg >= 0:
        raise ValueError(
            f"learning_rate: nimg must be >= 0, got {nimg}; pass the number of images seen so far"
        )
    if batch_size < 1:
        raise ValueError(
            f"learning_rate: batch_size must be >= 1, got {batch_size}; pass images per step"
        )
    for name, value in (("alpha_ref", alpha_ref), ("t_ref", t_ref), ("rampup_nimg", rampup_nimg)):
        if not value >= 0:
            raise ValueError(
                f"learning_rate: {name} must be >= 0, got {value}; use 0 to turn it off"
            )
    lr = alpha_ref
    if t_ref > 0:
        lr /= math.sqrt(max(nimg / (t_ref * batch_size), 1.0))
    if rampup_nimg > 0:
        lr *= min(nimg / rampup_nimg, 1.0)
    return lr
