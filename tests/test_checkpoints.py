"""Checkpoints: a round trip, the bundled names, and files that are not checkpoints."""

import json
import random
import re

import pytest
import torch
from nets import tiny
from safetensors import safe_open
from safetensors.torch import save_file

import autoguide_fast
from autoguide_fast import checkpoints, sample
from autoguide_fast.checkpoints.bundled import PRETRAINED
from autoguide_fast.encoders import PixelEncoder, encoder


@pytest.fixture
def net():
    net = tiny()
    net.encoder = PixelEncoder()
    return net


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_round_trip(net, tmp_path, kind):
    path = tmp_path / "new folder" / "another" / "net.safetensors"
    info = {"nimg": 1000, "note": "ünïcode", "recommended_guidance": 1.5}
    checkpoints.save(net.train(), kind(path), **info)
    again = autoguide_fast.load(kind(path))
    assert again.config == net.config and again.info == info
    assert isinstance(again.encoder, PixelEncoder)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_the_file_has_the_permissions_of_any_new_file(net, tmp_path):
    (tmp_path / "other").touch()
    checkpoints.save(net, tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_no_encoder_and_no_info(tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.save(tiny(), path)
    net = checkpoints.load(path)
    assert net.encoder is None and net.info == {}


def test_half_precision_storage(net, tmp_path):
    sizes = []
    for dtype in (None, torch.float16):
        path = tmp_path / f"{dtype}.safetensors"
        checkpoints.save(net, path, dtype=dtype)
        sizes.append(path.stat().st_size)
    again = checkpoints.load(path)
    assert sizes[1] < 0.65 * sizes[0]
    assert all(p.dtype == torch.float32 for p in again.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())


def test_shared_and_strided_weights_are_saved(net, tmp_path):
    net = net.to(memory_format=torch.channels_last)
    blocks = net.unet.dec
    name, other = "4x4_in0", "4x4_in1"
    blocks[other].conv_res0.weight = blocks[name].conv_res0.weight
    whole = torch.randn(2, *blocks[name].conv_res1.weight.shape)
    for part, block in zip(whole, (blocks[name], blocks[other]), strict=True):
        block.conv_res1.weight = torch.nn.Parameter(part)
    checkpoints.save(net, tmp_path / "net.safetensors")
    again = checkpoints.load(tmp_path / "net.safetensors").state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(again[name], value), name


def spoilt(weight, value):
    net = tiny()
    with torch.no_grad():
        net.get_parameter(weight).view(-1)[:1] = value
    return net


WEIGHT = "unet.enc.8x8_block0.conv_res0.weight"


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: spoilt(WEIGHT, 1e5), {"dtype": torch.float16}, ValueError, f"which {WEIGHT} leav"),
        (lambda: spoilt(WEIGHT, float("nan")), {}, ValueError, f"NaN or infinity in {WEIGHT}"),
        (lambda: spoilt("unet.out_gain", torch.inf), {}, ValueError, "in unet.out_gain"),
        *(
            (tiny, {"dtype": dtype}, TypeError, "dtype must be one of torch.float32, torch.float16")
            for dtype in (torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64, "float16")
        ),
        (lambda: tiny().to("meta"), {}, ValueError, "got unet.out_gain on the device meta"),
        (lambda: tiny().to(torch.float8_e5m2), {}, ValueError, "got unet.out_gain in torch.float8"),
    ],
)
def test_weights_that_would_not_come_back_are_not_saved(make, options, error, message, tmp_path):
    with pytest.raises(error, match="save: .*" + message):
        checkpoints.save(make(), tmp_path / "net.safetensors", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [WEIGHT, "unet.emb_noise.weight"])
def test_rows_that_vanish_in_float16_are_not_saved_in_it(name, tmp_path):
    net = tiny()
    with torch.no_grad():
        net.get_parameter(name)[1] = 0
        net.unet.out_gain.fill_(1e-9)  # nearly 0, and stays that
    checkpoints.save(net, tmp_path / "net.safetensors", dtype=torch.float16)
    with torch.no_grad():
        net.get_parameter(name)[0] *= 1e-9  # only its direction counts
    with pytest.raises(ValueError, match=f"dtype must have the range of .* which {name} leaves"):
        checkpoints.save(net, tmp_path / "net.safetensors", dtype=torch.float16)
    checkpoints.save(net, tmp_path / "net.safetensors", dtype=torch.bfloat16)


