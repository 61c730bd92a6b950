"""Snapshots of the reference implementation: what they compute, what is kept, what is refused."""

import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from golden import DATA
from nets import tiny
from safetensors import safe_open
from snapshot_files import Persistent, snapshot

import autoguide_fast
from autoguide_fast import checkpoints, sample
from autoguide_fast.checkpoints import read_statistics
from autoguide_fast.cli import main
from autoguide_fast.encoders import LatentEncoder, PixelEncoder
from autoguide_fast.toy import ToyModel


@pytest.fixture(autouse=True)
def canary(monkeypatch, tmp_path_factory):
    """Fails a test in which the source in a snapshot was executed."""
    path = tmp_path_factory.mktemp("canary") / "executed"
    monkeypatch.setenv("AGF_CANARY", str(path))
    yield
    assert not path.exists(), "code of the snapshot was executed"


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("name", ["pixels-labelled", "latents-unlabelled"])
def test_snapshots_compute_what_the_reference_does(name):
    net = autoguide_fast.load(DATA / f"{name}.pkl")
    arrays = {k: torch.from_numpy(v) for k, v in np.load(DATA / f"{name}.npz").items()}
    denoised = net(arrays["x"], arrays["sigma"], arrays.get("labels"))
    assert relative(denoised, arrays["denoised"]) < 3e-6
    assert not net.training and net.config["use_fp16"] and net.sigma_data == 0.5
    assert isinstance(net.encoder, PixelEncoder if "labels" in arrays else LatentEncoder)
    assert net.config["dropout"] == (0 if "labels" in arrays else 0.1)
    trained = net.info["trained"]
    assert trained["loss"]["P_mean"] == -0.8 and trained["loss"]["P_std"] == 1.6
    assert trained["dataset"]["use_labels"] is ("labels" in arrays)


def test_the_toy_computes_what_the_reference_does():
    toy = autoguide_fast.load(DATA / "toy.pkl")
    arrays = {k: torch.from_numpy(v) for k, v in np.load(DATA / "toy.npz").items()}
    x, sigma = arrays["x"], arrays["sigma"]
    assert isinstance(toy, ToyModel)
    assert relative(toy.log_density(x, sigma), arrays["logp"]) < 3e-6
    assert relative(toy.score(x, sigma), arrays["score"]) < 3e-6
    assert relative(toy(x, sigma), x + sigma**2 * arrays["score"]) < 3e-6
    points = sample(toy, noise=torch.randn(5, 2), num_steps=8, sigma_max=5)
    assert points.shape == (5, 2)


def test_reference_statistics(tmp_path):
    found = read_statistics(DATA / "reference-statistics.pkl")
    assert set(found) == {"fid", "fd_dinov2"}
    for values in found.values():
        assert values["mu"].shape == (16,) and values["mu"].dtype == np.float64
        assert np.allclose(values["sigma"], values["sigma"].T)
        assert (np.linalg.eigvalsh(values["sigma"]) > -1e-9).all()
    np.savez(tmp_path / "s.npz", **found["fid"])
    again = read_statistics(tmp_path / "s.npz")["fid"]
    assert all(np.array_equal(again[k], found["fid"][k]) for k in ("mu", "sigma"))
    for path in (DATA / "reference-statistics.pkl",):
        with pytest.raises(ValueError, match="no network in `ema` but the keys fid, fd_dinov2"):
            autoguide_fast.load(path)
    with pytest.raises(ValueError, match="instead of mu and sigma"):
        read_statistics(DATA / "pixels-labelled.pkl")


@pytest.mark.parametrize(
    ("protocol", "dtype"),
    [(3, torch.float16), (4, torch.float16), (4, torch.float32), (5, torch.bfloat16)],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_dim": 0, "dropout": 0.2},
        {"channel_mult": [1, 3], "channel_mult_noise": 2, "channel_mult_emb": 3},
        {"sigma_data": 0.7, "use_fp16": True, "clip_act": None, "logvar_channels": 32},
    ],
)
def test_nets_of_many_kinds_come_back(protocol, dtype, options, tmp_path):
    net = tiny(**options)
    path = tmp_path / "net.pkl"
    path.write_bytes(snapshot(net, dtype, protocol))
    again = autoguide_fast.load(path)
    assert again.config == net.config
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.to(dtype).float()), name


