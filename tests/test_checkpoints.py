"""Checkpoints: a round trip, the bundled names, and files that are not checkpoints."""

import json

import pytest
import torch
from nets import tiny
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
    path = tmp_path / "new folder" / "net.safetensors"
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


def broken_files(tmp_path):
    """Files that are no checkpoints, and what is said of them."""
    net = tiny()
    weights = {k: v.clone() for k, v in net.state_dict().items()}

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
        (tmp_path / "absent.safetensors", "bundled name .* or an existing file"),
        (plain, "must say how its network is built"),
        (stored("json", weights, "{"), "must be a safetensors file"),
        (stored("null", weights, "null"), "must say how its network is built"),
        (stored("few", few, header), "weights that fit its options"),
        (stored("wide", weights, {"config": wide}), "weights that fit its options"),
        (stored("future", weights, {"config": future}), "wormholes"),
        (stored("encoder", weights, header | {"encoder": "vae"}), "encoder: name must be one of"),
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
        (lambda p: checkpoints.save(tiny(), p, config=1), ValueError, "must not be called config"),
        (lambda p: checkpoints.save(tiny(), p, x=torch.ones(1)), TypeError, "JSON can hold"),
    ],
)
def test_bad_calls(call, error, message, tmp_path):
    with pytest.raises(error, match=message):
        call(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_encoders_by_name():
    assert encoder(None) is None
    assert repr(encoder("pixels")) == "PixelEncoder()"