def test_nets_that_are_not_as_their_options_say_are_not_saved(tmp_path):
    wrapped, wide, decoding = tiny(), tiny(), tiny()
    torch.nn.utils.parametrizations.weight_norm(wrapped.unet.out_conv)
    wide.unet.out_conv.weight = torch.nn.Parameter(torch.ones(4, 8, 3, 3))
    decoding.encoder = type("Mine", (PixelEncoder,), {})()
    for net, message in (
        (wrapped, r"got weights too many or too few \(weight\) in unet.out_conv; merge"),
        (wide, r"got \[4, 8, 3, 3\] for unet.out_conv.weight; its options make it \[2, 8"),
        (decoding, "net.encoder must be None or one of .* got Mine"),
    ):
        with pytest.raises(ValueError, match="save: .*" + message):
            checkpoints.save(net, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_loading_draws_no_random_numbers_and_keeps_nothing_of_the_file(net, tmp_path):
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path)
    state = torch.get_rng_state()
    again = checkpoints.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    with path.open("r+b") as file:  # written over in place
        file.seek(-4096, 2)
        file.write(b"\1" * 4096)
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_sampling_from_files(net, tmp_path):
    paths = {"model": tmp_path / "main.safetensors", "guide": tmp_path / "guide.safetensors"}
    checkpoints.save(net, paths["model"])
    guide = tiny(seed=1)
    checkpoints.save(guide, paths["guide"])
    options = {"guidance": 1.5, "seeds": range(2), "num_steps": 3, "device": "cpu"}
    images = sample(**paths, **options)
    assert images.dtype == torch.uint8
    assert torch.equal(images, sample(net, guide, **options))
    assert torch.equal(sample(str(paths["model"]), guide, **options), images)
    assert sample(**paths, raw=True, **options).dtype == torch.float32


def test_a_file_that_goes_wrong_is_named(tmp_path):
    net = tiny(clip_act=None)
    torch.nn.init.constant_(net.unet.out_gain, 3e38)
    path = tmp_path / "broken.safetensors"
    checkpoints.save(net, path)
    with pytest.raises(FloatingPointError, match=r"model '.*broken.safetensors' must be finite"):
        sample(path, seeds=[0], num_steps=2, device="cpu")


