"""`sample`: what an image depends on, kinds of arguments, types, modes, reports."""

import itertools

import numpy as np
import pytest
import torch
from nets import tiny
from references import assert_sample, textbook
from tolerances import assert_as_exact

import autoguide_fast
from autoguide_fast import Engine, StepInfo, sample, unlabelled
from autoguide_fast.encoders import LatentEncoder, PixelEncoder
from autoguide_fast.schedules import rho_schedule
from autoguide_fast.seeds import StackedRandom


def gaussian(x, sigma, class_labels=None):
    """The exact denoiser of data drawn from N(0, 0.5^2)."""
    return x * 0.25 / (0.25 + sigma**2)


class Wrapped:
    """The network behind a plain callable, which the engine cannot look into."""

    img_resolution, img_channels, label_dim = 8, 2, 5

    def __init__(self, net):
        self.net = net

    def __call__(self, x, sigma, class_labels):
        return self.net(x, sigma, class_labels)


# --- seeds, labels, batches ---------------------------------------------------------------------


def starts(model, **options):
    """What the model sees at its first evaluation in each batch: noise and labels."""
    seen = []

    def spy(x, sigma, class_labels):
        seen.append((x.clone(), class_labels.clone()))
        return model(x, sigma, class_labels)

    spy.img_resolution, spy.img_channels, spy.label_dim = 8, 2, 5
    result = sample(spy, num_steps=1, **options)
    return result, *(torch.cat(parts) for parts in zip(*seen, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64, None])
def test_noise_and_labels_depend_on_the_seed_alone(batch_size):
    seeds = [7, 0, 123456789012, 7, 3, 9, 2]
    model = tiny()
    _, noise, labels = starts(model, seeds=seeds)
    assert torch.equal(noise[0], noise[3])
    order = [6, 2, 0, 5, 1, 4, 3]
    _, shuffled, shuffled_labels = starts(
        model, seeds=[seeds[i] for i in order], batch_size=batch_size
    )
    assert torch.equal(shuffled, noise[order])
    assert torch.equal(shuffled_labels, labels[order])


# Convolutions of another batch size may sum in another order.
@pytest.mark.parametrize("churn", [0, 20])
@pytest.mark.parametrize("engine", [True, False])
def test_images_depend_on_the_seed_alone(churn, engine):
    nets = tiny(), tiny(seed=1)
    model, guide = nets if engine else map(Wrapped, nets)
    seeds = [7, 0, 5, 7, 3]
    options = {"guidance": 1.7, "num_steps": 4, "S_churn": churn}
    # Each image by itself, in plain PyTorch.
    plain, exact = (
        torch.cat([sample(*judges, seeds=[i], dtype=dtype, **options) for i in seeds])
        for dtype in (torch.float32, torch.float64)
        for judges in [[textbook(net, dtype) for net in nets]]
    )
    for batch_size, order in (
        (5, [0, 1, 2, 3, 4]),
        (1, [0, 1, 2, 3, 4]),
        (2, [4, 2, 0, 1, 3]),
        (5, [3, 1]),
    ):
        part = sample(
            model, guide, seeds=[seeds[i] for i in order], batch_size=batch_size, **options
        )
        assert_as_exact(part, plain[order], exact[order])


def test_each_guide_is_the_one_that_guides():
    """Engines are kept from call to call: for another guide, another one."""
    model, options = tiny(), {"seeds": range(2), "num_steps": 3, "class_labels": 2}
    results = []
    for guide in (tiny(seed=1), tiny(seed=2), unlabelled(model), tiny(0, seed=1), model):
        results.append(sample(model, guide, 1.5, **options))
        assert_sample(results[-1], model, guide, 1.5, **options)
    results.append(sample(tiny(seed=3), tiny(seed=1), 1.5, **options))
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-3


def test_seeds_are_told_apart_up_to_2_to_the_32():
    seeds = [3, 2**16 + 3, 2**31 + 3, 2**31 - 1, 2**32 - 1]
    _, noise, _ = starts(tiny(), seeds=seeds)
    for one, other in itertools.combinations(noise, 2):
        assert not torch.equal(one, other)


