"""What all tests share: the device and instruction set under test."""
import pytest
import torch

from autoguide_fast._extension import build_info, set_isa

torch.set_num_threads(min(torch.get_num_threads(), 2))


@pytest.fixture(params=build_info()["isa_available"])
def isa(request):
    """Run the test with each instruction set that this machine has."""
    chosen = build_info()["isa"]
    set_isa(request.param)
    yield request.param
    set_isa(chosen)