def test_interrupted_save_leaves_the_old_file(net, tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path, version=1)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(net, path, version=2)
    assert checkpoints.load(path).info == {"version": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_bundled_names_have_files():
    assert set(checkpoints.BUNDLED) == {path.stem for path in PRETRAINED.glob("*.safetensors")}
    assert all(
        guide is None or guide in checkpoints.BUNDLED for guide in checkpoints.BUNDLED.values()
    )
    assert checkpoints.bundled_guide("digits") == "digits-guide"
    assert checkpoints.bundled_path("somewhere/else") is None


def test_bundled_pair_by_name():
    options = {"guidance": 1.5, "class_labels": 3, "seeds": range(2), "num_steps": 2}
    images = sample("digits", **options)
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.uint8
    for guide in ("digits", "digits-guide", autoguide_fast.load("digits-guide")):
        assert torch.equal(sample("digits", guide, **options), images)
    own = autoguide_fast.load("digits")
    assert torch.equal(sample(own, "digits", **options), images)
    with pytest.raises(ValueError, match="guide must be given"):
        sample(own, **options)
    with pytest.raises(ValueError, match="guide must be given"):
        sample("digits-uncond", guidance=2, seeds=[0])


def test_by_name_a_guide_is_loaded_only_where_it_runs(monkeypatch):
    def noted(path, *options):
        loaded.append(path.stem)
        return load(path, *options)

    loaded, load = [], checkpoints.load
    monkeypatch.setattr(checkpoints, "load", noted)
    for guidance, names in ((1, ["digits"]), (2, ["digits", "digits-guide"])):
        loaded.clear()
        sample("digits", guidance=guidance, seeds=[0], num_steps=1)
        assert loaded == names


# Options of nets that cannot be built, or not in an hour, and what is said of them.
FIT = "weights that fit its options, got "
ENDLESS = [
    ({"num_blocks": 10**9}, FIT + "[0-9]+ tensors for a network of 16000000024 or more"),
    ({"num_blocks": 10**4000}, FIT + "[0-9]+ tensors for a network of 1600000"),
    ({"channel_mult": [1] * 10**5}, FIT + ".* img_resolution must be divisible"),
    ({"channel_mult": [1] * 10**5, "img_resolution": 2**100}, FIT + "[0-9]+ tensors for a network"),
    ({"model_channels": 10**9}, FIT),
    ({"model_channels": 10**30}, FIT),
    ({"channel_mult": [10**9, 1]}, FIT),
    ({"channel_mult_emb": 10**9}, FIT),
    ({"img_channels": 10**12}, FIT),
    ({"img_resolution": 2**4000}, FIT),
    ({"label_dim": 10**15}, FIT),
    ({"logvar_channels": 10**15}, FIT),
    ({"attn_resolutions": [3] * 10**6 + [8]}, FIT),
]


def broken_files(tmp_path):
    """Files that are no checkpoints, and what is said of them."""
    net = tiny()
    weights = {k: v.clone() for k, v in net.state_dict().items()}

    def changed(change):
        return weights | {WEIGHT: change(weights[WEIGHT])}

    def stored(name, tensors, header):
        header = header if isinstance(header, str) else json.dumps(header)
        save_file(tensors, tmp_path / name, metadata={"autoguide_fast": header})
        return tmp_path / name

    text = tmp_path / "text.safetensors"
    text.write_text("not a checkpoint")
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    plain = tmp_path / "plain.safetensors"
    save_file(weights, plain)
    few = {k: v for k, v in weights.items() if "conv_res0" not in k}
    wide = net.config | {"model_channels": 16}
    future = net.config | {"wormholes": 3}
    header = {"config": net.config}
    return [
        (text, "must be a safetensors file"),
        (empty, "must be a safetensors file"),
        (tmp_path, "must be a file, got the folder"),
        (tmp_path / "absent.safetensors", "or an existing file, got '.*absent.safetensors'; check"),
        (plain, "must say how its network is built"),
        (stored("json", weights, "{"), "must be a safetensors file"),
        (stored("null", weights, "null"), "must say how its network is built"),
        (stored("few", few, header), f"got no {WEIGHT} and {len(weights) - len(few) - 1} more;"),
        (stored("wide", weights, {"config": wide}), "weights that fit its options"),
        (stored("future", weights, {"config": future}), "wormholes"),
        (stored("encoder", weights, header | {"encoder": "vae"}), "encoder: name must be one of"),
        (stored("list", weights, header | {"encoder": ["pixels"]}), "encoder: name must be one of"),
        (stored("int8", changed(lambda w: w.to(torch.int8)), header), f"{WEIGHT} in torch.int8"),
        (stored("fp8", changed(lambda w: w.to(torch.float8_e4m3fn)), header), f"got {WEIGHT} in "),
        (stored("nan", changed(lambda w: w * float("nan")), header), f"NaN .* in {WEIGHT}"),
        (stored("huge", changed(lambda w: w.double() + 1e300), header), f"NaN .* in {WEIGHT}"),
        (stored("shape", changed(lambda w: w[:, :4].clone()), header), r"\[8, 4, 3, 3\] instead"),
        (stored("more", weights | {"extra": torch.ones(1)}, header), "got the unknown extra;"),
        (stored("digits", weights, '{"config": {"a": ' + "9" * 5000 + "}}"), "cannot be read"),
        (stored("deep", weights, '{"config": ' + "[" * 100_000), "cannot be read"),
        *[
            (stored(f"endless{number}", weights, {"config": net.config | change}), message)
            for number, (change, message) in enumerate(ENDLESS)
        ],
        (stored("bad", weights, {"config": net.config | {"num_blocks": -1}}), "num_blocks must be"),
        (tmp_path / ("a" * 5000), "bundled name .* or an existing file, got 'a{100}'; check"),
    ]


def test_files_that_are_no_checkpoints(tmp_path):
    for path, message in broken_files(tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            checkpoints.load(path)
        assert "\n" not in str(caught.value) and "; " in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p: checkpoints.load(3),
            TypeError,
            "path_or_name must be a name or a path, got int",
        ),
        (
            lambda p: checkpoints.load("digits", "cuda:77"),
            ValueError,
            "load: device must be present",
        ),
        (lambda p: checkpoints.save(torch.nn.Linear(1, 1), p), TypeError, "net must be a Precond"),
        (lambda p: checkpoints.save(tiny(), 3), TypeError, "path must be a string or a path, got"),
        (lambda p: checkpoints.save(tiny(), p.parent), ValueError, "must be a file, got the f"),
        (lambda p: checkpoints.save(tiny(), p, config=1), ValueError, "must not be called config"),
        (lambda p: checkpoints.save(tiny(), p, x=torch.ones(1)), TypeError, "JSON can hold"),
    ],
)
def test_bad_calls(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_is_found(net, tmp_path):
    """In length, header and tensors; one sentence names the file."""
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path, nimg=1000, note="ünïcode")
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    draw = random.Random(0)
    start = data.index(b'"__metadata__"')  # what is said of the tensors follows, much the same
    places = [*range(8), *range(start, start + 900, 2), *draw.sample(range(header), 100)]
    places += [*draw.sample(range(header, len(data)), 100), header, len(data) - 1]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^load: .*net.safetensors must ") as caught:
            checkpoints.load(path)
        assert "\n" not in str(caught.value), place
    path.write_bytes(data)
    checkpoints.load(path)


