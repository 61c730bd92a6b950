"""The GPU's engine runs the layers once that a guide has in common with its model."""

import copy
import pickle

import pytest
import torch
from graph_pairs import LABELS, noise, plan
from nets import tiny
from tape import Tape

from autoguide_fast import sample, unlabelled
from autoguide_fast.engine.gpu_engine import GpuEngine
from autoguide_fast.guidance import Linear, intermediate_head, weakened


def net():
    return tiny(head_after="dec.8x8_block0")


def fresh(net, name):
    """A copy of which one tensor is another."""
    net = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        net.get_parameter(name).normal_(generator=generator)
    return net


# Guides, and how many layers they have in common with the model.
GUIDES = {
    "first block left out": (lambda m: weakened(m, ["enc.8x8_block0"]), 1),
    "encoder": (lambda m: weakened(m, ["enc.4x4_block0"]), 3),
    "attention": (lambda m: weakened(m, attn_temperature=0), 3),
    "attention of the decoder": (lambda m: weakened(m, ["dec.4x4_in0"]), 4),
    "decoder": (lambda m: weakened(m, ["dec.8x8_block0"]), 9),
    "head": (intermediate_head, 10),
    "weights of a block": (lambda m: fresh(m, "unet.dec.4x4_in1.conv_res1.weight"), 5),
    "gain of the end": (lambda m: fresh(m, "unet.out_gain"), 11),
    "the first convolution": (lambda m: fresh(m, "unet.enc.8x8_conv.weight"), 0),
    "unlabelled": (lambda m: unlabelled(weakened(m, ["dec.8x8_block0"])), 0),
    "embedding of the level": (lambda m: fresh(m, "unet.emb_noise.weight"), 0),
    "modulation": (lambda m: fresh(m, "unet.enc.4x4_down.emb_gain"), 0),
    "late modulation": (
        lambda m: fresh(weakened(m, ["dec.4x4_in0"]), "unet.dec.8x8_up.emb_gain"),
        4,
    ),
    "balance": (lambda m: tiny(label_balance=0.4), 0),
    "another net": (lambda m: tiny(seed=1), 0),
    "wider": (lambda m: tiny(model_channels=16), 0),
}


STEPS = plan(3)
EVALUATIONS = 5


@pytest.mark.parametrize("name", GUIDES)
def test_layers_alike_run_once_and_change_no_number(name):
    model = net()
    make, expected = GUIDES[name]
    guide = make(model)
    engine, other = (GpuEngine(model, guide, recorder=Tape()) for _ in range(2))
    other.guide.alike = 0
    found = [e.stepper(1.7, LABELS, STEPS).whole(noise()) for e in (engine, other)]
    assert torch.equal(*found)
    assert engine.guide.alike == expected
    saved = other.recorder.convolutions[-1] - engine.recorder.convolutions[-1]
    assert saved == EVALUATIONS * max(0, 2 * expected - 1)


def test_weights_lie_there_once():
    model = net()
    engine = GpuEngine(model, weakened(model, ["enc.8x8_block0"]), recorder=Tape())
    ours, theirs = engine.model.unet, engine.guide.unet
    for name, value in theirs.named_buffers():
        assert value is ours.get_buffer(name)
    again = pickle.loads(pickle.dumps(engine))
    assert again.guide.unet.out_conv is again.model.unet.out_conv
    assert torch.equal(*(e.stepper(1.7, LABELS, STEPS).whole(noise()) for e in (engine, again)))


@pytest.mark.parametrize("overlap", [False, True])
def test_several_guides_begin_where_they_part(overlap):
    model = net()
    guides = [
        weakened(model, ["dec.8x8_up"]),
        tiny(seed=1),
        intermediate_head(model),
        weakened(model, attn_temperature=0),
    ]
    weights = [1.4, 0.9, 1.2, 1.3]
    options = {"seeds": range(3), "class_labels": LABELS, "num_steps": 3}
    options["guidance"] = Linear(weights, [None, (0.1, 5.0), None, None])
    engine = GpuEngine(model, guides, recorder=Tape(), overlap=overlap)
    assert [guide.alike for guide in engine.guides] == [8, 0, 10, 3]
    found = sample(engine, **options)
    for guide in engine.guides:
        guide.alike = 0
    engine.close()
    assert torch.equal(sample(engine, **options), found)
