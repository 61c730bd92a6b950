"""Products in every type, in that type and widened: values, gradients, types, one graph."""

import pytest
import torch
import torch.nn.functional as F
from op_samples import lay_out
from tolerances import GRADIENT, OP, relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from autoguide_fast import cpu, torch_functional
from autoguide_fast.networks import Precond

TYPES = [torch.float32, torch.bfloat16, torch.float16]
# Attention is fused or not by the number of queries.
CALLS = {
    "linear": (torch_functional.linear, F.linear, [(2, 5, 3, 16), (24, 16)]),
    "conv_1x1": (torch_functional.conv2d, F.conv2d, [(2, 16, 5, 3), (24, 16, 1, 1)]),
    "conv_3x3": (
        torch_functional.conv2d,
        lambda x, w: F.conv2d(x, w, padding=1),
        [(2, 16, 5, 3), (24, 16, 3, 3)],
    ),
    **{
        f"attention_{side}x{side}": (
            torch_functional.attention,
            F.scaled_dot_product_attention,
            [(2, 3, side * side, 16)] * 3,
        )
        for side in (4, 8, 17)
    },
}


def passes(function, tensors, grad):
    """Result, then the gradient of each of the tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


@pytest.fixture(params=[False, True], ids=["multiplied", "widened"])
def widens(request, monkeypatch):
    """A processor that multiplies all types, and one that multiplies no 16-bit type."""
    multiplied = {torch.float32, torch.float64} | set(() if request.param else TYPES)
    monkeypatch.setattr(cpu, "_native_types", multiplied)
    return request.param


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_value_and_gradients(call, dtype, layout, widens):
    function, reference, shapes = CALLS[call]
    if function is torch_functional.attention and layout != "contiguous":
        pytest.skip("attention takes contiguous tensors")
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    grad = torch.randn(function(*tensors).shape, generator=generator).to(dtype)
    expected = passes(reference, [t.double() for t in tensors], grad.double())
    found = passes(function, [lay_out(t, layout) for t in tensors], lay_out(grad, layout))
    # What is computed in float32 is rounded once, attention's result once more on its way back.
    exact = widens and function is not torch_functional.attention
    bound = OP[dtype] / 2 if exact and dtype != torch.float32 else GRADIENT[dtype]
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == dtype and value.shape == wanted.shape
        assert relative_error(value, wanted) < bound


def second_order(function, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    loss = function(*leaves).double().square().sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return torch.autograd.grad(sum(g.double().square().sum() for g in first), leaves)


def batched_gradients(function, tensors):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    grads = torch.stack([y.detach(), y.detach().flip(0)])
    return torch.autograd.grad(y, leaves, grads, is_grads_batched=True)


DERIVATIVES = {
    "jvp": lambda f, tensors: [torch.func.jvp(f, tensors, tuple(t.flip(0) for t in tensors))[1]],
    "second_order": second_order,
    "batched_gradients": batched_gradients,
    "vmap": lambda f, tensors: [torch.vmap(f)(*(torch.stack([t, t.flip(0)]) for t in tensors))],
    "grad_of_grad": lambda f, tensors: [
        torch.func.grad(
            lambda x: (
                torch.func.grad(lambda x: f(x, *tensors[1:]).double().square().sum())(x)
                .double()
                .square()
                .sum()
            )
        )(tensors[0])
    ],
}


@pytest.mark.parametrize("mode", DERIVATIVES)
@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)  # second derivatives leave float16's range
@pytest.mark.parametrize("call", CALLS)
def test_derivatives(call, dtype, mode, widens):
    function, reference, shapes = CALLS[call]
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)
    found = DERIVATIVES[mode](function, tensors)
    with sdpa_kernel(SDPBackend.MATH):
        expected = DERIVATIVES[mode](reference, tuple(t.double() for t in tensors))
    for value, wanted in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, wanted) < 2 * GRADIENT[dtype]


@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("call", ["linear", "conv_3x3"])
def test_one_gradient_alone(call, wanted, monkeypatch):
    monkeypatch.setattr(cpu, "_native_types", {torch.float32})
    function, _, shapes = CALLS[call]
    tensors = [torch.randn(s).to(torch.bfloat16) for s in shapes]
    grad = torch.ones_like(function(*tensors))
    both = passes(function, tensors, grad)[1:]
    tensors[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(function(*tensors), tensors[wanted], grad)
    assert torch.equal(alone, both[wanted])


def test_only_data_of_their_own_type_are_kept(monkeypatch):
    """Widened copies must not outlive the product that they are made for."""
    monkeypatch.setattr(cpu, "_native_types", {torch.float32})
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        for function, _, shapes in CALLS.values():
            function(*(torch.randn(s).bfloat16().requires_grad_() for s in shapes))
    logarithms = [t for t in kept if t.ndim == 3]  # of attention, one per query
    assert len(logarithms) == 3
    assert all(t.dtype == torch.bfloat16 for t in kept if t.ndim != 3) and len(kept) > 3


def net_in_bfloat16():
    torch.manual_seed(0)
    net = Precond(
        8,
        1,
        3,
        model_channels=16,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(8,),
        channels_per_head=16,
    ).train()
    net.run_dtype = torch.bfloat16
    return net, torch.randn(2, 1, 8, 8)


class Multiplied(TorchDispatchMode):
    """Collects the types of what PyTorch multiplies."""

    NAMES = "mm", "bmm", "addmm", "baddbmm", "convolution", "attention"

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in func.__name__ for name in self.NAMES) and func.namespace == "aten":
            self.types |= {a.dtype for a in args if isinstance(a, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def test_all_products_of_a_net_are_widened(widens):
    net, x = net_in_bfloat16()
    with Multiplied() as seen:
        net(x, 1.0).square().sum().backward()
    assert seen.types == ({torch.float32} if widens else {torch.float32, torch.bfloat16})


def test_nets_trace_as_one_graph(widens):
    net, x = net_in_bfloat16()
    expected = net(x, 1.0)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    found = compiled(x, 1.0)
    found.square().sum().backward()
    assert relative_error(found, expected) < OP[torch.bfloat16]
    assert all(p.grad is not None for p in net.unet.parameters())
