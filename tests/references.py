"""What the equations give in plain PyTorch, in float64 and in float32: the judges of fast paths."""

import copy

import torch
from tolerances import assert_as_exact

from autoguide_fast import sample
from autoguide_fast.eager import EagerStepper
from autoguide_fast.guidance import unlabelled, unwrapped
from autoguide_fast.sampler import heun
from autoguide_fast.textbook import TextbookPrecond


def textbook(net, dtype=torch.float64):
    """Return `net`, which may be None or `unlabelled`, as the equations say, in a type of its own.

    It is a copy.
    """
    if net is None:
        return None
    net, without_labels = unwrapped(net)
    net = TextbookPrecond(copy.deepcopy(net).to(dtype))
    return unlabelled(net) if without_labels else net


def assert_denoised(value, net, *arguments):
    """Assert that `value` is `net(*arguments)` as plain PyTorch computes it, to rounding."""
    with torch.no_grad():
        single, double = (
            textbook(net, dtype)(*arguments) for dtype in (torch.float32, torch.float64)
        )
    assert_as_exact(value, single, double)


def gradients(denoiser, parameters, x, sigma, labels):
    """Return the gradients of a sum over all that a denoiser returns, by name, that of `x` too.

    Those of the scalar gains are one vector: by itself a number may be right by luck.
    """
    x = x.detach().clone().requires_grad_()
    denoised, logvar = denoiser(x, sigma, labels, return_logvar=True)
    named = dict(parameters) | {"x": x}
    total = denoised.square().sum() + logvar.sum()
    found = dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))
    return _join_gains(found)


def _join_gains(found):
    gains = [name for name, gradient in found.items() if gradient.ndim == 0]
    joined = torch.stack([found.pop(name) for name in gains])
    return {**found, "gains": joined}


def assert_gradients(found, net, *arguments):
    """Assert that `found` are the `gradients` of `net`, as plain PyTorch computes them."""
    plain, exact = (
        gradients(judge, judge.net.named_parameters(), *arguments)
        for judge in (textbook(net, torch.float32), textbook(net))
    )
    assert plain.keys() == found.keys()
    for name, value in found.items():
        assert_as_exact(value, plain[name], exact[name], name=name)


def assert_step(trainer):
    """Take a step of training; assert that its gradients are those of plain PyTorch, to rounding.

    Returns its loss.
    """
    net, loss, seen = copy.deepcopy(trainer.net), trainer.loss, []

    def listening(model, images, labels, **drawn):
        seen.append((images, labels, drawn))
        return loss(model, images, labels, **drawn)

    trainer.loss = listening
    mean = trainer.step()
    trainer.loss = loss
    found = _join_gains({name: p.grad for name, p in trainer.net.named_parameters()})
    judges = []
    for dtype in (torch.float32, torch.float64):
        judge = textbook(net, dtype)
        for images, labels, drawn in seen:
            drawn = {name: value.to(dtype) for name, value in drawn.items()}
            total = loss(judge, images.to(dtype), labels, **drawn).sum()
            (total / trainer.options.batch).backward()
        judges.append(_join_gains({name: p.grad for name, p in judge.net.named_parameters()}))
    for name, value in found.items():
        assert_as_exact(value, *(judge[name] for judge in judges), name=name)
    return mean


def samplings(nets, labels, steps, noise, guidance=1.7, churn=None):
    """Return Heun's sampling of a model and its guide in plain PyTorch, then that in float64.

    `churn()`, where steps need noise, returns what draws the same again.
    """
    samples = []
    for dtype, state in ((torch.float32, noise.dtype), (torch.float64, torch.float64)):
        model, guide = (textbook(net, dtype) for net in nets)
        stepper = EagerStepper(model, guide, guidance, labels, noise.device)
        draw = churn() if churn else None
        with torch.no_grad():
            samples.append(
                heun(
                    stepper, noise.to(state), steps, lambda draw=draw, state=state: draw().to(state)
                )
            )
    return samples


def assert_sampled(value, *arguments, **options):
    """Assert that `value` is one of the `samplings`, to rounding."""
    plain, exact = samplings(*arguments, **options)
    assert value.dtype == plain.dtype
    assert_as_exact(value, plain, exact)


def assert_sample(value, model, guide=None, guidance=1.0, **options):
    """Assert that `value` is what `sample` makes of these nets in plain PyTorch, to rounding."""
    samples = [
        sample(textbook(model, dtype), textbook(guide, dtype), guidance, dtype=state, **options)
        for dtype, state in ((torch.float32, value.dtype), (torch.float64, torch.float64))
    ]
    assert_as_exact(value, *samples)
