"""A net that is not what its options build: sampled as it is, and refused by all else."""

import contextlib
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import tiny
from tolerances import GOLDEN_SAMPLES, relative_error
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

import autoguide_fast
from autoguide_fast import Engine, as_built, checkpoints, engine, ops, torch_functional
from autoguide_fast.engine import prepared
from autoguide_fast.guidance import Unlabelled, unlabelled
from autoguide_fast.networks import Precond
from autoguide_fast.nn import MPConv
from autoguide_fast.unet import Block

ENC, DEC = "unet.enc.8x8_block0", "unet.dec.4x4_in0"  # the second has attention
LABELS = torch.eye(5)[[3, 1]]


def noise():
    return torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def sampled(net, **options):
    options = {"noise": noise(), "class_labels": LABELS, "num_steps": 2, **options}
    return autoguide_fast.sample(net, **options)


def evaluated(net):
    """What plain evaluations of the net give: `sample` runs any callable."""

    def function(x, sigma, class_labels):
        return net(x, sigma, class_labels)

    function.label_dim = net.label_dim
    return sampled(function)


class OwnBlock(Block):
    def _attend(self, x):
        return -super()._attend(x)


class OwnConv(MPConv):
    def forward(self, x, gain=1.0):
        return super().forward(x, gain).relu()


class OwnNet(Precond):
    def forward(self, x, sigma, class_labels=None):
        return 0.5 * super().forward(x, sigma, class_labels)


class HalfRaw:
    def raw(self, *arguments):
        return super().raw(*arguments)

    def _raw(self, *arguments):
        raw, head = super()._raw(*arguments)
        return 0.5 * raw, head


class MixedNet(HalfRaw, Precond):
    pass


class NamedNet(Precond):
    """Evaluates as a `Precond` does."""

    def __init__(self):
        raise NotImplementedError

    def extra_repr(self):
        return "mine"

    def mine(self):
        return self.info


