"""Derivatives of every operator beyond the first backward pass, fed from the one list of samples:
forward mode, higher order, the transforms of `torch.func`, checkpoints, and their combinations.
"""

import functools

import pytest
import torch
from op_samples import GUIDED_SAMPLES, SAMPLES, Sample
from test_ops import LARGE, as_tuple, is_float
from tolerances import relative_error
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from autoguide_fast import ops

CONV = Sample("conv3x3", "", lambda rand: (rand(1, 16, 4, 4), rand(16, 16, 3, 3) / 12))
SAME = ("even", "2d", "wide_up", "wide_down", "plain", "one_head")  # but for the kernel's loops
SAMPLES = [s for s in SAMPLES + GUIDED_SAMPLES if s.label not in LARGE + SAME]
# Second derivatives are sums of large terms, which leave less.
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def drawn(like, seed):
    """Numbers from -1 to 1, the same in each type; `vmap` lets nothing random in."""
    count = torch.arange(like.numel(), dtype=torch.float64)
    return (count * (seed + 1) + seed).cos().reshape(like.shape).to(like.dtype)


# Without a guide there is no gradient of the guidance.
differentiate = functools.partial(torch.autograd.grad, materialize_grads=True)


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
    pairs = [forward_ad.unpack_dual(r) for r in results]
    return [torch.zeros_like(x) if tangent is None else tangent for x, tangent in pairs]


def dual_numbers(case):
    with forward_ad.dual_level():
        return tangents_of(case(*duals(case)))


def dual_without_grad(case):
    with torch.no_grad():
        return dual_numbers(case)


def backward_of_duals(case):
    leaves = case.leaves
    with forward_ad.dual_level():
        pairs = zip(leaves, case.tangents, strict=True)
        loss = case.loss(*(forward_ad.make_dual(x, t) for x, t in pairs))
        return tangents_of(differentiate(loss, leaves))


def dual_gradient(case):
    """Forward mode through a backward pass whose forward pass was an ordinary one."""
    leaves = case.leaves
    outputs = case(*leaves)
    with forward_ad.dual_level():
        gradients = [forward_ad.make_dual(drawn(o, 3), drawn(o, 4)) for o in outputs]
        return tangents_of(differentiate(outputs, leaves, gradients))


def gradient_of_tangents(case):
    """The same by ordinary means, for it is linear in the gradients."""
    leaves = case.leaves
    outputs = case(*leaves)
    return differentiate(outputs, leaves, [drawn(o, 4) for o in outputs])


def second_order(case):
    leaves = case.leaves
    first = differentiate(case.loss(*leaves), leaves, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(first, case.tangents, strict=True))
    return differentiate(along, leaves)


def third_order(case):
    leaves = case.leaves
    first = differentiate(case.loss(*leaves), leaves, create_graph=True)
    second = differentiate(sum(g.square().sum() for g in first), leaves, create_graph=True)
    return differentiate(sum(g.square().sum() for g in second), leaves)


def batched_gradients(case):
    leaves = case.leaves
    outputs = case(*leaves)
    gradients = [torch.stack([drawn(o, 3), drawn(o, 4)]) for o in outputs]
    return differentiate(outputs, leaves, gradients, is_grads_batched=True)


def forward_then_backward(case):
    """As consistency models are trained: the loss has a tangent in it."""
    leaves = case.leaves
    outputs, tangents = jvp(case, leaves, case.tangents)
    loss = sum((o * t).double().square().sum() for o, t in zip(outputs, tangents, strict=True))
    return differentiate(loss, leaves)


def checkpointed(case, reentrant):
    leaves = case.leaves
    checkpoint(case.loss, *leaves, use_reentrant=reentrant).backward()
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


MODES = {
    "jvp": lambda c: jvp(c, c.inputs, c.tangents)[1],
    "dual_numbers": dual_numbers,
    "dual_without_grad": dual_without_grad,
    "backward_of_duals": backward_of_duals,
    "dual_gradient": dual_gradient,
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
    otherwise = {"dual_gradient": gradient_of_tangents, "backward_of_duals": second_order}
    plainly = otherwise.get(mode, MODES[mode])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["jvp", "second_order", "vmap_of_grad"])
@pytest.mark.parametrize("sample", [*SAMPLES, CONV], ids=str)
def test_every_type(sample, mode, dtype):
    if sample.name.startswith("guided") and dtype == torch.bfloat16:
        pytest.skip("the state of the guided step has 32 or 64 bits")
    check(sample, mode, dtype)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_against_differences(sample):
    case = Case(sample, torch.float64)
    check = {"fast_mode": True, "check_batched_grad": True}
    leaves = case.leaves
    assert torch.autograd.gradcheck(case, leaves, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(case, leaves, check_fwd_over_rev=False, **check)


ZERO = {
    "pixel": lambda x: ops.normalize(x, 1),
    "weight": lambda x: ops.normalize(x),
    "mp_weight": lambda x: ops.mp_weight(x) * 12**0.5,
    "attention_split": lambda x: ops.attention_split(x, 1)[2],
    "resample_normalize_mp_silu": lambda x: ops.resample_normalize_mp_silu(x)[0],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ZERO)
def test_zero_vectors(name, dtype):
    """Where nothing but eps is left: the slope is 1 / eps, its own derivatives 0, none is NaN."""
    function = ZERO[name]
    x = torch.zeros(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    t = drawn(x, 1)
    y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    slope = jvp(function, (x.detach(),), (t,))[1]
    wanted = t.unflatten(1, (1, 3))[:, :, 2:].flatten(2).mT if name == "attention_split" else t
    torch.testing.assert_close(slope.flatten(), 1e4 * wanted.flatten())
    assert torch.equal(gradient != 0, torch.autograd.grad(function(x).sum(), x)[0] != 0)
    gradient.square().sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))
    for hessian in (jacrev(jacrev(function)), jacfwd(jacrev(function)), jacfwd(jacfwd(function))):
        assert torch.equal(hessian(x.detach()), torch.zeros(*y.shape, *x.shape * 2, dtype=dtype))