def test_the_same_run_twice_is_bitwise_the_same():
    options = {"seeds": range(3), "num_steps": 4, "S_churn": 10}
    model, state = tiny(), torch.get_rng_state()
    assert torch.equal(sample(model, **options), sample(model, **options))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "seeds",
    [
        np.arange(3),
        np.array([0, 1, 2], dtype=np.uint8),
        torch.arange(3),
        (0, 1, 2),
        [np.int64(0), 1, torch.tensor(2)],
        iter(range(3)),
        [2**32, 2**32 + 1, 2**32 + 2],
    ],
)
def test_kinds_of_seeds(seeds):
    model = tiny()
    assert torch.equal(
        sample(model, seeds=seeds, num_steps=2), sample(model, seeds=range(3), num_steps=2)
    )


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (3, [3, 3, 3]),
        (np.int64(3), [3, 3, 3]),
        (torch.tensor(3), [3, 3, 3]),
        ([4, 0, 2], [4, 0, 2]),
        ((4, 0, 2), [4, 0, 2]),
        (np.array([4, 0, 2]), [4, 0, 2]),
        (torch.tensor([4, 0, 2], dtype=torch.uint8), [4, 0, 2]),
        (torch.eye(5)[[4, 0, 2]], [4, 0, 2]),
        (torch.eye(5, dtype=torch.int64)[[4, 0, 2]], [4, 0, 2]),
    ],
)
def test_kinds_of_labels(given, classes):
    _, _, labels = starts(tiny(), seeds=range(3), class_labels=given)
    assert torch.equal(labels, torch.eye(5)[classes])


def test_soft_labels_pass_through():
    soft = torch.full((2, 5), 0.2)
    _, _, labels = starts(tiny(), seeds=range(2), class_labels=soft)
    assert torch.equal(labels, soft)


def test_drawn_labels_follow_the_noise_and_given_ones_change_no_noise():
    streams = StackedRandom("cpu", range(4))
    noise, classes = streams.randn([2, 8, 8]), streams.randint(5)
    _, seen, labels = starts(tiny(), seeds=range(4))
    assert torch.equal(labels, torch.eye(5)[classes])
    assert torch.equal(seen, noise * rho_schedule(1, dtype=torch.float32)[0].item())
    _, same, _ = starts(tiny(), seeds=range(4), class_labels=0)
    assert torch.equal(same, seen)


def test_churn_is_the_same_whether_classes_are_drawn_or_given():
    model = tiny()
    drawn = StackedRandom("cpu", range(3))
    drawn.randn([2, 8, 8])
    options = {"seeds": range(3), "num_steps": 3, "S_churn": 10}
    given = sample(model, class_labels=drawn.randint(5), **options)
    assert torch.equal(given, sample(model, **options))


def test_churn_is_added_at_all_levels_unless_bounded():
    model, options = tiny(), {"seeds": range(2), "num_steps": 4, "S_churn": 8}
    said = sample(model, S_min=0, S_max=float("inf"), S_noise=1, **options)
    assert torch.equal(sample(model, **options), said)


def test_noise_takes_the_place_of_the_seeds():
    model, seeds = tiny(), range(3)
    noise = StackedRandom("cpu", seeds).randn([2, 8, 8])
    expected = sample(model, seeds=seeds, num_steps=3, S_churn=10)
    # Beside seeds, which still yield classes and churn; as float64 or numpy too.
    for given in (noise, noise.double(), noise.numpy()):
        result = sample(model, seeds=seeds, noise=given, num_steps=3, S_churn=10)
        assert torch.equal(result, expected)
    # Without seeds, where nothing else is drawn.
    labelled = sample(model, seeds=seeds, class_labels=2, num_steps=3)
    assert torch.equal(sample(model, noise=noise, class_labels=2, num_steps=3), labelled)


