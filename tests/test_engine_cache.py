"""Kept engines: nobody gets another net's images, and nobody waits for an engine twice."""

import threading
import time

import numpy
import pytest
import torch
from nets import tiny
from test_as_built import sampled

import autoguide_fast
from autoguide_fast import as_built, engine
from autoguide_fast.encoders import PixelEncoder
from autoguide_fast.engine import cache
from autoguide_fast.engine.digest import digest, sums


@pytest.fixture(autouse=True)
def nothing_kept():
    engine.clear()
    yield
    engine.clear()


def negated(net):
    net.unet.out_conv.weight.neg_()


def swapped_columns(net):
    weight = net.unet.emb_label.weight
    weight[:, [0, 1]] = weight[:, [1, 0]]


def swapped_elements(net):
    weight = net.unet.out_conv.weight.view(-1)
    weight[[0, 1]] = weight[[1, 0]]


def turned(net):
    weight = net.unet.get_submodule("enc.8x8_block0.conv_res0").weight
    weight.copy_(weight.flip(2, 3))


def swapped_layers(net):
    block = net.unet.get_submodule("enc.8x8_block0")
    block.conv_res0, block.conv_res1 = block.conv_res1, block.conv_res0


def swapped_gains(net):
    a, b = net.unet.get_submodule("enc.8x8_block0"), net.unet.get_submodule("dec.4x4_in0")
    a.emb_gain, b.emb_gain = b.emb_gain, a.emb_gain


def next_number(net):
    gain = net.unet.out_gain
    gain.copy_(torch.nextafter(gain, gain + 1))


def by_way_of_numpy(net):
    net.unet.out_conv.weight.detach().numpy()[:] *= -2


def by_way_of_data(net):
    net.unet.out_conv.weight.data[0, 0] = 2.0


def buffers(net):
    net.unet.emb_fourier.phases.add_(1)


EDITS = [
    negated,
    swapped_columns,
    swapped_elements,
    turned,
    swapped_layers,
    swapped_gains,
    next_number,
    by_way_of_numpy,
    by_way_of_data,
    buffers,
]


def digest_of_sums(tensors):
    return sums(tensors).numpy().tobytes()


def contents(net):
    return as_built.contents(net)[1]


@pytest.mark.parametrize("function", [digest, digest_of_sums])
def test_every_bit_counts_where_it_stands(function):
    seen = {function(contents(tiny().requires_grad_(False)))}
    for edit in EDITS:
        net = tiny().requires_grad_(False)
        edit(net)
        seen.add(function(contents(net)))
    assert len(seen) == 1 + len(EDITS)
    zeros = [torch.zeros(3), torch.zeros(2, 0), torch.zeros(200_000)]
    for i in (0, 1, 65_535, 65_536, 131_071, 199_999):
        for value in (-0.0, 1e-45, float("nan")):
            changed = zeros[2].clone()
            changed[i] = value
            seen.add(function([*zeros[:2], changed]))
    nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)  # with a payload
    seen |= {function([t]) for t in (nan, torch.tensor([float("nan")]))}
    assert len(seen) == 1 + len(EDITS) + 18 + 2


@pytest.mark.parametrize("function", [digest, digest_of_sums])
def test_strides_do_not_count(function):
    net = tiny().requires_grad_(False)
    expected = function(contents(net))
    net.to(memory_format=torch.channels_last)
    weight = net.unet.out_gain
    net.unet.out_gain = torch.nn.Parameter(weight.repeat(4)[::2][1], requires_grad=False)
    assert function(contents(net)) == expected


def test_groups_of_a_gpus_weights(monkeypatch):
    """However they are gathered, the factors of a row are the same."""
    tensors = [torch.randn(n) for n in (70_000, 3, 65_536, 200_000, 0, 1)]
    expected = sums([torch.cat(tensors)])
    assert torch.equal(sums(tensors), expected)
    monkeypatch.setattr("autoguide_fast.engine.digest._GROUP", 1 << 17)
    few = sums(tensors)
    assert few.shape[1] == 2 and len(few) >= len(expected)
    tensors[3][199_999] += 1
    assert not torch.equal(sums(tensors), few)


@pytest.mark.parametrize("edit", EDITS)
def test_sample_sees_every_edit_and_forgets_it_for_other_nets(edit):
    options = {"num_steps": 3, "sigma_max": 2.0}
    pristine = sampled(tiny(), **options)
    net = tiny().requires_grad_(False)
    assert torch.equal(sampled(net, **options), pristine)
    edit(net)
    value = sampled(net, **options)
    engine.clear()
    assert torch.equal(sampled(net, **options), value)
    if edit is not next_number:
        assert not torch.allclose(value, pristine, atol=1e-3)
    assert torch.equal(sampled(tiny(), **options), pristine)


