"""The denoiser: golden values, every option, its calls, gradients, compilation, bad input."""

import copy
import dataclasses
import inspect
import json
import pickle

import numpy
import pytest
import torch
from golden import golden, golden_net, state_dict
from nets import tiny
from references import assert_denoised, assert_gradients, gradients, textbook
from tolerances import GOLDEN_NETWORK, OP, assert_as_exact, relative_error

from autoguide_fast import Engine, sample
from autoguide_fast.encoders import PixelEncoder
from autoguide_fast.net_config import NetConfig
from autoguide_fast.networks import Precond
from autoguide_fast.trainer.options import TrainOptions
from autoguide_fast.unet import Block

NAMES = ("denoiser_conditional", "denoiser_unconditional")


def tiny_input(net, n=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn([n, net.img_channels, 8, 8], generator=generator)
    sigma = torch.tensor([0.01, 0.7, 40.0])[:n]
    labels = torch.eye(net.label_dim)[torch.arange(n)] if net.label_dim else None
    return x * (sigma.reshape(-1, 1, 1, 1) + 0.5), sigma, labels


@pytest.mark.parametrize("name", NAMES)
def test_golden_denoiser(name):
    data, net = golden(name), golden_net(name)
    denoised, logvar = net(data["x"], data["sigma"], data.get("labels"), return_logvar=True)
    assert denoised.dtype == torch.float32
    assert relative_error(denoised, data["denoised"]) < GOLDEN_NETWORK
    assert relative_error(logvar, data["logvar"]) < GOLDEN_NETWORK
    assert logvar.shape == data["logvar"].shape


def test_golden_denoiser_without_labels():
    data, net = golden(NAMES[0]), golden_net(NAMES[0])
    denoised = net(data["x"], data["sigma"])
    assert relative_error(denoised, data["denoised_without_labels"]) < GOLDEN_NETWORK


def test_golden_gradients_of_training_mode():
    """Loss and first gradients of `training_steps`, through the forced weight normalisation."""
    data = golden("training_steps")
    net = golden_net("training_steps", "start/").train().requires_grad_(True)
    y, sigma = data["images0"], data["sigma0"]
    denoised, logvar = net(y + sigma * data["noise0"], sigma, data["labels0"], return_logvar=True)
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    loss = weight / logvar.exp() * (denoised - y) ** 2 + logvar
    assert loss.mean().item() == pytest.approx(data["loss_mean0"].item(), rel=2e-6)
    (loss.sum() / len(y)).backward()
    expected = state_dict(data, "grad_step0/")
    gradients = {k: p.grad for k, p in net.named_parameters() if k in expected}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # Some gains' gradients are small differences of large sums.
        assert relative_error(gradient, expected[name]) < 1e-4, name


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names_and_shapes(name):
    arrays = state_dict(golden(name), "weight/")
    net = Precond(**golden(name)["config"])
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in arrays.items()
    }


OPTIONS = {
    "defaults_of_the_small_net": {},
    "three_levels": {"channel_mult": [1, 2, 3], "num_blocks": 2},
    "one_level": {"channel_mult": [1], "attn_resolutions": []},
    "embedding_multipliers": {"channel_mult_noise": 3, "channel_mult_emb": 2},
    "attention_everywhere": {"attn_resolutions": [8, 4]},
    "several_heads": {"channels_per_head": 4, "attn_resolutions": [8, 4]},
    "balances": {
        "label_balance": 0.3,
        "concat_balance": 0.7,
        "res_balance": 0.4,
        "attn_balance": 0.2,
    },
    "clip_that_clips": {"clip_act": 0.5},
    "no_clip": {"clip_act": None},
    "sigma_data": {"sigma_data": 1.5},
    "logvar_channels": {"logvar_channels": 16},
    "no_labels": {"label_dim": 0},
    "use_fp16_is_for_cuda": {"use_fp16": True},
    "no_encoder_blocks": {"num_blocks": 0},
}
# On a net that small: nothing reaches the clip at 256.
NO_EFFECT = ("defaults_of_the_small_net", "no_clip", "logvar_channels", "use_fp16_is_for_cuda")


