"""`autoguide-fast dataset encode`: images to latents, and back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from dataset_runs import OUTPUTS, Stopped, beside, content, run
from pictures import numbered, picture, pixels, png, write
from tolerances import assert_as_exact

from autoguide_fast.encoders import LatentEncoder, encoder
from autoguide_fast.trainer.data import open_dataset


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A small AutoencoderKL with random weights, as diffusers saves one."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    return folder


def assert_moments(moments, vae, images):
    """Assert that these are the VAE's moments of images [H, W, 3], to rounding."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(vae)
    images = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))
    judges = []
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            drawn_from = model.to(dtype).encode(images.to(dtype) / 255).latent_dist
        judges.append((drawn_from.mean, drawn_from.std))
    for ours, plain, exact in zip(torch.from_numpy(moments).chunk(2, dim=1), *judges, strict=True):
        assert_as_exact(ours, plain, exact)


@pytest.mark.parametrize("out", OUTPUTS)
def test_encode(capsys, tmp_path, vae, out):
    files = numbered(5, [4, 3, 2, 1, 0], size=(32, 32))
    names = sorted(files)[:5]
    files[names[2]] = b"text"
    source = write(tmp_path / "source.zip", files)
    code, printed, err = run(
        capsys, "encode", source, tmp_path / out, "--vae", vae, "--batch-size", 2, "--device", "cpu"
    )
    assert code == 0, err
    assert "4 of 5 images" in printed and "1 broken" in printed and "encode: 100%" in err
    assert f"broken: {source}:{names[2]}: what no decoder knows" in err
    data = open_dataset(tmp_path / out)
    assert (data.channels, data.resolution, data.encoder_name) == (8, 4, "latents")
    moments, labels = data.batch(np.arange(4))
    assert labels.tolist() == [4, 3, 1, 0] and data.num_classes == 5

    assert_moments(moments, vae, [pixels(i, (32, 32)) for i in (0, 1, 3, 4)])


