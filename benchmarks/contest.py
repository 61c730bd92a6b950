"""What is raced: the contestants over one pair of nets, and the tasks that each is given.

A contestant has `model`, `stepper` and `sample` as `autoguide_fast.Engine` has them.
"""

import pairs
import rivals
import torch

import autoguide_fast
from autoguide_fast.sampler import plan_steps
from autoguide_fast.schedules import rho_schedule

GUIDANCE = 2.0
NUM_STEPS = 32
MIDDLE = 20  # a step with both halves, from sigma 0.6: state and net's output weigh alike

# Int8 next to float32, whose compiled rival it shares.
DTYPES = {"float32": torch.float32, "int8": torch.int8, "bfloat16": torch.bfloat16}
# How far a contestant may lie from the textbook pair in float32: root mean square of the
# difference over that of the textbook's images, by task and type.
TOLERANCES = {
    "denoiser": {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.int8: 6e-2},
    "step": {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.int8: 5e-2},
    "sampling": {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.int8: 1e-1},
}


def ours(net_name, dtype):
    """Return the engine of that pair in that type."""
    model, guide = pairs.pair(net_name)
    return autoguide_fast.Engine(model, guide, dtype)


def rival(name, net_name, batch, dtype, path=None, how=None):
    """Return the rival of that name; `path` is the reference's, `how` the compiler's settings."""
    if name == "eager":
        return rivals.eager(*pairs.pair(net_name))
    if name == "reference":
        return rivals.reference(path, *pairs.pair(net_name))
    # Int8 competes with the compiler's float32: it has no int8 of its own without calibration.
    compiled_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return rivals.compiled(net_name, batch, compiled_dtype, how)


def _denoiser(contestant, noise, labels):
    sigma = torch.tensor(1.5)
    x = noise * 1.6
    return lambda: contestant.model(x, sigma, labels)


def _step(contestant, noise, labels):
    steps = plan_steps(rho_schedule(NUM_STEPS), GUIDANCE)
    stepper, step = contestant.stepper(GUIDANCE, labels, steps), steps[MIDDLE]
    x = noise * step.sigma

    def run():
        x_next, slope = stepper.first(x, step)
        return stepper.second(x, x_next, slope, step)

    return run


def _sampling(contestant, noise, labels):
    return lambda: contestant.sample(
        guidance=GUIDANCE, class_labels=labels, noise=noise, num_steps=NUM_STEPS, raw=True
    )


# Each makes, for a contestant and its inputs, a call without arguments that returns images.
TASKS = {"denoiser": _denoiser, "step": _step, "sampling": _sampling}
# Evaluations of the model and of the guide in it.
_EVALUATIONS = {"denoiser": (1, 0), "step": (2, 2), "sampling": (2 * NUM_STEPS - 1,) * 2}


def gflop(task, net_name, batch):
    """Return the GFLOP of a task: products and convolutions of the textbook nets."""
    model, guide = pairs.pair(net_name)
    noise, labels = pairs.inputs(model, batch)
    textbook = rivals.eager(model, guide)
    return sum(
        evaluations * rivals.gflop(net, noise, torch.tensor(1.5), labels)
        for net, evaluations in zip(
            (textbook.model, textbook.guide), _EVALUATIONS[task], strict=True
        )
        if evaluations
    )


def check(name, value, expected, tolerance):
    """Return the relative error of `value`, and raise where it is above `tolerance`."""
    error = float((value - expected).double().norm() / expected.double().norm())
    if not error <= tolerance:
        raise AssertionError(
            f"{name}: the images must lie within {tolerance:g} of the textbook's, got {error:.3g}; "
            "the time of a wrong result is worth nothing"
        )
    return error
