"""Derivatives of a whole net in every mode, against the textbook's in float64."""

import copy

import pytest
import torch
from nets import tiny
from tolerances import relative_error
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from autoguide_fast import cpu
from autoguide_fast.textbook import TextbookPrecond


class Case:
    """A net, where it is differentiated, and along what."""

    def __init__(self, net, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.net = net
        self.x, self.t = torch.randn([2, 2, 2, 8, 8], generator=generator).to(dtype)
        self.sigma = torch.tensor([0.5, 3.0], dtype=dtype)
        self.dsigma = torch.tensor([0.1, -1.0], dtype=dtype)
        self.labels = torch.eye(5, dtype=dtype)[:2]
        self.weights = {k: v.detach() for k, v in net.named_parameters()}

    def __call__(self, x, sigma):
        return self.net(x, sigma, self.labels)

    def loss(self, x):
        return self(x, self.sigma).square().sum()

    def with_weights(self, weights, x=None, sigma=None):
        x, sigma = (self.x, self.sigma) if x is None else (x[None], sigma[None])
        return functional_call(self.net, weights, (x, sigma))

    def gradients(self):
        grads = [p.grad for p in self.net.parameters() if p.grad is not None]
        return torch.cat([g.flatten() for g in grads])


def dual_numbers(c):
    with forward_ad.dual_level():
        y = c(forward_ad.make_dual(c.x, c.t), forward_ad.make_dual(c.sigma, c.dsigma))
        return forward_ad.unpack_dual(y).tangent


def second_order(c):
    x = c.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(c.loss(x), x, create_graph=True)
    return torch.autograd.grad((first * c.t).sum(), x)[0]


def gradient_penalty(c):
    """Second order in the weights."""
    x = c.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(c.loss(x), x, create_graph=True)
    first.square().sum().backward()
    return c.gradients()


def consistency(c):
    """As consistency models are trained: a tangent by forward mode, then a backward pass."""
    y, tangent = jvp(c, (c.x, c.sigma), (c.t, c.dsigma))
    ((y - y.detach() + tangent.detach()).square().sum() + tangent.sum()).backward()
    return c.gradients()


def per_sample_gradients(c):
    def loss(weights, x, sigma):
        return c.with_weights(weights, x, sigma).square().sum()

    gradients = vmap(grad(loss), (None, 0, 0))(c.weights, c.x, c.sigma)
    return torch.cat([g.reshape(2, -1) for g in gradients.values()], dim=1)


def along_weights(c):
    tangents = {k: torch.cos(torch.arange(v.numel())).view_as(v) for k, v in c.weights.items()}
    tangents = {k: v.to(c.x.dtype) for k, v in tangents.items()}
    return jvp(c.with_weights, (c.weights,), (tangents,))[1]


def ensemble(c):
    both = {k: torch.stack([v, v.flip(0) if v.ndim else -v]) for k, v in c.weights.items()}
    return vmap(c.with_weights)(both)


def checkpointed(reentrant):
    def run(c):
        x = c.x.clone().requires_grad_()
        checkpoint(c.loss, x, use_reentrant=reentrant).backward()
        return x.grad

    return run


MODES = {
    "jvp": lambda c: jvp(c, (c.x, c.sigma), (c.t, c.dsigma))[1],
    "dual_numbers": dual_numbers,
    "grad": lambda c: grad(c.loss)(c.x),
    "second_order": second_order,
    "gradient_penalty": gradient_penalty,
    "consistency": consistency,
    "forward_over_reverse": lambda c: jvp(grad(c.loss), (c.x,), (c.t,))[1],
    "jacrev": lambda c: jacrev(lambda x: c(x, c.sigma)[:, 0, 0])(c.x),
    "hessian": lambda c: hessian(lambda sigma: c(c.x, sigma).square().sum())(c.sigma),
    "vmap": lambda c: vmap(lambda x, s, y: c.net(x[None], s, y[None])[0])(c.x, c.sigma, c.labels),
    "per_sample_gradients": per_sample_gradients,
    "along_weights": along_weights,
    "ensemble": ensemble,
    "checkpoint": checkpointed(False),
    "reentrant_checkpoint": checkpointed(True),
}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode, training):
    net = tiny(channel_mult=[1], attn_resolutions=[8]).train(training)
    textbook = TextbookPrecond(copy.deepcopy(net).double())
    if training:  # whose weights a pass replaces first, which the textbook cannot do in a transform
        textbook.normalize_weights()
        textbook.eval()
    found = MODES[mode](Case(net))
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch differentiates no other twice or forward
        expected = MODES[mode](Case(textbook, torch.float64))
    assert found.shape == expected.shape
    # Weights are normalised anew in each pass, by which they change once more, by up to eps.
    assert relative_error(found, expected) < (1e-4 if training else 5e-6)


@pytest.mark.parametrize("mode", ["jvp", "second_order", "vmap", "per_sample_gradients"])
def test_training_in_16_bits(mode, monkeypatch):
    """A net that widens its products, as on processors that do not multiply the type."""
    monkeypatch.setattr(cpu, "_native_types", {torch.float32})
    net = tiny(channel_mult=[1], attn_resolutions=[8])
    expected = MODES[mode](Case(net))
    net.run_dtype = torch.bfloat16
    assert 0 < relative_error(MODES[mode](Case(net)), expected) < 3e-2
