"""Derivatives of every operator beyond the first backward pass, fed from the one list of samples:
forward mode, higher order, the transforms of `torch.func`, checkpoints, and their combinations.
"""

import pytest
import torch
from op_samples import GUIDED_SAMPLES, SAMPLES, Sample
from test_ops import LARGE, as_tuple, is_float
from tolerances import relative_error
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.utils.checkpoint import checkpoint

from autoguide_fast import nn, ops

CONV = Sample("conv3x3", "", lambda rand: (rand(1, 16, 4, 4), rand(16, 16, 3, 3) / 12))
SAMPLES = [s for s in SAMPLES + GUIDED_SAMPLES if s.label not in LARGE]
# Second derivatives are sums of large terms, which leave less.
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def drawn(like, seed):
    """Numbers from -1 to 1, the same in each type; `vmap` lets nothing random in."""
    count = torch.arange(like.numel(), dtype=torch.float64)
    return (count * (seed + 1) + seed).cos().reshape(like.shape).to(like.dtype)


class Case:
    """A function of an operator's floating-point arguments, where, and along what."""

    def __init__(self, sample, dtype):
        self.arguments = sample.arguments(dtype)
        self.places = [i for i, a in enumerate(self.arguments) if is_float(a)]
        self.inputs = tuple(self.arguments[i] for i in self.places)
        self.tangents = tuple(drawn(x, i) for i, x in enumerate(self.inputs))
        self.call = sample.function

    def exact(self, sample):
        """The same in float64, by the plain reference."""
        case = Case.__new__(Case)
        case.__dict__.update(vars(self), call=sample.reference)
        case.arguments = [a.double() if is_float(a) else a for a in self.arguments]
        case.inputs = tuple(x.double() for x in self.inputs)
        case.tangents = tuple(x.double() for x in self.tangents)
        return case

    def __call__(self, *inputs):
        arguments = list(self.arguments)
        for i, x in zip(self.places, inputs, strict=True):
            arguments[i] = x
        return as_tuple(self.call(*arguments))

    def loss(self, *inputs):
        outputs = self(*inputs)
        return sum((drawn(o, 9).to(o.dtype) * o * o).double().sum() for o in outputs)

    @property
    def leaves(self):
        return tuple(x.clone().requires_grad_() for x in self.inputs)

    @property
    def all(self):
        return tuple(range(len(self.inputs)))

    @property
    def batches(self):
        """Two of each argument."""
        return tuple(torch.stack([x, t]) for x, t in zip(self.inputs, self.tangents, strict=True))


def duals(case):
    pairs = zip(case.inputs, case.tangents, strict=True)
    return tuple(forward_ad.make_dual(x, t) for x, t in pairs)


def tangents_of(results):
    return [forward_ad.unpack_dual(r).tangent for r in results]


def dual_numbers(case):
    with forward_ad.dual_level():
        return tangents_of(case(*duals(case)))


def dual_without_grad(case):
    with torch.no_grad():
        return dual_numbers(case)


def dual_gradient(case):
    """Forward mode through a backward pass whose forward pass was an ordinary one."""
    leaves = case.leaves
    outputs = case(*leaves)
    with forward_ad.dual_level():
        gradients = [forward_ad.make_dual(drawn(o, 3), drawn(o, 4)) for o in outputs]
        return tangents_of(torch.autograd.grad(outputs, leaves, gradients))


def gradient_of_tangents(case):
    """The same by ordinary means, for it is linear in the gradients."""
    leaves = case.leaves
    outputs = case(*leaves)
    return torch.autograd.grad(outputs, leaves, [drawn(o, 4) for o in outputs])


def second_order(case):
    leaves = case.leaves
    first = torch.autograd.grad(case.loss(*leaves), leaves, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(first, case.tangents, strict=True))
    return torch.autograd.grad(along, leaves)


def third_order(case):
    leaves = case.leaves
    first = torch.autograd.grad(case.loss(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in second), leaves)


def batched_gradients(case):
    leaves = case.leaves
    outputs = case(*leaves)
    gradients = [torch.stack([drawn(o, 3), drawn(o, 4)]) for o in outputs]
    return torch.autograd.grad(outputs, leaves, gradients, is_grads_batched=True)


def forward_then_backward(case):
    """As consistency models are trained: the loss has a tangent in it."""
    leaves = case.leaves
    _, tangents = jvp(case, leaves, case.tangents)
    return torch.autograd.grad(sum(t.double().square().sum() for t in tangents), leaves)


def checkpointed(case, reentrant):
    leaves = case.leaves
    checkpoint(case.loss, *leaves, use_reentrant=reentrant).backward()
    return [x.grad for x in leaves]


MODES = {
    "jvp": lambda c: jvp(c, c.inputs, c.tangents)[1],
    "dual_numbers": dual_numbers,
    "dual_without_grad": dual_without_grad,
    "dual_gradient": dual_gradient,
    "linearize": lambda c: linearize(c, *c.inputs)[1](*c.tangents),
    "second_order": second_order,
    "third_order": third_order,
    "batched_gradients": batched_gradients,
    "grad": lambda c: grad(c.loss, c.all)(*c.inputs),
    "vjp": lambda c: vjp(c, *c.inputs)[1](tuple(drawn(o, 3) for o in c(*c.inputs))),
    "vmap": lambda c: vmap(c)(*c.batches),
    "vmap_one": lambda c: vmap(c, (0, *[None] * (len(c.inputs) - 1)))(c.batches[0], *c.inputs[1:]),
    "vmap_of_grad": lambda c: vmap(grad(c.loss, c.all))(*c.batches),
    "grad_of_vmap": lambda c: grad(lambda *x: vmap(c.loss)(*x).sum(), c.all)(*c.batches),
    "jvp_of_vmap": lambda c: jvp(vmap(c), c.batches, tuple(b.flip(0) for b in c.batches))[1],
    "vmap_of_jvp": lambda c: vmap(lambda *x: jvp(c, x, c.tangents)[1])(*c.batches),
    "jvp_of_grad": lambda c: jvp(grad(c.loss, c.all), c.inputs, c.tangents)[1],
    "jvp_of_jvp": lambda c: jvp(lambda *x: jvp(c, x, c.tangents)[1], c.inputs, c.tangents)[1],
    "grad_of_grad": lambda c: grad(
        lambda *x: sum(g.square().sum() for g in grad(c.loss, c.all)(*x)), c.all
    )(*c.inputs),
    "forward_then_backward": forward_then_backward,
    "checkpoint": lambda c: checkpointed(c, reentrant=False),
    "reentrant_checkpoint": lambda c: checkpointed(c, reentrant=True),
}


def check(sample, mode, dtype):
    case = Case(sample, dtype)
    plainly = gradient_of_tangents if mode == "dual_gradient" else MODES[mode]
    found, expected = MODES[mode](case), plainly(case.exact(sample))
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape and value.isfinite().all()
        # What is 0 in exact arithmetic, as a derivative of what is linear, is small at least.
        if wanted.abs().max() < 1e-9:
            assert value.abs().max() < BOUNDS[dtype]
        else:
            assert relative_error(value, wanted) < BOUNDS[dtype]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_every_mode(sample, mode):
    check(sample, mode, torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sample", [*SAMPLES, CONV], ids=str)
def test_every_mode_float32(sample, mode):
    check(sample, mode, torch.float32)