@pytest.mark.parametrize("case", OPTIONS)
def test_every_option_agrees_with_the_textbook(case):
    net = tiny(**OPTIONS[case])
    x, sigma, labels = tiny_input(net)
    result, plain, exact = (
        run(x, sigma, labels, return_logvar=True)
        for run in (net, textbook(net, torch.float32), textbook(net))
    )
    for values in zip(result, plain, exact, strict=True):
        assert_as_exact(*values)
    if case not in NO_EFFECT:
        plain = tiny()(x, sigma, labels)
        assert relative_error(result[0], plain) > 1e-3, "the option changes nothing"


def test_fp16_on_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = tiny(use_fp16=True).cuda()
    x, sigma, labels = (t.cuda() for t in tiny_input(net))
    half = net(x, sigma, labels)
    net.use_fp16 = False
    assert half.dtype == torch.float32
    assert 0 < relative_error(half, net(x, sigma, labels)) < 1e-2


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1, 1, 1)])
def test_shapes_of_sigma(shape):
    net = tiny()
    x, _, labels = tiny_input(net)
    sigma = torch.full(shape, 0.7)
    alone = torch.cat([net(x[i : i + 1], 0.7, labels[i : i + 1]) for i in range(3)])
    for value in (alone, net(x, sigma, labels), net(x, sigma.double(), labels)):
        assert_denoised(value, net, x, sigma, labels)


def test_one_row_of_labels_serves_all_images():
    net = tiny()
    x, sigma, labels = tiny_input(net)
    row = labels[1:2]
    assert_denoised(net(x, sigma, row), net, x, sigma, row.expand(3, -1))
    assert_denoised(net(x, sigma), net, x, sigma, torch.zeros(3, 5))


def test_net_without_labels_ignores_them():
    net = tiny(label_dim=0)
    x, sigma, _ = tiny_input(net)
    assert torch.equal(net(x, sigma, torch.eye(5)[:3]), net(x, sigma))


def test_raw_output_and_preconditioning():
    net = tiny()
    x, sigma, labels = tiny_input(net)
    s = sigma.reshape(-1, 1, 1, 1)
    var = s**2 + net.sigma_data**2
    expected = net.sigma_data**2 / var * x + s * net.sigma_data / var.sqrt() * net.raw(
        x, sigma, labels
    )
    assert relative_error(net(x, sigma, labels), expected) < GOLDEN_NETWORK


def test_config_rebuilds_the_net():
    net = tiny(channel_mult=(1, 2), clip_act=None)
    config = json.loads(json.dumps(net.config))
    again = Precond(**config)
    assert again.config == net.config == config
    again.load_state_dict(net.state_dict(), strict=True)


def test_new_net_has_zero_gains_and_returns_the_skip_path():
    net = Precond(8, 1, 0, model_channels=8, channel_mult=[1], num_blocks=1)
    gains = [p for name, p in net.named_parameters() if name.endswith("gain")]
    assert gains and all(p.item() == 0 for p in gains)
    x = torch.randn(2, 1, 8, 8)
    assert relative_error(net(x, 0.5), x / 2) < GOLDEN_NETWORK


def test_attention_only_where_it_belongs():
    net = tiny(channel_mult=[1, 2, 2], attn_resolutions=[8])
    with_attention = [n for n, m in net.named_modules() if isinstance(m, Block) and m.num_heads]
    assert with_attention == [
        "unet.enc.8x8_block0",
        "unet.dec.2x2_in0",
        "unet.dec.8x8_block0",
        "unet.dec.8x8_block1",
    ]
    narrow = tiny(channels_per_head=64)
    assert not any(m.num_heads for m in narrow.modules() if isinstance(m, Block))


