"""How evenly many threads share an evaluation: planned, not run."""

import pytest
import torch

from autoguide_fast import Engine
from autoguide_fast._C import Plan
from autoguide_fast.engine.balance import balance, efficiency
from autoguide_fast.networks import Precond


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def prepared(request):
    """A net whose maps are 32 pixels wide, 16 and 8."""
    net = Precond(32, 3, 0, model_channels=64, channel_mult=[1, 2, 2], num_blocks=1)
    return Engine(net.eval(), dtype=request.param).model


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
@pytest.mark.parametrize("images", [1, 4, 16])
def test_threads_are_busy(images, threads, prepared, isa):
    assert efficiency(prepared, images, threads) > (0.75 if threads <= 16 else 0.6)


@pytest.mark.parametrize("threads", [2, 4, 6, 16, 64])
def test_no_thread_has_far_more_than_another(threads, prepared, isa):
    """Than what is even, but for what cannot be divided."""
    plan = prepared.lowered.plan
    for (name, even), each in zip(
        balance(prepared, 1, threads), plan.shares(1, threads), strict=True
    ):
        assert max(each) == 1 or even >= 0.5, name


@pytest.mark.parametrize("threads", [1, 2, 5, 16, 61])
def test_all_of_it_is_shared_out(threads, prepared):
    plan = prepared.lowered.plan
    for one, each in zip(plan.shares(2, 1), plan.shares(2, threads), strict=True):
        assert len(each) == threads and sum(each) == one[0]


def test_bad_numbers():
    with pytest.raises(ValueError, match=r"Plan.teams: threads must be positive, got 0"):
        Plan.teams(1, 0)