def test_nets_that_do_not_fit_their_file_cost_no_memory(net, tmp_path, monkeypatch):
    """Options and shapes are compared before a tensor is read or a layer is built."""
    header = json.dumps({"config": net.config | {"num_blocks": 10**9}})
    save_file(net.state_dict(), tmp_path / "net", metadata={"autoguide_fast": header})

    def forbidden(*arguments):
        raise AssertionError

    monkeypatch.setattr("autoguide_fast.checkpoints.native.blank", forbidden)
    monkeypatch.setattr("autoguide_fast.checkpoints.native._weights", forbidden)
    with pytest.raises(ValueError, match="fit its options"):
        checkpoints.load(tmp_path / "net")


def rewritten(data, change):
    """A safetensors file, as bytes, with another header: `change` gets and returns its text."""
    length = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + length].decode()).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def twice(text):
    """The name of one tensor given to another of the same shape, so that it stands there twice."""
    first, second = "unet.enc.8x8_block0.conv_res0.weight", "unet.enc.8x8_block0.conv_res1.weight"
    return text.replace(f'"{first}"', f'"{second}"')


def shaped_twice(text):
    """An entry that stands there once more, with another shape."""
    entry = re.search(r'"unet.out_conv.weight":{[^}]*},?', text)[0]
    other = entry.replace("[2,8,3,3]", "[8,2,3,3]")
    assert other != entry
    return text.replace(entry, entry.rstrip(",") + "," + other)


def overlapping(text):
    """Two tensors in the same bytes."""
    tensors = json.loads(text)
    first, second = "unet.enc.8x8_block0.conv_res0.weight", "unet.enc.8x8_block0.conv_res1.weight"
    tensors[first]["data_offsets"] = tensors[second]["data_offsets"]
    return json.dumps(tensors)


def half_overlapping(text):
    tensors = json.loads(text)
    start, end = tensors["unet.enc.8x8_block0.conv_res0.weight"]["data_offsets"]
    tensors["unet.enc.8x8_block0.conv_res0.weight"]["data_offsets"] = [start - 4, end - 4]
    return json.dumps(tensors)


def beyond(text):
    tensors = json.loads(text)
    tensors["unet.out_gain"]["data_offsets"] = [2**60, 2**60 + 4]
    return json.dumps(tensors)


def two_headers(text):
    tensors = json.loads(text)
    header = json.dumps(tensors["__metadata__"])
    return text.replace('{"__metadata__":', f'{{"__metadata__":{header},"__metadata__":', 1)