def test_weights_in_any_layout_come_back(tmp_path):
    net = tiny().to(memory_format=torch.channels_last)
    (tmp_path / "net.pkl").write_bytes(snapshot(net, torch.float32))
    again = autoguide_fast.load(tmp_path / "net.pkl")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_streams_of_torchs_newer_format_come_back(tmp_path, monkeypatch):
    net, save = tiny(), torch.save

    def newer(obj, f, *args, _use_new_zipfile_serialization=False, **kwargs):
        return save(obj, f, *args, **kwargs)

    monkeypatch.setattr(torch, "save", newer)
    data = snapshot(net, torch.float32)
    assert b"PK\x03\x04" in data
    (tmp_path / "net.pkl").write_bytes(data)
    again = autoguide_fast.load(tmp_path / "net.pkl")
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_old_and_new_numpy(core, tmp_path):
    data = pickle.dumps({"mu": np.zeros(3), "sigma": np.eye(3, dtype=np.float32)}, 4)
    other = [b"numpy.core.multiarray", b"numpy._core.multiarray"]
    (found,) = [name for name in other if name in data]
    data = data.replace(b"\x8c" + bytes([len(found)]) + found, b"\x8c" + bytes([len(core)]) + core)
    frame = data.index(b"\x95")
    size = len(data) - frame - 9
    data = data[: frame + 1] + size.to_bytes(8, "little") + data[frame + 9 :]
    (tmp_path / "s.pkl").write_bytes(data)
    assert np.array_equal(read_statistics(tmp_path / "s.pkl")["fid"]["sigma"], np.eye(3))


def changed(path, value):
    """What changes an attribute, named by its path, of the tree of a snapshot."""

    def change(tree):
        *steps, last = path.split("/")
        at = tree
        for step in steps:
            at = at.state["_modules"][step] if isinstance(at, Persistent) else at[step]
        (at.state if isinstance(at, Persistent) else at)[last] = value

    return change


FORKS = [
    ({"change": changed("ema/ratio_fn", "sigmoid")}, "unknown attribute Precond.ratio_fn"),
    ({"change": changed("ema/unet/gamma", 0.5)}, "unknown attribute UNet.gamma"),
    ({"change": changed("ema/label_dim", 7)}, "Precond.label_dim as 7, which its options do not"),
    ({"change": changed("ema/unet/label_balance", 0.25)}, "UNet.label_balance as 0.25"),
    ({"change": changed("ema/_init_args", (8, 2, 5))}, "built with options that have no name"),
    ({"change": changed("ema/unet/_forward_hooks", {0: "f"})}, "hooks in UNet._forward_hooks"),
    ({"ema": Persistent("ECMPrecond")}, "a network of class ECMPrecond instead of Precond"),
    ({"ema": None}, "no network in `ema` but the keys ema, encoder, loss_fn, dataset_kwargs"),
    ({"encoder": Persistent("FluxEncoder")}, "an encoder of class FluxEncoder"),
    (
        {"encoder": Persistent("StandardRGBEncoder", _init_kwargs={"gamma": 2})},
        "the unknown option gamma of StandardRGBEncoder",
    ),
    (
        {"encoder": Persistent("StabilityVAEEncoder", _init_kwargs={"raw_std": [1, 1, 1, 1]})},
        r"an encoder whose raw_std is \[1, 1, 1, 1\] instead of",
    ),
    (
        {"encoder": Persistent("StabilityVAEEncoder", scale=np.ones(4, np.float32))},
        "an encoder whose scale is not that of its options",
    ),
]
OPTIONS = [
    ({"discriminator": True}, "the unknown option discriminator of Precond"),
    ({"mapping_type": "positional"}, "the unknown option mapping_type of Precond"),
    ({"model_channels": 16}, r"the weight .* where its options build"),
    ({"num_blocks": 2}, "no weight unet.enc.8x8_block1"),
    ({"num_blocks": 10**9}, "the option num_blocks as 1000000000 with"),
    ({"channel_mult": [1] * 100}, "the option channel_mult as a list"),
    ({"model_channels": 10**8}, "the weight|options that build no network"),
    ({"model_channels": 10**15}, "the option model_channels as 1000000000000000"),
    ({"img_resolution": "8"}, "the option img_resolution as 8"),
    ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter must be \[1, 1\], got \[1, 3, 3, 1\]"),
    ({"label_dim": 0}, "an? unknown weight|class MPConv|label_dim as 5"),
    ({"channels_per_head": 3}, "channels_per_head must split"),
]


@pytest.mark.parametrize(("made", "message"), FORKS, ids=[m[:40] for _, m in FORKS])
def test_forks_are_refused_by_what_differs(made, message, tmp_path):
    path = tmp_path / "fork.pkl"
    path.write_bytes(snapshot(tiny(), **made))
    with pytest.raises(ValueError, match=rf"^load: .*fork.pkl must be .*, got .*{message}.*; use"):
        autoguide_fast.load(path)


@pytest.mark.parametrize(("option", "message"), OPTIONS, ids=[m[:40] for _, m in OPTIONS])
def test_options_that_do_not_fit_are_refused_by_name(option, message, tmp_path):
    net = tiny()
    path = tmp_path / "fork.pkl"
    path.write_bytes(snapshot(net, options=net.config | option))
    with pytest.raises(ValueError, match=rf"^load: .*fork.pkl must be .*, got .*{message}.*; use"):
        autoguide_fast.load(path)


