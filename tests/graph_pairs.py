"""Pairs of small nets, run by the GPU's engine from a tape."""

import torch
from nets import tiny
from references import samplings
from tape import Tape
from tolerances import assert_as_exact

import autoguide_fast
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.sampler import plan_steps
from autoguide_fast.schedules import rho_schedule

LABELS = torch.eye(5)[[3, 1, 4]]
PAIRS = {
    "labelled": (tiny(), tiny(seed=1), LABELS),
    "guide_without_labels": (tiny(), tiny(0, seed=1, model_channels=4), LABELS),
    "model_without_labels": (tiny(0), tiny(0, seed=1), None),
    "no_label_given": (tiny(), tiny(seed=1), None),
    "one_row_for_all": (tiny(), tiny(seed=1), LABELS[:1]),
    "unlabelled": (tiny(), autoguide_fast.unlabelled(tiny()), LABELS),
    "three_levels": (tiny(channel_mult=[1, 2, 2], num_blocks=2), tiny(seed=1), LABELS),
}


def make(case="labelled", dtype=torch.float32, **options):
    model, guide, labels = PAIRS[case]
    return GpuEngine(model, guide, dtype, **{"recorder": Tape(), **options}), labels


def plan(num_steps=5, guidance=1.7, sigma_max=80.0, **options):
    return plan_steps(rho_schedule(num_steps, sigma_max=sigma_max), guidance, **options)


def noise(count=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator).to(dtype)


def churn(count=3, seed=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 2, 8, 8, generator=generator).to(dtype)


_judges = {}  # of the samplings that several tests ask for


def assert_samples(value, steps, case="labelled", guidance=1.7, **options):
    """Assert that `value` is what plain PyTorch samples from `noise` and `churn`, to rounding."""
    given = {"labels": PAIRS[case][2], "noise": noise(), **options}
    levels = [(s.sigma_hat, s.sigma_next, s.churn_std, s.guided, s.guided_next) for s in steps]
    count = None if given["labels"] is None else len(given["labels"])
    key = case, guidance, *levels, count, given["noise"].shape, given["noise"].dtype
    if key not in _judges:
        _judges[key] = samplings(
            PAIRS[case][:2], steps=steps, guidance=guidance, churn=churn, **given
        )
    assert value.dtype == given["noise"].dtype
    assert_as_exact(value, *_judges[key])