OPTIONS = {
    "label_balance": 0.9,
    "concat_balance": 0.1,
    "res_balance": 0.8,
    "attn_balance": 0.8,
    "clip_act": 0.5,
    "sigma_data": 0.25,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_count(option):
    """Nets of the same weights."""
    other = tiny(**{option: OPTIONS[option]})
    assert digest(contents(other)) == digest(contents(tiny()))
    kept = engine.cached(tiny())
    assert engine.cached(other) is not kept
    assert engine.cached(tiny()) is kept


def test_the_guide_counts():
    net, guide, other = tiny(), tiny(seed=1), tiny(seed=2)
    pairs = [
        (net, None),
        (net, guide),
        (net, other),
        (guide, net),
        (net, net),
        (net, autoguide_fast.unlabelled(net)),
        (autoguide_fast.unlabelled(net), net),
    ]
    keys = {cache._key(*pair, torch.float32) for pair in pairs}
    assert len(keys) == len(pairs)
    assert engine.cached(net, guide) is not engine.cached(net, other)
    options = {"guidance": 2.0, "num_steps": 3, "sigma_max": 2.0}
    images = {seed: sampled(net, guide=tiny(seed=seed), **options) for seed in (1, 2)}
    assert not torch.allclose(images[1], images[2], atol=1e-3)
    for seed in (2, 1):
        assert torch.equal(sampled(net, guide=tiny(seed=seed), **options), images[seed])


def test_place_type_and_instruction_set_count(isa):
    net = tiny()
    assert cache._key(net, None, torch.float32) != cache._key(net, None, torch.float16)
    assert isa in cache._key(net, None, torch.float32)


def test_the_engines_that_were_used_last_are_kept():
    nets = [tiny(seed=seed) for seed in range(cache.LIMIT + 1)]
    engine.clear()
    made = [engine.cached(net) for net in nets[:-1]]
    assert [engine.cached(net) for net in nets[:-1]] == made
    assert engine.cached(nets[0]) is made[0]  # so that the second was not used for longest
    last = engine.cached(nets[-1])
    kept = [nets[0], *nets[2:]]
    assert [engine.cached(net) for net in kept] == [made[0], *made[2:], last]
    assert engine.cached(nets[1]) is not made[1]


def test_half_precision_of_a_net_is_for_gpus():
    """On a CPU such a net computes in float32, alone, as a model and as a guide."""
    whole, half = tiny(), tiny(use_fp16=True)
    assert engine.cached(half).dtype == torch.float32
    assert torch.equal(sampled(half), sampled(whole))
    for pair in ((half, half), (whole, half), (half, whole)):
        assert engine.cached(*pair).dtype == torch.float32


def test_a_kept_engine_knows_no_encoder():
    plain, bright = tiny(), tiny()
    plain.encoder = PixelEncoder()
    bright.encoder = PixelEncoder()
    bright.encoder.decode = lambda x: torch.full_like(x, 255, dtype=torch.uint8)
    assert sampled(plain).float().mean() < 250
    assert engine.cached(plain) is engine.cached(bright)
    assert (sampled(bright) == 255).all()
    assert engine.cached(bright).model.encoder is None and bright.encoder is not None


def test_threads_that_want_the_same_engine_wait_for_one(monkeypatch):
    made, found = [], []

    def slow(*arguments):
        made.append(arguments)
        time.sleep(0.2)
        return make(*arguments)

    make = cache.make_engine
    monkeypatch.setattr(cache, "make_engine", slow)
    nets = [tiny() for _ in range(4)]
    threads = [
        threading.Thread(target=lambda net=net: found.append(engine.cached(net))) for net in nets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(found) == 4 and len(set(map(id, found))) == 1


def test_weights_that_change_while_an_engine_is_made(monkeypatch):
    net = tiny().requires_grad_(False)

    def disturbed(*arguments):
        negated(net)
        return make(*arguments)

    make = cache.make_engine
    monkeypatch.setattr(cache, "make_engine", disturbed)
    engine.cached(net)
    monkeypatch.setattr(cache, "make_engine", make)
    negated(net)
    value = sampled(net)
    engine.clear()
    assert torch.equal(value, sampled(net))


def test_a_digest_is_of_128_bits():
    assert len(digest(contents(tiny()))) == 16
    assert digest([torch.from_numpy(numpy.zeros(0, numpy.float32))]) == digest([])