def test_magnitudes_are_preserved():
    """Unit-variance input and random weights keep the activations near unit magnitude."""
    torch.manual_seed(0)
    net = Precond(16, 4, 0, model_channels=32, channel_mult=[1, 2], num_blocks=2).eval()
    magnitudes = {}
    for name, module in net.unet.named_modules():
        if isinstance(module, Block):
            module.register_forward_hook(
                lambda _, __, y, name=name: magnitudes.update({name: y.square().mean().sqrt()})
            )
    net(torch.randn(8, 4, 16, 16) * 0.5, 1e-3)
    assert len(magnitudes) == 14
    for name, magnitude in magnitudes.items():
        assert 0.7 < magnitude < 1.4, name


def test_training_mode_normalises_the_weights_once_per_pass():
    net = tiny().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    x, sigma, labels = tiny_input(net)
    net(x, sigma, labels, return_logvar=True)
    for name, parameter in net.named_parameters():
        if name.endswith("weight"):
            rms = parameter.detach().flatten(1).square().mean(1).sqrt()
            assert torch.allclose(rms, torch.ones_like(rms), atol=1e-3), name
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.eval()(x, sigma, labels)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_dropout_acts_in_training_mode_only():
    net = tiny(dropout=0.5)
    x, sigma, labels = tiny_input(net)
    assert torch.equal(net(x, sigma, labels), net(x, sigma, labels))
    net.train()
    assert not torch.equal(net(x, sigma, labels), net(x, sigma, labels))


def test_gradients_agree_with_the_textbook():
    net = tiny()
    x, sigma, labels = tiny_input(net)
    found = gradients(net, net.named_parameters(), x, sigma, labels)
    assert_gradients(found, net, x, sigma, labels)


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_modes_agree(grad_mode):
    net = tiny()
    x, sigma, labels = tiny_input(net)
    with grad_mode():
        denoised = net(x, sigma, labels)
    assert denoised.requires_grad == (grad_mode is torch.enable_grad)
    assert torch.equal(denoised, net(x, sigma, labels))


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# The tracer and AOT autograd decide whether a net compiles as one graph; generating code from that
# graph takes a minute and decides nothing.


