"""`--compile`: the gradients and losses of the step as it is, and what it does not go with."""

from __future__ import annotations

import pytest
import torch
from references import assert_step
from tolerances import LOSS
from torch._inductor import config

from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.trainer.trainer import Trainer


@pytest.fixture
def _inductor():
    """Leave the compiler's setting as it was."""
    with config.patch(layout_optimization=config.layout_optimization):
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_inductor")
def test_a_compiled_step_is_the_step():
    # One level, with attention: compiling takes its time.
    options = {
        "channels": 8,
        "channels_per_head": 8,
        "channel_mult": (1,),
        "rampup": 0.0,
        "attn_resolutions": (8,),
        "batch": 16,
        "lr": 0.02,
    }
    plain = Trainer(TrainOptions(**options))
    for _ in range(4):
        plain.step()  # gains begin at 0, and with them most gradients
    compiled = Trainer(TrainOptions(**options, compile=True))
    compiled.load_state_dict(plain.state_dict())
    assert assert_step(plain) == pytest.approx(assert_step(compiled), rel=LOSS)
    assert compiled.net._compiled_call_impl is not None
    assert not config.layout_optimization  # with it, gradients have been found wrong
    assert_step(compiled)  # also with the weights that the first one left


@pytest.mark.parametrize("other", ["compile", "graph"])
def test_shards_are_not_compiled_or_recorded(other):
    with pytest.raises(ValueError, match=f"shard must be off with {other}, got True"):
        TrainOptions(shard=True, **{other: True})


def test_devices_have_names():
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        TrainOptions(device="tpu")