class Exporter:
    """An array of another library, of which only DLPack is known."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


@pytest.mark.parametrize("wrap", [np.asarray, Exporter], ids=["numpy", "dlpack"])
def test_arrays_for_tensors(wrap):
    model = tiny(label_dim=4)
    noise, classes = torch.randn(3, 2, 8, 8), torch.tensor([2, 0, 3])
    untouched = noise.clone()
    expected = sample(model, noise=noise, class_labels=classes, num_steps=3)
    value = sample(model, noise=wrap(noise), class_labels=wrap(classes), num_steps=3)
    assert torch.equal(value, expected)
    array = sample(model, noise=wrap(noise), class_labels=classes, num_steps=3, array="numpy")
    assert isinstance(array, np.ndarray) and np.array_equal(array, expected.numpy())
    assert torch.equal(noise, untouched)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: np.ascontiguousarray(a[::-1])[::-1],  # negative strides
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: np.broadcast_to(a, a.shape),  # read-only
        lambda a: a.astype(object),
        lambda a: a.astype(np.longdouble if a.dtype.kind == "f" else np.uint64),
        lambda a: a.tolist(),
        lambda a: list(torch.from_numpy(a)),
    ],
    ids=["strides", "byte-order", "read-only", "object", "wide", "list", "list of tensors"],
)
@pytest.mark.filterwarnings("error")
def test_arrays_as_numpy_may_hold_them(wrap):
    model = tiny(label_dim=4)
    noise, classes = np.random.RandomState(0).randn(3, 2, 8, 8), np.array([2, 0, 3])
    expected = sample(model, noise=noise, class_labels=classes, num_steps=1)
    assert torch.equal(
        sample(model, noise=wrap(noise), class_labels=wrap(classes), num_steps=1), expected
    )


def test_cupy_arrays():
    cupy = pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tiny(label_dim=4).to("cuda")
    noise = cupy.random.standard_normal((3, 2, 8, 8), dtype=cupy.float32)
    classes = cupy.asarray([2, 0, 3])
    array = sample(model, noise=noise, class_labels=classes, num_steps=3, array="cupy")
    assert isinstance(array, cupy.ndarray)
    expected = sample(model, noise=torch.as_tensor(noise), class_labels=[2, 0, 3], num_steps=3)
    assert torch.equal(torch.as_tensor(array), expected)


def test_callable_without_attributes_gets_labels_as_given():
    seen = []

    def model(x, sigma, class_labels):
        seen.append(class_labels)
        return gaussian(x, sigma)

    noise = torch.randn(3, 7)
    sample(model, noise=noise, num_steps=1)
    sample(model, noise=noise, num_steps=1, class_labels=[4, 5, 6])
    sample(model, noise=noise, num_steps=1, class_labels=4, batch_size=2)
    assert seen[0] is None
    assert [labels.tolist() for labels in seen[1:]] == [[4, 5, 6], [4, 4], [4]]


def test_images_are_made_64_at_a_time():
    sizes = []

    def model(x, sigma, class_labels):
        sizes.append(len(x))
        return gaussian(x, sigma)

    sample(model, noise=torch.randn(130, 1), num_steps=1)
    assert sizes == [64, 64, 2]


def test_no_images():
    assert sample(tiny(), seeds=[]).shape == (0, 2, 8, 8)
    net = tiny()
    net.encoder = PixelEncoder()
    assert sample(net, seeds=[]).dtype == torch.uint8


# --- types, modes, reports ----------------------------------------------------------------------


def test_each_net_is_fed_in_its_own_type():
    seen = {}

    class Net(torch.nn.Module):
        def __init__(self, name, *dtypes):
            super().__init__()
            self.name = name
            self.scale = torch.nn.ParameterList(torch.ones([], dtype=d) for d in dtypes)

        def forward(self, x, sigma, class_labels):
            seen[self.name] = x.dtype, sigma.dtype, sigma.shape
            return gaussian(x, sigma)

    def bare(x, sigma, class_labels):
        seen["bare"] = x.dtype, sigma.dtype, sigma.shape
        return gaussian(x, sigma)

    noise = torch.randn(2, 3)
    double, single, half = torch.float64, torch.float32, torch.float16
    nets = [Net("none"), Net("double", double), Net("half", half), Net("mixed", half, single), bare]
    for net in nets:
        result = sample(net, noise=noise, num_steps=2, dtype=double)
        assert result.dtype == double
    own = {"none": single, "double": double, "half": half, "mixed": single, "bare": double}
    assert seen == {name: (dtype, dtype, ()) for name, dtype in own.items()}


def test_float64_state_agrees_with_float32_state():
    model, guide = tiny(), tiny(seed=1)
    options = {"guidance": 1.5, "seeds": range(2), "num_steps": 5}
    double, single = (
        sample(model, guide, dtype=dtype, **options) for dtype in (torch.float64, torch.float32)
    )
    assert double.dtype == torch.float64
    assert not torch.equal(single, double.float())
    assert_sample(double, model, guide, **options)
    assert_sample(single, model, guide, **options)


def test_training_mode_is_put_back_and_weights_are_left_alone():
    model, guide = tiny(dropout=0.5), tiny(seed=1)
    expected = sample(model, guide, 1.5, seeds=[1], num_steps=2)
    model.train()
    model.unet.enc.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    assert torch.equal(sample(model, guide, 1.5, seeds=[1], num_steps=2), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not expected.requires_grad and not expected.is_inference()


def test_modules_of_others_are_put_in_evaluation_mode_meanwhile():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)

        def forward(self, x, sigma, class_labels):
            return self.dropout(gaussian(x, sigma))

    net, noise = Dropping(), torch.randn(2, 3)
    result = sample(net, noise=noise, num_steps=2)
    assert torch.equal(result, sample(gaussian, noise=noise, num_steps=2))
    assert net.training and net.dropout.training


@pytest.mark.parametrize("wrap", [lambda net: net, Wrapped], ids=["network", "callable"])
def test_interruption_leaves_things_clean(wrap, capsys):
    net = tiny().train()

    def interrupt(info):
        raise KeyboardInterrupt

    options = {"class_labels": torch.eye(5)[:2], "noise": torch.randn(2, 2, 8, 8)}
    with pytest.raises(KeyboardInterrupt):
        sample(wrap(net), progress=True, callback=interrupt, **options)
    assert all(module.training for module in net.modules())
    assert torch.is_grad_enabled()
    sample(net, num_steps=2, **options)


def test_callback_hears_of_every_step():
    infos = []
    result = sample(
        tiny(), seeds=range(5), batch_size=2, num_steps=3, callback=infos.append, progress=False
    )
    assert all(isinstance(info, StepInfo) for info in infos)
    assert [(info.batch, info.step) for info in infos] == [
        (b, s) for b in range(3) for s in range(3)
    ]
    assert {(info.num_batches, info.num_steps) for info in infos} == {(3, 3)}
    assert [list(info.indices) for info in infos[::3]] == [[0, 1], [2, 3], [4]]
    assert [info.sigma for info in infos[:3]] == rho_schedule(3, dtype=torch.float32)[1:].tolist()
    assert torch.equal(torch.cat([info.x for info in infos[2::3]]), result)


@pytest.mark.parametrize("wrap", [lambda net: net, Wrapped], ids=["network", "callable"])
def test_what_a_callback_gets_is_its_own(wrap):
    options = {"seeds": range(3), "num_steps": 4, "S_churn": 2}
    seen, kept = [], []

    def spoil(info):
        kept.append(info.x)
        seen.append(info.x.clone())
        if info.step % 2:  # of the others, see whether later steps change them
            info.x.fill_(float("nan"))

    result = sample(wrap(tiny()), callback=spoil, **options)
    assert torch.equal(result, sample(wrap(tiny()), callback=lambda info: None, **options))
    assert torch.equal(seen[-1], result)
    assert all(torch.equal(kept[i], seen[i]) for i in (0, 2))


def test_progress_bar(capsys):
    sample(gaussian, noise=torch.randn(4, 2), num_steps=3, batch_size=2, progress=True)
    assert "6/6" in capsys.readouterr().err
    sample(gaussian, noise=torch.randn(4, 2), num_steps=3)
    assert capsys.readouterr().err == ""


def test_images_where_the_model_has_an_encoder():
    net = tiny()
    latents = sample(net, seeds=range(2), num_steps=3)
    net.encoder = PixelEncoder()
    images = sample(net, seeds=range(2), num_steps=3)
    assert images.dtype == torch.uint8 and images.shape == latents.shape
    assert torch.equal(images, net.encoder.decode(latents))
    assert torch.equal(sample(net, seeds=range(2), num_steps=3, raw=False), images)
    assert torch.equal(sample(net, seeds=range(2), num_steps=3, raw=True), latents)


def test_a_part_called_encoder_is_no_encoder():
    net = Wrapped(tiny())
    net.encoder = torch.nn.Linear(1, 1)  # as networks of other libraries have
    assert sample(net, seeds=[0], num_steps=1).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PixelEncoder().encode(torch.zeros(1)), TypeError, "images must be uint8, got tor"),
        (lambda: LatentEncoder().moments(torch.zeros(1)), TypeError, "images must be uint8, got t"),
        *(
            (
                lambda n=n: LatentEncoder().encode(torch.zeros(1, n, 2, 2)),
                ValueError,
                r"moments must be \[N, 8, H, W\], got",
            )
            for n in (3, 4, 6)
        ),
        *(
            (
                lambda n=n: LatentEncoder().decode(torch.zeros(1, n, 2, 2)),
                ValueError,
                r"x must be \[N, 4, H, W\], got",
            )
            for n in (1, 3, 6)
        ),
        (
            lambda: LatentEncoder().moments(torch.zeros(1, 3, 8, 9, dtype=torch.uint8)),
            ValueError,
            "H and W divisible by 8",
        ),
    ],
)
def test_encoders_refuse_what_they_were_not_made_for(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_pixel_encoder_is_exact_on_bytes():
    encoder = PixelEncoder()
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    encoded = encoder.encode(images)
    assert (encoded.min(), encoded.max()) == (-1, 1)
    assert torch.equal(encoder.decode(encoded), images)
    assert encoder.decode(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_compiled_model():
    torch.compiler.reset()
    net = tiny(channel_mult=[1], num_blocks=0, attn_resolutions=[])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    result = sample(compiled, seeds=range(2), num_steps=3)
    assert_sample(result, net, seeds=range(2), num_steps=3)
    torch.compiler.reset()


def test_public_face():
    assert {"sample", "load", "unlabelled", "StepInfo"} <= set(autoguide_fast.__all__)
    assert autoguide_fast.__version__


def test_warnings_point_at_who_called():
    net = tiny()
    net.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="evaluating the networks as they are") as caught:
        sample(net, seeds=[0], num_steps=1)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, "auto"])
def test_networks_compute_in_the_type_that_is_asked_for(dtype):
    model, guide = tiny(), tiny(seed=1)
    options = {"guidance": 1.5, "seeds": range(3), "num_steps": 3}
    expected = Engine(model, guide, dtype).sample(**options)
    assert torch.equal(sample(model, guide, compute_dtype=dtype, **options), expected)
    # Each type has an engine of its own among those that are kept.
    assert torch.equal(sample(model, guide, **options), Engine(model, guide).sample(**options))


def test_types_that_nothing_could_compute_in_are_refused():
    model, options = tiny(), {"seeds": [0], "num_steps": 1}
    for given, dtype, message in (
        (model, "bf16", "compute_dtype must be a torch.dtype or 'auto', got 'bf16'"),
        (Engine(model), torch.float32, "compute_dtype must be left out for an Engine"),
        (
            Wrapped(model),
            torch.int8,
            "compute_dtype must be left out for nets that are",
        ),
        (model, torch.float64, "Engine: dtype must be torch.float32, torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(given, compute_dtype=dtype, **options)