def test_compiles_as_one_graph(fresh_compiler):
    net = tiny().requires_grad_(False)
    x, sigma, labels = tiny_input(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert_denoised(compiled(x, sigma, labels), net, x, sigma, labels)


def test_compiles_for_training(fresh_compiler):
    """Gradients, and the weights that training mode replaces."""
    net = tiny(channel_mult=[1], num_blocks=0, attn_resolutions=[]).train()
    start = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, sigma, labels = tiny_input(net)
    found = gradients(compiled, net.named_parameters(), x, sigma, labels)
    assert_gradients(found, start, x, sigma, labels)
    start(x, sigma, labels, return_logvar=True)  # replaces its weights
    for name, value in start.state_dict().items():
        assert relative_error(net.state_dict()[name], value) < OP[torch.float32], name


def test_channels_last_and_strided_input():
    net = tiny()
    x, sigma, labels = tiny_input(net)
    wide = torch.zeros(3, 4, 8, 16)
    wide[:, ::2, :, ::2] = x
    for view in (x.contiguous(memory_format=torch.channels_last), wide[:, ::2, :, ::2]):
        assert_denoised(net(view, sigma, labels), net, x, sigma, labels)


def test_empty_batch():
    net = tiny()
    assert net(torch.zeros(0, 2, 8, 8), 1.0).shape == (0, 2, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(torch.zeros(1, 2, 8, 4), 1.0), r"x must be \[N, 2, 8, 8\], got"),
        (lambda net: net(torch.zeros(1, 3, 8, 8), 1.0), r"x must be \[N, 2, 8, 8\], got"),
        (lambda net: net(torch.zeros(3, 2, 8, 8), torch.ones(2)), "sigma must hold one .* 2 for 3"),
        (
            lambda net: net(torch.zeros(3, 2, 8, 8), 1.0, torch.zeros(3, 4)),
            r"class_labels must be \[3, 5\]",
        ),
        (
            lambda net: net(torch.zeros(3, 2, 8, 8), 1.0, torch.zeros(2, 5)),
            r"class_labels must be \[3, 5\]",
        ),
        (
            lambda net: net(torch.zeros(3, 2, 8, 8), 1.0, torch.zeros(3, dtype=torch.int64)),
            "one_hot",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


def test_what_is_not_a_tensor():
    net, x = tiny(), torch.zeros(1, 2, 8, 8)
    with pytest.raises(TypeError, match="Precond: x must be a tensor, got ndarray; use"):
        net(x.numpy(), 1.0)
    with pytest.raises(TypeError, match="Precond: class_labels must be a tensor, got list; use"):
        net(x, 1.0, [[1, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_mult": [1, 1, 1, 1, 1]}, "img_resolution must be divisible by 16"),
        ({"channel_mult": []}, "channel_mult must name at least one level"),
        ({"channel_mult": 2}, "channel_mult must name at least one level"),
        ({"channel_mult": [1, 0]}, r"channel_mult must .* got \[1, 0\]; try"),
        ({"channel_mult": [1, 1.5]}, "channel_mult must name .* positive integer"),
        ({"channel_mult_emb": 0}, "channel_mult_emb must be a positive integer or None, got 0"),
        ({"channel_mult_noise": 0.5}, "channel_mult_noise must be a positive integer or None"),
        ({"label_dim": -1}, "label_dim must be an integer >= 0, got -1"),
        ({"label_dim": 2.5}, "label_dim must be an integer >= 0, got 2.5"),
        ({"num_blocks": -1}, "num_blocks must be an integer >= 0, got -1"),
        ({"num_blocks": 1.0}, "num_blocks must be an integer >= 0, got 1.0"),
        ({"num_blocks": None}, "num_blocks must be an integer >= 0, got None"),
        ({"attn_resolutions": 4}, "attn_resolutions must be a list of integers, got 4"),
        ({"logvar_channels": 0}, "logvar_channels must be a positive integer"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
        ({"res_balance": 1.5}, r"res_balance must lie in \[0, 1\], got 1.5"),
        ({"label_balance": float("nan")}, r"label_balance must lie in \[0, 1\], got nan"),
        ({"clip_act": 0}, "clip_act must be a positive number or None, got 0"),
        ({"clip_act": float("nan")}, "clip_act must be a positive number or None"),
        ({"sigma_data": float("inf")}, "sigma_data must be a positive number, got inf"),
        ({"sigma_data": float("nan")}, "sigma_data must be a positive number, got nan"),
        ({"use_fp16": "yes"}, "must be numbers, lists of numbers, booleans or None"),
        ({"use_fp16": 2}, "use_fp16 must be True or False, got 2"),
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter must be \[1, 1\]"),
        ({"channels_per_head": 5, "model_channels": 16}, "equal heads"),
        ({"model_channels": 0}, "model_channels must be a positive integer, got 0"),
        ({"model_channels": 8.0}, "model_channels must be a positive integer, got 8.0"),
        ({"model_channels": True}, "model_channels must be a positive integer, got True"),
        ({"sigma_data": 0}, "sigma_data must be a positive number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((ValueError, TypeError), match=f"^Precond: .*{message}|^Block: .*{message}"):
        tiny(**{"channels_per_head": 8, **options})


def test_options_are_one_list():
    """`NetConfig` has them all, and a training run all that are not its data's."""
    config = NetConfig(8, 2, label_dim=0, channel_mult=[1, 2], num_blocks=numpy.int64(1))
    ours = [
        "left_out",
        "attn_temperature",
        "guidance_range",
        "head_after",
        "ends_after",
    ]  # told only where they are set
    assert list(inspect.signature(Precond).parameters) == [*config.as_dict(), *ours]
    assert (
        Precond(**config.as_dict()).config
        == config.as_dict()
        == Precond(8, 2, 0, channel_mult=(1, 2), num_blocks=1).config
    )
    assert type(config.num_blocks) is int and config.channel_mult == (1, 2)
    hash(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.label_dim = 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        Precond(8, 2, 0, width=3)
    data = {"img_resolution": 16, "img_channels": 3, "label_dim": 7}
    others = {
        "channels": 12,
        "noise_channels": 3,
        "emb_channels": 2,
        "channel_mult": (1, 1, 2),
        "num_blocks": 2,
        "attn_resolutions": (8,),
        "channels_per_head": 6,
        "label_balance": 0.1,
        "concat_balance": 0.2,
        "res_balance": 0.4,
        "attn_balance": 0.6,
        "clip_act": 9.0,
        "logvar_channels": 32,
        "dropout": 0.2,
        "sigma_data": 0.7,
    }
    trained = NetConfig(**data, **TrainOptions(**others).net_options()).as_dict()
    usual = NetConfig(**data).as_dict()
    assert {k for k in usual if trained[k] == usual[k]} == {*data, "resample_filter", "use_fp16"}
    none = TrainOptions(clip_act=0.0, noise_channels=0).net_options()
    assert none["clip_act"] is None and none["channel_mult_noise"] is None


def test_options_must_be_plain():
    with pytest.raises(TypeError, match="options must be numbers"):
        tiny(clip_act=torch.tensor(1.0))


class Decoder(torch.nn.Module):
    """An encoder with weights, such as a VAE; in training mode it spoils what it decodes."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.tensor(1.0))

    def decode(self, x):
        return x * self.scale + self.shift + (100 if self.training else 0)


def decoding():
    net = tiny()
    net.encoder = Decoder()
    return net


def pickled(net):
    return pickle.loads(pickle.dumps(net))


def test_an_encoder_with_weights_is_no_layer():
    net, plain = decoding(), tiny()
    assert isinstance(net.encoder, Decoder)
    assert net.state_dict().keys() == plain.state_dict().keys()
    net.load_state_dict(plain.state_dict())
    for kind in ("parameters", "buffers", "modules", "children"):
        assert len(list(getattr(net, kind)())) == len(list(getattr(plain, kind)())), kind
    net.encoder = None
    assert net.encoder is None
    net.encoder = Decoder()
    net.encoder = PixelEncoder()  # one kind after the other
    assert type(net.encoder) is PixelEncoder and not net._modules.keys() - plain._modules.keys()


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_of_a_net_have_its_encoder(copied):
    net = decoding()
    again = copied(net)
    assert isinstance(again.encoder, Decoder) and again.encoder is not net.encoder
    assert again.encoder.scale.data_ptr() != net.encoder.scale.data_ptr()
    assert torch.equal(again.encoder.scale, net.encoder.scale)
    assert again.state_dict().keys() == net.state_dict().keys()


class Places(torch.overrides.TorchFunctionMode):
    """Notes where tensors are moved to, for there is one device on most machines."""

    def __init__(self):
        super().__init__()
        self.moved = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to:
            self.moved[id(args[0])] = args[1:]
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("wrap", [lambda net: net, torch.nn.Sequential])
def test_an_encoder_moves_with_its_net_and_keeps_its_types(wrap):
    net = decoding()
    with Places() as places:
        wrap(net).to("cpu")
    for tensor in (net.encoder.scale, net.encoder.shift):
        assert places.moved[id(tensor)][0] == torch.device("cpu")
    wrap(net).half()
    assert net.unet.out_gain.dtype == torch.float16 and net.encoder.scale.dtype == torch.float32
    wrap(net).to("meta")
    assert net.unet.out_gain.is_meta and not net.encoder.scale.is_meta


def test_an_encoder_decodes_in_evaluation_mode():
    net = decoding()
    net.encoder.train()
    samples = sample(net, seeds=[1], num_steps=2, raw=True)
    assert torch.equal(sample(net, seeds=[1], num_steps=2), 2 * samples + 1)
    assert net.encoder.training
    assert Engine.runs(net)