@pytest.mark.parametrize(
    "change", [twice, shaped_twice, overlapping, half_overlapping, beyond, two_headers]
)
@pytest.mark.parametrize("checksum", [True, False])
def test_names_and_places_that_are_not_unique(net, tmp_path, change, checksum):
    path = tmp_path / "net.safetensors"
    if checksum:
        checkpoints.save(net, path)
    else:  # as in a file of an earlier version
        header = json.dumps({"config": net.config})
        save_file(net.state_dict(), path, metadata={"autoguide_fast": header})
    checkpoints.load(path)
    data = path.read_bytes()
    assert rewritten(data, lambda text: text) == data
    changed = rewritten(data, change)
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"^load: .*net.safetensors must ") as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_numbers_lie_at_multiples_of_their_size(net, tmp_path):
    """As whoever maps the file into memory may expect."""
    layers = (net.unet.out_conv, net.unet.emb_noise)
    for layer, dtype in zip(layers, (torch.float64, torch.float16), strict=True):
        layer.to(dtype)
    sizes = {"F64": 8, "F32": 4, "F16": 2}
    for length in range(10):
        checkpoints.save(net, tmp_path / "net.safetensors", note=length * "a")
        data = (tmp_path / "net.safetensors").read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8:start])
        del tensors["__metadata__"]
        assert {entry["dtype"] for entry in tensors.values()} == set(sizes)
        for name, entry in tensors.items():
            assert (start + entry["data_offsets"][0]) % sizes[entry["dtype"]] == 0, name


def test_equal_nets_make_equal_files(net, tmp_path):
    for name in "abcdef":
        checkpoints.save(net, tmp_path / name, nimg=1000)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


CHANGED = {
    "shape": "fit its options, got .*attn_proj.weight .* instead of .*; it may be damaged",
    "name": "fit its options, got no .*attn_proj.weight; it may be damaged",
    "type": "got others by its checksum: it is damaged, or another",
    "order": "got others by its checksum: it is damaged, or another",
}


@pytest.mark.parametrize("change", CHANGED)
def test_tensors_that_were_changed_are_found(net, tmp_path, change):
    """Also where every byte is there that was, and the file is a good one."""
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path)
    _, tensors = checkpoints.read(path, "test")
    (a, b), *_ = [
        (p, q)
        for p in tensors
        for q in tensors
        if p < q
        and tensors[p].shape == tensors[q].shape
        and tensors[p].ndim == 4
        and not torch.equal(tensors[p], tensors[q])
    ]
    if change == "shape":
        tensors[a] = tensors[a].flatten()
    elif change == "name":
        tensors[a + "x"] = tensors.pop(a)
    elif change == "type":
        tensors[a] = tensors[a].view(torch.int32)
    else:
        tensors[a], tensors[b] = tensors[b], tensors[a]
    with safe_open(path, "pt") as file:
        save_file(tensors, path, metadata=file.metadata())
    with pytest.raises(ValueError, match=CHANGED[change]):
        checkpoints.load(path)


@pytest.mark.parametrize("length", [0, 7, 100, 5000, -1])
def test_a_file_that_was_cut_short_is_named(net, tmp_path, length):
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path)
    path.write_bytes(path.read_bytes()[:length])
    for look in (checkpoints.read, checkpoints.read_header):
        with pytest.raises(ValueError, match=r"net.safetensors .* that cannot be read"):
            look(path, "test")


def test_files_of_earlier_versions_have_no_checksum_and_load(net, tmp_path):
    path = tmp_path / "net.safetensors"
    header = json.dumps({"config": net.config, "encoder": "pixels", "nimg": 3})
    save_file(net.state_dict(), path, metadata={"autoguide_fast": header})
    again = checkpoints.load(path)
    assert again.info == {"nimg": 3} and "checksum" not in checkpoints.read_header(path, "test")
    assert torch.equal(again.unet.out_gain, net.unet.out_gain)


@pytest.mark.parametrize("name", checkpoints.BUNDLED)
def test_bundled_files_have_a_checksum(name):
    assert checkpoints.read_header(checkpoints.bundled_path(name), "test")["checksum"]


def test_what_cannot_be_saved_is_a_sentence(net, tmp_path):
    (tmp_path / "folder").touch()
    with pytest.raises(OSError, match=r"save: path must be a file that can be written, .*; move"):
        checkpoints.save(net, tmp_path / "folder" / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_encoders_by_name():
    assert encoder(None) is None
    assert repr(encoder("pixels")) == "PixelEncoder()"
