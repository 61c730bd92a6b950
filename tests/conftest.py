"""What all tests share: the device and instruction set under test."""
import pytest
import torch

from autoguide_fast._extension import build_info, set_isa

# The networks of the tests are tiny: more threads would only wait for each other. Tests that are
# about threads set their own number.
torch.set_num_threads(1)


@pytest.fixture(params=build_info()["isa_available"])
def isa(request):
    """Run the test with each instruction set that this machine has."""
    chosen = build_info()["isa"]
    set_isa(request.param)
    yield request.param
    set_isa(chosen)