class LowRank(torch.nn.Module):
    """An adapter around a convolution, which goes on telling its weight."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.scale = conv, torch.nn.Parameter(torch.tensor(0.5))

    @property
    def weight(self):
        return self.conv.weight

    def forward(self, x, gain=1.0):
        y = self.conv(x, gain)
        return y + self.scale * y.flip(1)


class Shifted(torch.nn.Module):
    def forward(self, weight):
        return weight + 1


class Tagged(torch.Tensor):
    pass


def doubled(module, args, output):
    return 2 * output


def forward_hook(net):
    return net.get_submodule(ENC).conv_res0.register_forward_hook(doubled)


def forward_hook_with_kwargs(net):
    def hook(module, args, kwargs, output):
        return 2 * output

    return net.get_submodule(ENC).conv_res0.register_forward_hook(hook, with_kwargs=True)


def forward_pre_hook(net):
    conv = net.get_submodule(ENC).conv_res0
    return conv.register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def forward_pre_hook_with_kwargs(net):
    def hook(module, args, kwargs):
        return (2 * args[0], *args[1:]), kwargs

    return net.get_submodule(ENC).conv_res0.register_forward_pre_hook(hook, with_kwargs=True)


def backward_hook(net):
    return net.get_submodule(ENC).conv_res0.register_full_backward_hook(lambda *a: None)


def backward_pre_hook(net):
    return net.get_submodule(ENC).conv_res0.register_full_backward_pre_hook(lambda *a: None)


def global_forward_hook(net):
    def hook(module, args, output):
        return 2 * output if isinstance(module, MPConv) else None

    return torch.nn.modules.module.register_module_forward_hook(hook)


def global_forward_pre_hook(net):
    def hook(module, args):
        return (2 * args[0], *args[1:]) if isinstance(module, Block) else None

    return torch.nn.modules.module.register_module_forward_pre_hook(hook)


def perturbed_attention(net):
    net.get_submodule(DEC)._attend = lambda x: x


def own_forward(net):
    plain = net.forward
    net.forward = lambda x, sigma, class_labels=None: 0.5 * plain(x, sigma, class_labels)


def shadowed_layer(net):
    block = net.get_submodule(ENC)
    block.__dict__["conv_res0"] = lambda x: block._modules["conv_res0"](x).abs()


def subclass_of_block(net):
    net.get_submodule(DEC).__class__ = OwnBlock


def subclass_of_convolution(net):
    net.get_submodule(ENC).conv_res0.__class__ = OwnConv


def subclass_of_the_net(net):
    net.__class__ = OwnNet


def subclass_by_another_class(net):
    net.__class__ = MixedNet


def subclass_that_evaluates_alike(net):
    net.__class__ = NamedNet


def low_rank_adapter(net):
    block = net.get_submodule(ENC)
    block.conv_res0 = LowRank(block.conv_res0)


def parametrised(net):
    parametrize.register_parametrization(net.get_submodule(ENC).conv_res0, "weight", Shifted())


def weight_normalised(net):
    conv = net.get_submodule(ENC).conv_res0
    weight_norm(conv)
    torch.nn.init.uniform_(conv.parametrizations.weight.original1)


def pruned(net):
    prune.random_unstructured(net.get_submodule(ENC).conv_res0, "weight", 0.5)


def tensor_subclass(net):
    conv = net.get_submodule(ENC).conv_res0
    weight = torch.nn.Parameter(conv.weight.detach().as_subclass(Tagged), requires_grad=False)
    conv.weight = weight


def compiled(net):
    net.get_submodule(ENC).compile(backend="eager")


def further_layer(net):
    net.unet.dec["8x8_last"] = tiny(seed=2).get_submodule("unet.enc.8x8_block0")


def replaced_method(net):
    before = Block._attend
    Block._attend = lambda self, x: -before(self, x)
    return contextlib.closing(_Undo(lambda: setattr(Block, "_attend", before)))


def replaced_call(net):
    MPConv.__call__ = lambda self, *args, **kwargs: torch.nn.Module.__call__(self, *args).abs()
    return contextlib.closing(_Undo(lambda: delattr(MPConv, "__call__")))


def replaced_function(place, name):
    def edit(net):
        before = getattr(place, name)
        setattr(place, name, lambda *args, **kwargs: 0.5 * before(*args, **kwargs))
        return contextlib.closing(_Undo(lambda: setattr(place, name, before)))

    edit.__name__ = f"{place.__name__}.{name}"
    return edit


class Halved(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 0.5 * result if function is torch.conv2d else result


class Halving(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return 0.5 * result if function is torch.ops.aten.convolution.default else result


class Counting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def active(mode):
    def edit(net):
        return mode()

    edit.__name__ = mode.__name__
    return edit


class _Undo:
    def __init__(self, close):
        self.close = close


def edited(path, value):
    def edit(net):
        name, _, attribute = path.rpartition(".")
        setattr(net.get_submodule(name), attribute, value)

    edit.__name__ = path
    return edit


FUNCTIONS = [
    (F, "conv2d"),
    (F, "linear"),
    (torch, "baddbmm"),
    (torch, "cat"),
    (ops, "mp_sum"),
    (ops, "mp_weight"),
    (ops, "modulate_mp_silu"),
    (torch_functional, "attention"),
]
UNUSED = replaced_function(F, "scaled_dot_product_attention")  # for so few pixels
COUNTING = active(Counting)

# Edit of a net: what the message must name.
CODE = {
    **{replaced_function(*where): f"a replaced .*{where[1]}; put" for where in FUNCTIONS},
    UNUSED: "a replaced torch.nn.functional.scaled_dot_product_attention",
    active(Halved): "an active Halved",
    active(Halving): "an active Halving",
    COUNTING: "an active Counting",
    forward_hook: f"{ENC}.conv_res0",
    forward_hook_with_kwargs: f"{ENC}.conv_res0",
    forward_pre_hook: f"{ENC}.conv_res0",
    forward_pre_hook_with_kwargs: f"{ENC}.conv_res0",
    backward_hook: f"{ENC}.conv_res0",
    backward_pre_hook: f"{ENC}.conv_res0",
    global_forward_hook: "torch.nn.modules.module",
    global_forward_pre_hook: "torch.nn.modules.module",
    perturbed_attention: f"_attend of its own in {DEC}",
    own_forward: "forward of its own in the net",
    shadowed_layer: f"conv_res0 of its own in {ENC}",
    subclass_that_evaluates_alike: "NamedNet for the net",
    tensor_subclass: f"Tagged for {ENC}.conv_res0.weight",
    compiled: f"compiled of its own in {ENC}",
    replaced_method: "Block._attend",
    replaced_call: "MPConv.__call__",
}
PARTS = {
    subclass_of_the_net: "OwnNet for the net",
    subclass_by_another_class: "MixedNet for the net",
    subclass_of_block: f"OwnBlock for {DEC}",
    subclass_of_convolution: f"OwnConv for {ENC}.conv_res0",
    low_rank_adapter: f"LowRank for {ENC}.conv_res0",
    parametrised: f"{ENC}.conv_res0",
    weight_normalised: f"{ENC}.conv_res0",
    pruned: f"{ENC}.conv_res0",
    further_layer: "8x8_last",
    edited("unet.label_balance", 0.9): "unet.label_balance = 0.9",
    edited(f"{ENC}.res_balance", 0.8): f"{ENC}.res_balance = 0.8",
    edited(f"{DEC}.attn_balance", 0.8): f"{DEC}.attn_balance = 0.8",
    edited("unet.dec.8x8_block0.concat_balance", 0.1): "concat_balance = 0.1",
    edited(f"{ENC}.clip_act", 0.5): f"{ENC}.clip_act = 0.5",
    edited(f"{DEC}.num_heads", 1): f"{DEC}.num_heads = 1",
}
NO_EFFECT = (
    COUNTING,
    UNUSED,
    subclass_that_evaluates_alike,
    backward_hook,
    backward_pre_hook,
    tensor_subclass,
    compiled,
)


@pytest.mark.parametrize("edit", CODE | PARTS, ids=lambda edit: edit.__name__)
def test_an_edited_net_is_sampled_as_it_is_and_no_engine_is_made_of_it(edit, tmp_path):
    net = tiny().requires_grad_(False)
    plain = sampled(net)
    named = re.escape((CODE | PARTS)[edit]).replace(r"\.\*", ".*")
    with edit(net) or contextlib.nullcontext():
        expected = evaluated(net)
        with pytest.warns(UserWarning, match=f"^sample: .*model must be .*{named}"):
            assert torch.equal(sampled(net), expected)
        assert (relative_error(plain, expected) < 1e-3) == (edit in NO_EFFECT)
        assert not Engine.runs(tiny(), net)
        with pytest.raises(ValueError, match=f"^Engine: model must be .*{named}"):
            Engine(net)
        # A checkpoint holds no code, and hooks are nobody's to expect of it; classes may be.
        refused = contextlib.nullcontext()
        if edit in PARTS:
            refused = pytest.raises(ValueError, match=f"^save: net must be .*{named}")
        with refused:
            checkpoints.save(net, tmp_path / "net.safetensors")


def test_global_edits_were_undone():
    assert Engine.runs(tiny())


@pytest.mark.parametrize("mode", [Halved, Halving])
def test_engines_refuse_to_run_under_modes_that_do_not_see_into_them(mode):
    made = Engine(tiny())
    x = noise()
    with mode():
        for call in (
            lambda: made.model(x, 1.0, LABELS),
            lambda: made.sample(noise=x, class_labels=LABELS, num_steps=2),
        ):
            with pytest.raises(ValueError, match=f"^Engine: modes .* got {mode.__name__}, .*; "):
                call()
    with torch.device("cpu"):  # where tensors go says nothing about the net
        assert Engine.runs(tiny())
        made.model(x, 1.0, LABELS)


def test_a_replaced_unlabelled_is_called(monkeypatch):
    net = tiny()
    guide = unlabelled(net)
    before = sampled(net, guide=guide, guidance=2.0)
    monkeypatch.setattr(Unlabelled, "__call__", lambda self, x, *others: 0 * x)
    with pytest.warns(UserWarning, match=r"got a replaced Unlabelled.__call__"):
        assert not torch.allclose(sampled(net, guide=guide, guidance=2.0), before, atol=0.01)


def test_what_is_said_once_is_not_repeated():
    net = tiny()
    perturbed_attention(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            sampled(net)
    assert len(caught) == 1


@pytest.mark.parametrize("role", ["model", "guide"])
def test_a_perturbed_guide_guides(role):
    """Perturbed-attention guidance: the same weights, with one method replaced."""
    nets = {"model": tiny(), "guide": tiny()}
    perturbed_attention(nets[role])
    with pytest.warns(UserWarning, match=f"{role} must be a plain .*_attend"):
        guided = sampled(nets["model"], guide=nets["guide"], guidance=2.0)
    assert not torch.allclose(guided, sampled(tiny()), atol=0.01)


def test_what_may_differ():
    net = tiny()
    net.encoder = torch.nn.Linear(2, 2)
    net.info = {"nimg": 1}
    net.note = "mine"
    net.train()
    net.register_state_dict_post_hook(lambda *arguments: None)
    net.unet.register_full_backward_hook(lambda *arguments: None).remove()
    assert Engine.runs(net)


@pytest.mark.parametrize("value", [0.25, 1])
def test_sigma_data_is_known_once(value, tmp_path):
    net = tiny()
    before = sampled(net)
    net.sigma_data = value
    assert net.config["sigma_data"] == value
    assert not torch.allclose(sampled(net), before, atol=0.01)
    assert relative_error(sampled(net), evaluated(net)) < 10 * GOLDEN_SAMPLES
    checkpoints.save(net, tmp_path / "net.safetensors")
    again = checkpoints.load(tmp_path / "net.safetensors")
    assert again.sigma_data == value
    assert torch.equal(sampled(again, raw=True), sampled(net))
    with pytest.raises(ValueError, match="Precond: sigma_data must be a positive number, got -1"):
        net.sigma_data = -1
    assert net.sigma_data == value
    with pytest.raises(TypeError, match="Precond: options must be numbers"):
        net.use_fp16 = "yes"


def test_options_that_the_net_was_not_built_from(tmp_path):
    net = tiny()
    net.config["res_balance"] = 0.8
    with pytest.warns(UserWarning, match="res_balance = 0.3 where its options say 0.8"):
        assert torch.equal(sampled(net), evaluated(net))
    with pytest.raises(ValueError, match=r"^save: net must be .*res_balance = 0.3"):
        checkpoints.save(net, tmp_path / "net.safetensors")
    net.config = {"img_resolution": 7}
    with pytest.raises(ValueError, match=r"Engine: model must be .*options .*that build no net"):
        Engine(net)


def test_what_is_prepared_is_another_net_of_the_same_options_and_tensors(monkeypatch):
    """Whatever preparing reads is therefore in the key of kept engines."""
    net, seen = tiny(), []
    net.note = net.unet.note = "mine"

    def watched(source, cell):
        seen.append(source)
        return lower(source, cell)

    lower = prepared.lower
    monkeypatch.setattr(prepared, "lower", watched)
    Engine(net)
    (source,) = seen
    assert type(source) is Precond and not set(source.modules()) & set(net.modules())
    assert not hasattr(source, "note") and not hasattr(source.unet, "note")
    assert not list(as_built.differences(source))
    (config, tensors), (expected_config, expected) = map(as_built.contents, (source, net))
    assert config == expected_config and len(tensors) == len(net.state_dict())
    assert [t.data_ptr() for t in tensors] == [t.data_ptr() for t in expected]
    engine.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_making_an_engine_leaves_no_trace(dtype):
    net = tiny()
    net.unet.enc.eval()
    net.unet.dec.train()  # as where a part is frozen
    calls = []
    net.unet.out_conv.register_state_dict_post_hook(lambda *a: calls.append(a))

    def traces():
        return {
            name: {k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()}
            for name, module in net.named_modules()
        }

    before, versions = traces(), [p._version for p in net.parameters()]
    random = torch.get_rng_state()
    Engine(net, dtype=dtype)
    assert traces() == before and versions == [p._version for p in net.parameters()]
    assert torch.equal(torch.get_rng_state(), random)
