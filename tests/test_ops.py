"""Every property of every operator, fed from one list of samples."""

import inspect

import pytest
import simulator
import torch
from op_samples import GUIDED_SAMPLES, LAYOUTS, SAMPLES, Sample, lay_out, level
from tolerances import GRADIENT, OP, relative_error

from autoguide_fast import ops

ALL = SAMPLES + GUIDED_SAMPLES
DTYPES = list(OP)
RAW = {"guided_heun_first": (1, 2), "guided_heun_second": (3, 4)}
ALWAYS = {"inner_products": torch.float64}  # whatever the type of what it is given


def is_float(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def typed(sample, dtype, layout="contiguous", device="cpu"):
    """Arguments in `dtype`; the guided step keeps its state in 32 or 64 bits."""
    arguments = list(sample.arguments(dtype, layout, device=device))
    if sample.name in RAW and dtype in (torch.bfloat16, torch.float16):
        state = sample.arguments(torch.float32, layout, device=device)
        for i in range(RAW[sample.name][0]):
            arguments[i] = state[i]
    return tuple(arguments)


def in_float64(arguments):
    """The arguments of a reference: exact, contiguous, on the CPU."""
    return tuple(a.detach().cpu().double().contiguous() if is_float(a) else a for a in arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", ALL, ids=str)
def test_value(sample, dtype, layout, place):
    arguments = typed(sample, dtype, layout, place)
    expected = as_tuple(sample.reference(*in_float64(arguments)))
    for value, reference in zip(as_tuple(sample.function(*arguments)), expected, strict=True):
        state = sample.name in RAW
        wanted = arguments[0].dtype if state else ALWAYS.get(sample.name, dtype)
        assert value.dtype == wanted
        assert value.device == arguments[0].device
        assert value.shape == reference.shape
        # Raw outputs are exact inputs here, so the state's own precision decides.
        assert relative_error(value, reference) < OP[value.dtype] * (4 if state else 1)


def gradients(function, arguments, weights):
    leaves = tuple(
        a.detach().clone().requires_grad_() if is_float(a) and i in weights else a
        for i, a in enumerate(arguments)
    )
    outputs = as_tuple(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (
            o.double() * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device)
        ).sum()
        for o in outputs
    )
    return torch.autograd.grad(loss, [leaves[i] for i in weights])


def differentiable(sample, arguments):
    last = 5 if sample.name == "guided_heun_second" else 3
    return [
        i for i, a in enumerate(arguments) if is_float(a) and (sample.name not in RAW or i < last)
    ]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", ALL, ids=str)
def test_gradient(sample, dtype, layout, place):
    arguments = typed(sample, dtype, layout, place)
    weights = differentiable(sample, arguments)
    expected = gradients(sample.reference, in_float64(arguments), weights)
    for i, value, reference in zip(
        weights, gradients(sample.function, arguments, weights), expected, strict=True
    ):
        assert value.dtype == arguments[i].dtype
        assert relative_error(value, reference) < GRADIENT[dtype]


LARGE = ("long", "long_row", "large", "wide", "many", "many_channels", "pixel_2d", "edm2")
SMALL = [s for s in ALL if s.label not in LARGE]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_gradcheck(sample, layout, device):
    arguments = sample.arguments(torch.float64, layout, device=device)
    weights = differentiable(sample, arguments)
    arguments = tuple(
        a.clone().requires_grad_() if i in weights else a for i, a in enumerate(arguments)
    )
    assert torch.autograd.gradcheck(sample.function, arguments, fast_mode=True)


def raw_arguments(sample, layout, device):
    """The operator behind a public function and the arguments that reach it."""
    recorded = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "autoguide_fast":
                recorded.append((func, args))
            return func(*args, **(kwargs or {}))

    with Record():
        sample.function(*sample.arguments(torch.float32, layout, device=device))
    return recorded


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_opcheck(sample, layout, device):
    for operator, arguments in raw_arguments(sample, layout, device):
        weights = differentiable(sample, arguments)
        arguments = tuple(
            a.detach().clone().requires_grad_() if i in weights else a
            for i, a in enumerate(arguments)
        )
        torch.library.opcheck(operator, arguments)


def test_opcheck_mp_weight_forced(device):
    operator = torch.ops.autoguide_fast.mp_weight_forced.default
    for weight in (torch.randn(4, 6, 3, 3), torch.randn(6, 4, 3, 3).transpose(0, 1)):
        arguments = (weight.to(device), level(1.5).to(device), 1e-4, torch.bfloat16)
        torch.library.opcheck(operator, arguments)


BACKWARDS = {
    "normalize_backward": lambda x: (x, x, 1, 1e-4),
    "mp_silu_backward": lambda x: (x, x),
    "modulate_mp_silu_backward": lambda x: (x, x, torch.randn(2, 6).to(x.device)),
    "mp_sum_backward": lambda x: (x, x, x, 0.3, 1.0),
    "mp_cat_backward": lambda x: (torch.cat([x, x], 1), None, x, x, 0.3),
    "normalize_mp_silu_backward": lambda x: (x, x, x, 1e-4),
    "mp_weight_backward": lambda x: (x, x, torch.tensor(1.5).to(x.device), 1e-4),
    "mp_weight_backward-plain": lambda x: (x, x, None, 1e-4),
    "attention_split_backward": lambda x: (*ops.attention_split(x, 1), x, 1, 1e-4),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", BACKWARDS)
def test_opcheck_backward(name, layout, device):
    operator = getattr(torch.ops.autoguide_fast, name.split("-")[0]).default
    x = lay_out(torch.randn(2, 6, 4, 4).to(device), layout)
    torch.library.opcheck(operator, BACKWARDS[name](x))


def test_every_op_is_checked():
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("autoguide_fast::")
    }
    covered = {s.name for s in ALL} | {n.split("-")[0] for n in BACKWARDS} | {"mp_weight_forced"}
    elsewhere = {"evaluate", "guided_half_step"}
    elsewhere |= {"conv3x3", "conv3x3_backward_x", "conv3x3_backward_weight"}
    assert registered == covered | elsewhere  # whose tests are in files of their own


@pytest.mark.parametrize("sample", ALL, ids=str)
def test_compile(sample, device):
    torch._dynamo.reset()
    arguments = sample.arguments(torch.float32, "channels_last", device=device)
    weights = differentiable(sample, arguments)
    compiled = torch.compile(sample.function, fullgraph=True, backend="aot_eager")
    expected = gradients(sample.function, arguments, weights)
    for value, reference in zip(gradients(compiled, arguments, weights), expected, strict=True):
        torch.testing.assert_close(value, reference)


@pytest.mark.parametrize("name", sorted({s.name for s in ALL}))
def test_compile_reference(name):
    """The benchmarks race `torch.compile` of each reference, as one graph."""
    torch._dynamo.reset()
    sample = next(s for s in ALL if s.name == name)
    arguments = sample.arguments(torch.float32)
    compiled = torch.compile(sample.reference, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(*arguments), sample.reference(*arguments))


@pytest.mark.parametrize("sample", ALL, ids=str)
def test_empty(sample, place):
    full = sample.arguments(torch.float32, device=place)
    arguments = tuple(a[:0] if is_float(a) and a.ndim else a for a in full)
    if sample.name == "mp_fourier":
        arguments = (arguments[0], *full[1:])
    if sample.label == "broadcast":
        arguments = (arguments[1], arguments[1], 0.5)
    for value in as_tuple(sample.function(*arguments)):
        assert value.numel() == 0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sample", ALL, ids=str)
def test_deterministic_over_threads(sample, layout):
    def repeated(rand):
        return tuple(
            a.repeat(16, *[1] * (a.ndim - 1)) if is_float(a) and a.ndim and len(a) > 1 else a
            for a in sample.make(rand)
        )

    big = Sample(sample.name, "", repeated, sample.keeps_dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(as_tuple(big.function(*big.arguments(torch.float32, layout))))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            assert torch.equal(value, reference)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sample", ALL, ids=str)
def test_deterministic_over_orders(sample, layout):
    """CUDA kernels give the same bits in whatever order their threads run."""
    if simulator.why_not():
        pytest.skip(simulator.why_not())
    arguments = sample.arguments(torch.float32, layout)
    weights = differentiable(sample, arguments)
    results = []
    for seed in range(3):
        with simulator.simulating(seed):
            results.append(
                (
                    *as_tuple(sample.function(*arguments)),
                    *gradients(sample.function, arguments, weights),
                )
            )
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            assert torch.equal(value, reference)


@pytest.mark.parametrize("name", sorted({s.name for s in ALL}))
def test_documented(name):
    function = getattr(ops, name)
    for part in ("Args:", "Returns:", "Raises", "ifferentiable"):
        assert part in inspect.getdoc(function), f"{name} says nothing of {part}"
    reference = getattr(ops, f"{name}_reference")
    assert inspect.signature(function) == inspect.signature(reference)


X = torch.zeros(2, 6, 4, 4)
BAD = {
    "dtype": (lambda: ops.mp_silu(X.long()), "mp_silu: x must be float32"),
    "normalize_dim": (lambda: ops.normalize(X, 2), "normalize: dim must be 1"),
    "normalize_ndim": (lambda: ops.normalize(X[0, 0, 0]), "normalize: x must have 2 or more"),
    "scale": (lambda: ops.modulate_mp_silu(X, torch.zeros(2, 5)), "scale must have the shape"),
    "scale_dtype": (lambda: ops.modulate_mp_silu(X, torch.zeros(2, 6).half()), "dtype of x"),
    "sum_dtype": (lambda: ops.mp_sum(X, X.half()), "mp_sum: b must have the dtype of a"),
    "cat_shape": (lambda: ops.mp_cat(X, X[:, :, 1:]), "mp_cat: b must have the shape of a"),
    "fourier": (lambda: ops.mp_fourier(X, X, X), "mp_fourier: x must have one dimension"),
    "mode": (lambda: ops.resample(X, "sideways"), "resample: mode must be one of down, keep, up"),
    "odd": (lambda: ops.resample(X[:, :, 1:], "down"), "even height and width"),
    "image": (lambda: ops.resample(X[0], "up"), "must be an image batch"),
    "weight": (lambda: ops.mp_weight(X[0, 0, 0]), r"mp_weight: weight must be \[out, in"),
    "gain": (lambda: ops.mp_weight(X, torch.zeros(3)), "gain must be a number or a 0-dim"),
    "heads": (lambda: ops.attention_split(X, 4), "num_heads must divide a third"),
    "state": (
        lambda: ops.guided_heun_first(X.half(), X, None, level(2.0), level(1.0), level(1.0)),
        "x must be float32 or float64",
    ),
    "raw": (
        lambda: ops.guided_heun_first(X, X[:1], None, level(2.0), level(1.0), level(1.0)),
        "raw must have the shape of x",
    ),
    "terms": (lambda: ops.combine(level([[1.0, 1.0]]), X, X[:1]), "terms must have the shape of"),
    "no_terms": (lambda: ops.combine(level([[1.0]])), "terms must be 1 to 8 tensors, got 0"),
    "many_terms": (lambda: ops.inner_products(*[X] * 9), "1 to 8 tensors, got 9; combine some"),
    "coefficients": (
        lambda: ops.combine(level([1.0, 1.0]), X, X),
        r"coefficients must be float64 \[1 or 2, 2\], one for each term, got \[2\]",
    ),
    "sigma": (
        lambda: ops.guided_heun_first(X, X, None, torch.zeros(2), level(1.0), level(1.0)),
        "sigma must be a 0-dim float64 tensor",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()
