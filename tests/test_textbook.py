"""The textbook denoiser: golden values on its own, so that it can judge the fast one."""

import copy

import pytest
import torch
from golden import golden, golden_net
from references import assert_gradients, gradients, textbook
from tolerances import GOLDEN_NETWORK, OP, relative_error

from autoguide_fast.textbook import TextbookPrecond

NAMES = ("denoiser_conditional", "denoiser_unconditional")


@pytest.mark.parametrize("name", NAMES)
def test_golden_denoiser(name):
    data = golden(name)
    textbook = TextbookPrecond(golden_net(name))
    denoised, logvar = textbook(data["x"], data["sigma"], data.get("labels"), return_logvar=True)
    assert relative_error(denoised, data["denoised"]) < GOLDEN_NETWORK
    assert relative_error(logvar, data["logvar"]) < GOLDEN_NETWORK
    if "labels" in data:
        denoised = textbook(data["x"], data["sigma"])
        assert relative_error(denoised, data["denoised_without_labels"]) < GOLDEN_NETWORK


@pytest.mark.parametrize("name", NAMES)
def test_float32_net_against_float64_textbook(name):
    """How much of the golden tolerance float32 itself uses up."""
    data, net = golden(name), golden_net(name)
    args = (data["x"], data["sigma"], data.get("labels"))
    fast = net(*args)
    exact = TextbookPrecond(net.double())(*args)
    assert exact.dtype == torch.float64
    assert relative_error(fast, exact) < GOLDEN_NETWORK


def test_an_encoder_with_weights_is_no_layer():
    net = golden_net(NAMES[0])
    net.encoder = torch.nn.Linear(2, 2)
    textbook = TextbookPrecond(net)
    assert textbook.encoder is net.encoder
    assert not any("encoder" in name for name, _ in textbook.named_parameters())
    assert len(textbook.state_dict()) == len(net.state_dict())


def test_shares_parameters_and_follows_the_mode():
    net = golden_net(NAMES[0])
    textbook = TextbookPrecond(net)
    assert {id(p) for p in textbook.parameters()} == {id(p) for p in net.parameters()}
    assert not textbook.training
    textbook.train()
    assert net.training


def test_training_step_agrees():
    data = golden("training_steps")
    net = golden_net("training_steps", "start/").requires_grad_(True).train()
    start = copy.deepcopy(net)
    x = data["images0"] + data["sigma0"] * data["noise0"]
    arguments = x, data["sigma0"], data["labels0"]
    found = gradients(net, net.named_parameters(), *arguments)
    assert_gradients(found, start, *arguments)
    judge = textbook(start)
    judge.normalize_weights()
    for name, value in judge.net.state_dict().items():
        assert relative_error(net.state_dict()[name], value) < OP[torch.float32], name
