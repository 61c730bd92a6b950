"""Pairs of small nets, run by the GPU's engine from a tape, and by the sampler as they are."""

import torch
from nets import tiny
from tape import Tape

import autoguide_fast
from autoguide_fast.engine.graph_engine import GraphEngine
from autoguide_fast.sampler import EagerStepper, heun, plan_steps
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
    return GraphEngine(model, guide, dtype, **{"recorder": Tape(), **options}), labels


def plan(num_steps=5, guidance=1.7, sigma_max=80.0, **options):
    return plan_steps(rho_schedule(num_steps, sigma_max=sigma_max), guidance, **options)


def noise(count=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator).to(dtype)


def churn(count=3, seed=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(count, 2, 8, 8, generator=generator).to(dtype)


def eager(case, steps, guidance=1.7, count=3, dtype=torch.float32):
    model, guide, labels = PAIRS[case]
    stepper = EagerStepper(model, guide, guidance, labels)
    return heun(stepper, noise(count, dtype=dtype), steps, churn(count, dtype=dtype))
