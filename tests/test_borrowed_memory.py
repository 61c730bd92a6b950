"""Memory on loan: what callables may do to their arguments and results, and users to theirs."""

import pytest
import torch
from nets import tiny

from autoguide_fast import sample, unlabelled
from autoguide_fast.guidance import guided_denoiser
from autoguide_fast.metrics import Reference, pixel_features


class Pure:
    """A labelled denoiser that returns fresh memory and leaves its arguments alone."""

    img_resolution, img_channels, label_dim = 4, 1, 3

    def __call__(self, x, sigma, class_labels):
        shift = 0 if class_labels is None else class_labels.sum(1).reshape(-1, 1, 1, 1)
        return (x + shift) / (1 + sigma**2)


class OneBuffer(Pure):
    """Returns the same memory every time, as the replay of a CUDA graph does."""

    def __init__(self):
        self.buffers = {}

    def __call__(self, x, sigma, class_labels):
        result = super().__call__(x, sigma, class_labels)
        return self.buffers.setdefault(x.shape, torch.empty_like(result)).copy_(result)


class Writes(Pure):
    """Writes into whatever it is given."""

    def __call__(self, x, sigma, class_labels):
        result = super().__call__(x, sigma, class_labels)
        for argument in (x, sigma, class_labels):
            if argument is not None:
                argument.fill_(7)
        return result


class WritesAndReturnsIt(Writes):
    """Computes in place: its result is its argument."""

    def __call__(self, x, sigma, class_labels):
        return x.copy_(super().__call__(x.clone(), sigma, class_labels))


KINDS = [OneBuffer, Writes, WritesAndReturnsIt]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_callables_that_reuse_memory(kind, dtype):
    noise, labels = torch.randn(3, 1, 4, 4, dtype=dtype), torch.eye(3)
    kept = noise.clone(), labels.clone()
    options = {
        "guidance": 2.0,
        "noise": noise,
        "class_labels": labels,
        "num_steps": 3,
        "dtype": dtype,
        "batch_size": 2,
    }
    expected = sample(Pure(), unlabelled(Pure()), **options)
    net = kind()
    result = sample(net, unlabelled(net), **options)
    assert torch.equal(result, expected)
    assert torch.equal(noise, kept[0]) and torch.equal(labels, kept[1])
    net(noise.clone(), torch.tensor(1.0), None)  # whose buffer is not the result
    assert torch.equal(result, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_guided_denoiser_of_callables_that_reuse_memory(kind):
    x, sigma, labels = torch.randn(3, 1, 4, 4), torch.tensor(0.5), torch.eye(3)
    expected = guided_denoiser(Pure(), unlabelled(Pure()), 2.0)(x, sigma, labels)
    net = kind()
    for guidance, value in ((2.0, expected), (1.0, Pure()(x, sigma, labels))):
        given = x.clone(), sigma.clone(), labels.clone()
        result = guided_denoiser(net, unlabelled(net), guidance)(*given)
        assert all(torch.equal(*pair) for pair in zip(given, (x, sigma, labels), strict=True))
        net(x.clone(), sigma + 1, None)
        assert torch.equal(result, value)


@pytest.mark.parametrize("engine", [True, False])
def test_a_callback_may_write_to_what_it_gets_and_keep_it(engine):
    model, guide = tiny(), tiny(seed=1)
    if not engine:
        model = guided_denoiser(model, guide, 1.5)
        model.img_channels, model.img_resolution, model.label_dim = 2, 8, 5
    options = {"guidance": 1.5 if engine else 1.0, "seeds": range(2), "num_steps": 3}
    seen, expected = [], []
    plain = sample(model, guide, callback=lambda i: expected.append(i.x.clone()), **options)

    def spoil(info):
        seen.append(info.x.clone())
        info.x.fill_(9)

    assert torch.equal(sample(model, guide, callback=spoil, **options), plain)
    assert all(torch.equal(*pair) for pair in zip(seen, expected, strict=True))


def test_results_are_no_buffer_of_an_encoder():
    class Encoder:
        buffer = torch.empty(2, 1, 4, 4)

        def decode(self, x):
            return self.buffer[: len(x)].copy_(x.mul_(2))

    net = Pure()
    options = {"seeds": range(4), "num_steps": 2, "batch_size": 2}
    expected = 2 * sample(net, **options)
    net.encoder = Encoder()
    result = sample(net, **options)
    net.encoder.buffer.zero_()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("array", ["torch", "numpy"])
def test_results_share_nothing_with_each_other_or_the_noise(array):
    net, noise = tiny(), torch.randn(2, 2, 8, 8)
    first = sample(net, noise=noise, class_labels=1, num_steps=1, array=array)
    kept = first.copy() if array == "numpy" else first.clone()
    second = sample(net, noise=noise + 1, class_labels=1, num_steps=1, array=array)
    second[:] = 3
    noise.zero_()
    assert (first == kept).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.as_subclass(type("Sub", (torch.Tensor,), {})),
        lambda y: torch.nn.Parameter(y),
        lambda y: y.transpose(2, 3).contiguous().transpose(2, 3),
        lambda y: y.to(memory_format=torch.channels_last),
        lambda y: y.double(),
    ],
    ids=["subclass", "parameter", "view", "channels-last", "double"],
)
def test_kinds_of_tensors_that_callables_return(change):
    noise = torch.randn(3, 2, 4, 4)
    net = Pure()
    net.img_channels = 2
    expected = sample(net, noise=noise, class_labels=0, num_steps=2)

    def changed(x, sigma, class_labels):
        with torch.enable_grad():
            return change(net(x, sigma, class_labels))

    result = sample(changed, noise=noise, class_labels=torch.eye(3)[[0, 0, 0]], num_steps=2)
    assert type(result) is torch.Tensor and not result.requires_grad
    assert torch.equal(result, expected)


def test_a_reference_keeps_no_buffer_of_its_features():
    images = torch.randint(256, (20, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(20) % 2
    buffer = pixel_features(images)

    def extract(images):
        buffer[:] = pixel_features(images)
        return buffer

    expected = Reference(images, labels).quality(images.flip(0), labels)
    reference = Reference(images, labels, extract=extract)
    assert reference.quality(255 - images, labels).precision < 1
    assert reference.quality(images.flip(0), labels) == expected