@pytest.mark.parametrize("out", OUTPUTS)
def test_encode_goes_on(tmp_path, vae, out, monkeypatch):
    from autoguide_fast.trainer.data.encode import encode

    source = write(tmp_path / "source", numbered(7, list(range(7)), size=(16, 16)))
    encode(source, tmp_path / ("whole" + out), vae, batch_size=2)
    real, batches = LatentEncoder.moments, []

    def stopping(self, images):
        if len(batches) == 2:
            raise Stopped
        batches.append(len(images))
        return real(self, images)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(LatentEncoder, "moments", stopping)
        encode(source, tmp_path / out, vae, batch_size=2)
    report = encode(source, tmp_path / out, vae, batch_size=2)
    assert (report.resumed, report.written) == (4, 7)
    ours, whole = (content(tmp_path / name) for name in (out, "whole" + out))
    assert ours.keys() == whole.keys() and ours["dataset.json"] == whole["dataset.json"]
    # Another batch, another order of sums.
    for name in (out, "whole" + out):
        moments, _ = open_dataset(tmp_path / name).batch(np.arange(7))
        assert_moments(moments, vae, [pixels(i, (16, 16)) for i in range(7)])


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        (["--vae", "no/such/vae"], {}, "vae must be an AutoencoderKL that diffusers can load"),
        (["--device", "cuda:99"], {}, "device"),
        ([], {"size": (12, 12)}, "size divisible by 8, got 12x12 with 3 channels"),
        ([], {"size": (16, 16), "mode": "L"}, "got 16x16 with 1 channels"),
        ([], {"size": (16, 8)}, "got 16x8 with 3 channels in"),
    ],
)
def test_encode_refuses(capsys, tmp_path, vae, monkeypatch, options, files, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write(tmp_path / "source", numbered(2, **{"size": (16, 16), **files}))
    code, _, err = run(
        capsys, "encode", source, tmp_path / "out", "--vae", vae, "--quiet", *options
    )
    assert code == 2 and message in err.splitlines()[-1] and "Traceback" not in err
    assert beside(tmp_path / "out") == []


def test_encode_names_an_image_of_another_size(capsys, tmp_path, vae):
    files = numbered(2, size=(16, 16)) | {"00000/img00000009.png": png(picture(9))}
    source = write(tmp_path / "source", files)
    code, _, err = run(capsys, "encode", source, tmp_path / "out", "--vae", vae, "--quiet")
    assert code == 2
    assert "img00000009.png must be 16x16 with 3 channels as the first, got 8x8 with 3" in err


def test_encode_needs_diffusers(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    source = write(tmp_path / "source", numbered(2, size=(16, 16)))
    code, _, err = run(capsys, "encode", source, tmp_path / "out", "--quiet", "--device", "cpu")
    assert code == 2 and "pip install 'autoguide_fast[vae]'" in err and err.count("\n") == 1
    assert beside(tmp_path / "out") == []


def test_latent_encoder_draws_and_scales():
    latents = encoder("latents")
    assert isinstance(latents, LatentEncoder)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn([4000, 4, 2, 2], generator=generator)
    mean = torch.tensor(LatentEncoder.raw_mean).reshape(1, 4, 1, 1).expand(4000, 4, 2, 2)
    std = torch.tensor(LatentEncoder.raw_std).reshape(1, 4, 1, 1).expand(4000, 4, 2, 2)
    drawn = latents.encode(torch.cat([mean, std], dim=1), normal)
    assert torch.allclose(drawn, normal / 2, atol=1e-6)  # mean 0, standard deviation 0.5
    torch.manual_seed(1)
    assert not latents.encode(torch.cat([mean, std], dim=1)).equal(drawn)


def test_latent_encoder_decodes(vae):
    from diffusers import AutoencoderKL

    latents = LatentEncoder(vae)
    x = torch.randn([2, 4, 2, 2], generator=torch.Generator().manual_seed(0)) / 2
    raw = x * 2 * torch.tensor(latents.raw_std).reshape(1, 4, 1, 1)
    raw = raw + torch.tensor(latents.raw_mean).reshape(1, 4, 1, 1)
    with torch.no_grad():
        wanted = AutoencoderKL.from_pretrained(vae).decode(raw).sample.clamp(0, 1) * 255
    images = latents.decode(x)
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 16, 16)
    assert (images.float() - wanted).abs().max() <= 1 and images.float().std() > 1


def test_latents_are_decoded_a_few_at_a_time(vae):
    x = torch.randn([5, 4, 2, 2], generator=torch.Generator().manual_seed(0)) / 2
    latents, sizes = LatentEncoder(vae, images_at_once=2), []
    latents.load().decoder.register_forward_hook(lambda net, given, made: sizes.append(len(made)))
    images = latents.decode(x)
    assert sizes == [2, 2, 1]
    alone = torch.cat([LatentEncoder(vae).decode(each[None]) for each in x])
    assert (images.float() - alone.float()).abs().max() <= 1
    assert latents.decode(x[:0]).shape == (0, 3, 16, 16)


def test_decoding_has_a_type_of_its_own(vae):
    x = torch.randn([2, 4, 2, 2], generator=torch.Generator().manual_seed(0)) / 2
    latents, types = LatentEncoder(vae, torch.bfloat16), []
    latents.load().decoder.conv_in.register_forward_hook(
        lambda n, g, made: types.append(made.dtype)
    )
    images, precise = latents.decode(x).float(), LatentEncoder(vae).decode(x).float()
    assert types == [torch.bfloat16]
    assert 0 < (images - precise).abs().mean() < 0.05 * precise.std()
    with torch.autocast("cpu", torch.bfloat16):  # the caller's plays no part
        assert torch.equal(LatentEncoder(vae).decode(x).float(), precise)
    with pytest.raises(
        ValueError, match=r"dtype must be torch.float32, float16 or bfloat16, got t"
    ):
        LatentEncoder(vae, torch.int8)
    with pytest.raises(
        ValueError, match=r"LatentEncoder: images_at_once must be at least 1, got 0"
    ):
        LatentEncoder(vae, images_at_once=0)