def test_forks_whose_options_fit_are_taken(tmp_path):
    """Another loss, other facts, and nothing else that would change what is computed."""
    net = tiny()
    path = tmp_path / "fork.pkl"
    loss = Persistent("DDOLoss", beta=0.05, alpha=4.0, inner=Persistent("Thing"))
    path.write_bytes(snapshot(net, torch.float32, loss_fn=loss, cur_nimg=1000))
    again = autoguide_fast.load(path)
    assert torch.equal(again.unet.out_gain, net.unet.out_gain)
    assert again.info["trained"]["loss"] == {"class_name": "DDOLoss", "beta": 0.05, "alpha": 4.0}
    assert again.info["trained"]["cur_nimg"] == 1000


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = tiny()
    with torch.no_grad():
        net.unet.out_gain.fill_(torch.nan)
    path = tmp_path / "net.pkl"
    path.write_bytes(snapshot(net))
    with pytest.raises(ValueError, match=r"NaN or infinity in unet.out_gain"):
        autoguide_fast.load(path)
    with pytest.raises(ValueError, match=r"finite .* others in unet.out_gain"):
        checkpoints.convert(path, tmp_path / "net.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["net.pkl"]


# --- sampling and converting --------------------------------------------------------------------


def test_snapshots_are_sampled_and_converted(tmp_path, capsys):
    source, path = DATA / "pixels-labelled.pkl", tmp_path / "net.safetensors"
    assert main(["convert", str(source), str(path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "3 channels of 16x16, 10 classes, encoder pixels, from" in out
    ours, theirs = autoguide_fast.load(path), autoguide_fast.load(source)
    assert ours.config == theirs.config and isinstance(ours.encoder, PixelEncoder)
    origin = ours.info.pop("converted_from")
    assert origin["name"] == source.name and origin["bytes"] == source.stat().st_size
    assert len(origin["sha256"]) == 64 and ours.info == theirs.info
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float16}  # noqa: SIM118
    options = {"guidance": 1.5, "seeds": range(3), "num_steps": 3}
    a, b = sample(path, path, **options), sample(source, source, **options)
    assert torch.equal(a, b) and a.dtype == torch.uint8 and a.shape == (3, 3, 16, 16)
    folder = tmp_path / "images"
    command = ["sample", "--model", str(source), "--seeds", "0-1", "--steps", "2", "--quiet"]
    assert main([*command, "--out", str(folder)]) == 0
    assert len(list(folder.glob("00000/*.png"))) == 2


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("digits", "a.safetensors", "source must be a snapshot of the reference implementation"),
        (DATA / "toy.pkl", "a.safetensors", "must hold a network for images"),
        (DATA / "pixels-labelled.pkl", ".", "path must be a file, got the folder"),
        (DATA / "pixels-labelled.pkl", DATA / "pixels-labelled.pkl", "must not be the source"),
        ("absent.pkl", "a.safetensors", "an existing file, got 'absent.pkl'"),
        (DATA / "reference-statistics.pkl", "a.safetensors", "no network in `ema`"),
    ],
)
def test_what_cannot_be_converted(source, path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^convert: .*{message}"):
        checkpoints.convert(source, path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_not_blamed_on_the_snapshot(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "net.safetensors"
    with pytest.raises(
        OSError, match=f"convert: path must be a file that can be written, .*{path}"
    ):
        checkpoints.convert(DATA / "pixels-labelled.pkl", path)


def test_converting_takes_the_memory_of_a_tensor_not_of_the_file(tmp_path):
    net = tiny(model_channels=96)
    source = tmp_path / "net.pkl"
    source.write_bytes(snapshot(net, torch.float32))
    largest = max(t.nbytes for t in net.state_dict().values())
    del net
    tracemalloc.start()
    checkpoints.convert(source, tmp_path / "net.safetensors")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.stat().st_size > 6 * largest
    assert peak < 2.5 * largest + (2 << 20)


def test_a_file_is_known_by_its_contents(tmp_path):
    """Whatever its name: a snapshot without one, and one of ours that is called a pickle."""
    (tmp_path / "snapshot").write_bytes((DATA / "pixels-labelled.pkl").read_bytes())
    assert autoguide_fast.load(tmp_path / "snapshot").img_channels == 3
    checkpoints.save(tiny(), tmp_path / "net.pkl")
    assert autoguide_fast.load(tmp_path / "net.pkl").img_channels == 2


def test_a_stream_of_a_whole_net_is_named(tmp_path):
    torch.save({"model": torch.ones(3)}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"got an archive, as torch.save writes it; use one"):
        autoguide_fast.load(tmp_path / "net.pt")
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(1, 1), buffer)
    (tmp_path / "net.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"got an archive, as torch.save writes it; use one"):
        autoguide_fast.load(tmp_path / "net.pkl")
