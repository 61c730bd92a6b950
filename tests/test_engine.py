"""The prepared pair: the same numbers as the networks themselves, and when it is used."""
import pytest
import torch
from tolerances import GOLDEN_SAMPLES, relative_error

import autoguide_fast
from autoguide_fast import engine
from autoguide_fast.networks import Precond
from autoguide_fast.sampler import EagerStepper, heun, plan_steps
from autoguide_fast.schedules import rho_schedule


def make_net(channels=16, label_dim=10, seed=0, **options):
    torch.manual_seed(seed)
    options = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], **options}
    net = Precond(8, 2, label_dim, model_channels=channels, channels_per_head=16, **options).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.normal_(parameter, 0.8, 0.2)
    return net.requires_grad_(False)


STEPS = plan_steps(rho_schedule(6), guidance=1.7)


def run(stepper_of, model, guide, labels, steps=STEPS):
    noise = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return heun(stepper_of(model, guide, labels), noise, steps)


def eager(model, guide, labels):
    return EagerStepper(model, guide, 1.7, labels)


def prepared(model, guide, labels):
    return engine.PreparedStepper(*engine.prepare_pair(model, guide), 1.7, labels, STEPS)


LABELS = torch.eye(10)[[3, 1, 4]]
PAIRS = {
    "labelled": (make_net(), make_net(8, seed=1), LABELS),
    "guide_without_labels": (make_net(), make_net(8, 0, seed=1), LABELS),
    "model_without_labels": (make_net(label_dim=0), make_net(8, 0, seed=1), None),
    "no_label_given": (make_net(), make_net(8, seed=1), None),
    "one_row_for_all": (make_net(), make_net(8, seed=1), LABELS[:1]),
    "unlabelled": (make_net(), autoguide_fast.unlabelled(make_net()), LABELS),
    "three_levels": (make_net(channel_mult=[1, 2, 2], num_blocks=2), make_net(8, seed=1), LABELS),
}


@pytest.mark.parametrize("case", PAIRS)
def test_prepared_pair_agrees_with_the_networks(case):
    model, guide, labels = PAIRS[case]
    result = run(prepared, model, guide, labels)
    assert relative_error(result, run(eager, model, guide, labels)) < GOLDEN_SAMPLES


def test_prepared_net_is_a_snapshot_that_leaves_the_net_alone():
    net, guide = make_net(), make_net(8, seed=1)
    names = list(net.state_dict())
    pair = engine.prepare_pair(net, guide)
    before = run(lambda *a: engine.PreparedStepper(*pair, 1.7, LABELS, STEPS), None, None, None)
    net.unet.out_gain.mul_(2)
    after = run(lambda *a: engine.PreparedStepper(*pair, 1.7, LABELS, STEPS), None, None, None)
    assert torch.equal(before, after)
    assert list(net.state_dict()) == names
    assert relative_error(run(eager, net, guide, LABELS), before) > 0.01


def test_results_are_ordinary_tensors():
    result = run(prepared, *PAIRS["labelled"])
    assert not result.is_inference()


class Doubled(Precond):
    def forward(self, x, sigma, class_labels=None):
        return 2 * super().forward(x, sigma, class_labels)


def test_only_plain_networks_of_one_sigma_data_are_prepared():
    net = make_net()
    assert engine.prepare_pair(net, None) is not None
    assert engine.prepare_pair(net, make_net(sigma_data=0.7)) is None
    assert engine.prepare_pair(net, lambda x, sigma, labels: x) is None
    assert engine.prepare_pair(Doubled(8, 2, 10, model_channels=8, channel_mult=[1])) is None
    assert engine.prepare_pair(make_net().double()) is None
    hooked = make_net()
    hooked.unet.register_forward_hook(lambda module, args, output: output)
    assert engine.prepare_pair(hooked) is None


def test_model_that_guides_itself_is_prepared_once():
    net = make_net()
    model, guide = engine.prepare_pair(net, autoguide_fast.unlabelled(net))
    assert guide.net is model
