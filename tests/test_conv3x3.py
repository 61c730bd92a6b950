"""Training's 3x3 convolution: values and gradients, bits, bad input, and where it is taken."""

import copy

import pytest
import torch
import torch.nn.functional as F
from op_samples import lay_out
from tolerances import GRADIENT, OP, relative_error

from autoguide_fast import ops
from autoguide_fast.nn import MPConv
from conftest import OPERATOR_ISAS, _instructions

# Images, then output channels: one panel, three, four and five of 16; one tile, and odd counts; the
# last has more tiles than its threads share channels.
SHAPES = [
    ((1, 16, 4, 4), 16),
    ((3, 32, 8, 12), 48),
    ((2, 80, 12, 8), 64),
    ((5, 48, 16, 4), 80),
    ((9, 16, 16, 12), 16),
]
DTYPES = [torch.float32, torch.bfloat16]
# A type, and whether it is widened for products. The largest tile divides the shapes above;
# products of bfloat16 also take half of it.
WAYS = [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
LAYOUTS = ["contiguous", "channels_last", "channels_last_sliced"]


def drawn(shape, outputs, layout="channels_last", dtype=torch.float32):
    """Images, weight, and a gradient of the result, standard normal."""
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    shapes = (shape, (outputs, c, 3, 3), (n, outputs, h, w))
    return [lay_out(torch.randn(s, generator=generator).to(dtype), layout) for s in shapes]


def passes(function, x, weight, grad, **options):
    """Result, gradient of the images, gradient of the weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, **options)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


@pytest.mark.parametrize("isa", OPERATOR_ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "widen"), WAYS)
@pytest.mark.parametrize(("shape", "outputs"), [*SHAPES, ((3, 16, 2, 6), 32)])
def test_value_and_gradients(shape, outputs, layout, dtype, widen, isa):
    if shape[2] % 4 and (widen or dtype == torch.float32):
        pytest.skip("tiles of float32 are 4x4")
    tensors = drawn(shape, outputs, layout, dtype)
    expected = passes(ops.conv3x3_reference, *(t.double().contiguous() for t in tensors))
    with _instructions(isa):
        found = passes(ops.conv3x3, *tensors, widen=widen)
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert value.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(value, reference) < (OP[dtype] / 2 if widen else GRADIENT[dtype])


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_gradient_alone(wanted):
    x, weight, grad = drawn(*SHAPES[1])
    both = passes(ops.conv3x3, x, weight, grad)[1:]
    leaves = [x, weight]
    leaves[wanted].requires_grad_()
    (alone,) = torch.autograd.grad(ops.conv3x3(*leaves), leaves[wanted], grad)
    assert torch.equal(alone, both[wanted])


@pytest.mark.parametrize("name", ["conv3x3", "conv3x3_backward_x", "conv3x3_backward_weight"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "widen"), WAYS)
def test_opcheck(name, layout, dtype, widen):
    x, weight, grad = drawn(*SHAPES[1], layout, dtype)
    operator = getattr(torch.ops.autoguide_fast, name).default
    if name == "conv3x3":
        torch.library.opcheck(operator, (x.requires_grad_(), weight.requires_grad_(), widen))
    else:
        torch.library.opcheck(operator, (grad, x, weight, widen))


def test_empty():
    x, weight, grad = drawn(*SHAPES[0])
    y, grad_x, grad_weight = passes(ops.conv3x3, x[:0], weight, grad[:0])
    assert y.shape == (0, 16, 4, 4) and grad_x.shape == (0, 16, 4, 4)
    assert torch.equal(grad_weight, torch.zeros_like(weight))


def test_same_bits_every_time():
    """For any number of threads in what goes forward; the sum over images has one per number."""
    threads = torch.get_num_threads()
    tensors = drawn((32, 32, 16, 16), 32)
    results = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            results.append(passes(ops.conv3x3, *tensors))
    finally:
        torch.set_num_threads(threads)
    one, *three = results
    for value, again, alone in zip(*three, one, strict=True):
        assert torch.equal(value, again)
        assert relative_error(value, alone) < GRADIENT[torch.float32]
    assert torch.equal(one[0], three[0][0]) and torch.equal(one[1], three[0][1])


X, W = torch.zeros(2, 16, 4, 8), torch.zeros(32, 16, 3, 3)
BAD = {
    "x must be an image batch": lambda: ops.conv3x3(X[0], W),
    "x must be float32 or bfloat16": lambda: ops.conv3x3(X.double(), W.double()),
    "weight must have the dtype of x": lambda: ops.conv3x3(X, W.double()),
    r"weight must be \[out, 16, 3, 3\]": lambda: ops.conv3x3(X, W[:, :8]),
    "height and a width divisible by 4": lambda: ops.conv3x3(X[:, :, 1:], W),
    "channels divisible by 16": lambda: ops.conv3x3(X, W[:8]),
    "grad must be that of x": lambda: torch.ops.autoguide_fast.conv3x3_backward_x(X, X, W, False),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(RuntimeError, match=message):
        BAD[message]()


@pytest.mark.parametrize("training", [True, False])
def test_layers_take_it_in_training_alone(training, monkeypatch):
    """Sampling keeps the plain sum, which is nearer to float64."""
    layer = MPConv(16, 16, [3, 3]).train(training)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    x = torch.randn(8, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    taken = []
    conv3x3 = ops.conv3x3
    monkeypatch.setattr(ops, "conv3x3", lambda *a: taken.append(1) or conv3x3(*a))
    y = layer(x)
    assert bool(taken) == training
    expected = F.conv2d(x.double(), ops.mp_weight(layer.weight.detach().double()), padding=1)
    assert relative_error(y, expected) < GRADIENT[torch.float32]
    for unfit in (x.double(), x[:1], x.contiguous(), x[:, :, :, :15]):
        assert not ops.conv3x3_pays(unfit, layer.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_trace_as_one_graph(dtype):
    """The choice between the two convolutions must not end a compiled graph."""
    layer = MPConv(16, 16, [3, 3]).train()
    x = torch.randn(8, 16, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(layer)  # a pass in training normalises the stored weight
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), plain(x))
