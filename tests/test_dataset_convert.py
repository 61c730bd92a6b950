"""`autoguide-fast dataset convert` and `info`, end to end."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from dataset_runs import OUTPUTS, array, beside, content, run
from pictures import npy, numbered, picture, pixels, png, write
from PIL import Image

from autoguide_fast import encoders
from autoguide_fast.trainer.data import crops, open_dataset, zip_output
from autoguide_fast.trainer.data.convert import convert


@pytest.mark.parametrize("out", OUTPUTS)
def test_convert_writes_the_reference_layout(capsys, tmp_path, out):
    files = {
        "dog/x.jpg": b"",
        "cat/b.png": png(picture(0, mode="RGBA")),
        "dog/y.bmp": b"",
        "cat/c.png": png(picture(1, mode="L")),
    }
    source = write(tmp_path / "source", files)
    picture(2).save(source / "dog/x.jpg", quality=95)
    picture(3).save(source / "dog/y.bmp")
    code, printed, err = run(capsys, "convert", source, tmp_path / out)
    assert code == 0, err
    assert printed == f"4 of 4 images are in {tmp_path / out}\n" and "convert: 100%" in err
    found = content(tmp_path / out)
    names = [f"00000/img{i:08d}.png" for i in range(4)]
    assert sorted(found) == [*names, "dataset.json"]
    assert json.loads(found["dataset.json"]) == {
        "labels": [[name, label] for name, label in zip(names, [0, 0, 1, 1], strict=True)],
        "classes": ["cat", "dog"],
    }
    assert np.array_equal(array(found[names[0]]), pixels(0))
    assert np.array_equal(array(found[names[1]]), np.asarray(picture(1, mode="L").convert("RGB")))
    assert np.array_equal(array(found[names[3]]), pixels(3))
    data = open_dataset(tmp_path / out)
    assert data.batch(np.arange(4))[1].tolist() == [0, 0, 1, 1] and data.classes == ["cat", "dog"]
    assert beside(tmp_path / out) == (["out"] if out == "out" else ["out.zip"])


def test_converting_what_was_converted_changes_nothing(tmp_path):
    source = write(tmp_path / "source", numbered(12, list(range(12))))
    for origin, dest in (("source", "a.zip"), ("a.zip", "b"), ("b", "c.zip")):
        convert(tmp_path / origin, tmp_path / dest, workers=3)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    served = [open_dataset(p).batch(np.arange(12)) for p in (source, tmp_path / "c.zip")]
    assert np.array_equal(served[0][0], served[1][0])
    assert np.array_equal(served[0][1], served[1][1])


def test_convert_a_thousand_to_a_folder(tmp_path):
    files = {f"{i:04d}.png": png(picture(i, (2, 2))) for i in range(1002)}
    convert(write(tmp_path / "many", files), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "00000",
        "00001",
        "dataset.json",
    ]
    assert len(list((tmp_path / "out/00000").iterdir())) == 1000
    assert (tmp_path / "out/00001/img00001001.png").exists()
    assert json.loads((tmp_path / "out/dataset.json").read_text()) == {"labels": None}


def test_convert_grey(tmp_path):
    source = write(tmp_path / "source", numbered(2))
    convert(source, tmp_path / "out", channels=1)
    assert np.array_equal(
        open_dataset(tmp_path / "out").batch(np.array([0]))[0][0, 0], picture(0).convert("L")
    )


@pytest.mark.parametrize("out", OUTPUTS)
def test_broken_images_are_named_and_counted(capsys, tmp_path, out):
    files = numbered(6, [0, 1, 2, 3, 4, 5])
    names = sorted(files)[:6]
    files[names[0]] = b"text"
    files[names[3]] = files[names[3]][:60]
    deep = io.BytesIO()
    Image.fromarray(np.zeros([8, 8], np.uint16)).save(deep, format="PNG")
    files[names[4]] = deep.getvalue()
    source = write(tmp_path / "source", files)
    code, printed, err = run(capsys, "convert", source, tmp_path / out)
    assert code == 0 and "Traceback" not in err
    assert "3 of 6 images" in printed and "3 broken, named above" in printed
    for name, reason in ((names[0], "no decoder"), (names[3], ""), (names[4], "mode I;16")):
        assert f"broken: {source / name}: " in err and reason in err
    found = content(tmp_path / out)
    assert json.loads(found["dataset.json"])["labels"] == [[names[i], i] for i in (1, 2, 5)]
    assert len(open_dataset(tmp_path / out)) == 3


def test_nothing_but_broken_images(capsys, tmp_path):
    source = write(tmp_path / "source", {"a.png": b"x", "b.png": b"y"})
    code, _, err = run(
        capsys, "convert", source, tmp_path / "out", "--resolution", "8x8", "--quiet"
    )
    assert code == 2 and "Traceback" not in err
    assert "a.png must be a readable image" in err.splitlines()[-1]
    assert beside(tmp_path / "out") == []


# --- crops ----------------------------------------------------------------------------------------


def steps(width: int, height: int) -> Image.Image:
    """A picture whose red says the column, whose green says the row."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 24), (17, 16), (16, 16)])
@pytest.mark.parametrize("name", ["center-crop", "center-crop-dhariwal"])
def test_crops_cut_out_the_centre(name, width, height):
    """At the target's own size, a crop is a window of the picture, and its centre."""
    cropped = np.asarray(crops.TRANSFORMS[name](steps(width, height), 16, 16)).astype(int)
    left, top = (width - 16) // 2, (height - 16) // 2
    y, x = np.mgrid[:16, :16]
    assert np.array_equal(cropped[..., 0], x + left) and np.array_equal(cropped[..., 1], y + top)


def test_dhariwal_is_box_halving_then_bicubic():
    # 64x96 to 16: halved twice by exact means of 2x2, and no more to resize.
    image = steps(96, 64)
    halved = np.asarray(image).astype(float)
    for _ in range(2):
        halved = sum(halved[a::2, b::2] for a in (0, 1) for b in (0, 1)) / 4
        halved = np.floor(halved + 0.5)
    cropped = np.asarray(crops.center_crop_dhariwal(image, 16, 16)).astype(float)
    assert np.array_equal(cropped, halved[:, 4:20])
    # 40x30 to 16: 30 < 2 * 16, so bicubic alone.
    image = picture(1, (40, 30))
    resized = image.resize((round(40 * 16 / 30), 16), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[:, 2:18]
    assert np.array_equal(np.asarray(crops.center_crop_dhariwal(image, 16, 16)), expected)


def test_wide_crop_lies_between_bars():
    for size in ((16, 12), (16, 9), (32, 9)):
        cropped = np.asarray(crops.center_crop_wide(picture(1, size), 16, 8))
        assert cropped.shape == (16, 16, 3)
        assert not cropped[:4].any() and not cropped[12:].any() and cropped[4:12].any()
    exact = np.asarray(crops.center_crop_wide(steps(16, 10), 16, 8))
    assert exact[4:12, :, 1].tolist() == [[row + 1] * 16 for row in range(8)]


def test_stretch_keeps_all():
    stretched = np.asarray(crops.stretch(steps(32, 16), 16, 16)).astype(int)
    assert stretched.shape == (16, 16, 3)
    assert stretched[0, 0, 0] <= 1 and stretched[0, -1, 0] >= 30  # both ends are there
    assert np.array_equal(stretched[:, 8, 1], np.arange(16))


@pytest.mark.parametrize("transform", crops.TRANSFORMS)
def test_convert_to_a_resolution(capsys, tmp_path, transform):
    files = {
        f"{w}x{h}.png": png(picture(w, (w, h))) for w, h in ((40, 30), (30, 40), (9, 70), (7, 7))
    }
    source = write(tmp_path / "source", files)
    wanted = "16x8" if "wide" in transform else "16x16"
    options = ["--resolution", wanted, "--transform", transform]
    code, printed, err = run(capsys, "convert", source, tmp_path / "out.zip", *options)
    assert code == 0, err
    data = open_dataset(tmp_path / "out.zip")
    assert (data.resolution, len(data)) == (16, 4) and data.batch(np.arange(4))[0].any()
    assert "2 were smaller and have been enlarged" in printed


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transform", "center-crop"], "resolution must be given with a transform"),
        (["--transform", "center-crop", "--resolution", "16x8"], "must be square for center-crop"),
        (["--transform", "center-crop-wide", "--resolution", "16x16"], "must be wider than high"),
        (["--transform", "middle"], "invalid choice: 'middle'"),
        (["--resolution", "64"], "must be WIDTHxHEIGHT such as 64x64, got '64'"),
        (["--resolution", "0x4"], "must be WIDTHxHEIGHT"),
        (["--resolution", "16x16"], "img00000000.png must have the resolution 16x16, got 8x8; add"),
        (["--workers", "0"], "must be an integer >= 1"),
    ],
)
def test_bad_options_are_one_line(capsys, tmp_path, arguments, message):
    source = write(tmp_path / "source", numbered(3))
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert beside(tmp_path / "out") == []


def test_pictures_of_several_sizes_are_refused(capsys, tmp_path):
    files = {"a.png": png(picture(0)), "b.png": png(picture(1, (9, 8)))}
    source = write(tmp_path / "source", files)
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 2
    assert "b.png must have the resolution 8x8, got 9x8; add --transform center-crop" in err
    # Nothing that would stand in the way of the next command is left.
    assert beside(tmp_path / "out") == []
    (source / "a.png").write_bytes(files["b.png"])
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 2 and "pictures must be square, got 9x8 in " in err


def test_output_that_cannot_be_written(capsys, tmp_path):
    source = write(tmp_path / "source", numbered(3))
    (tmp_path / "file").write_text("")
    for dest, message in (
        (tmp_path / "file/out", "dest must be a place that can be written"),
        (tmp_path / "file", "dest must not exist"),
        (source / "out", "dest must lie outside the source"),
    ):
        code, _, err = run(capsys, "convert", source, dest, "--quiet")
        assert code == 2 and message in err and "room" not in err and err.count("\n") == 1
    (tmp_path / "other.partial").mkdir()
    code, _, err = run(capsys, "convert", source, tmp_path / "other", "--quiet")
    assert code == 2 and "other.partial must have its options in other.partial.json" in err


def test_full_disk(capsys, tmp_path, monkeypatch):
    source = write(tmp_path / "source", numbered(3))

    def full(self, name, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zip_output.ZipOutput, "write", full)
        code, _, err = run(capsys, "convert", source, tmp_path / "out.zip", "--quiet")
    assert code == 2 and "(No space left on device); make room" in err and err.count("\n") == 1
    assert run(capsys, "convert", source, tmp_path / "out.zip", "--quiet")[0] == 0


def test_latents_are_not_converted(capsys, tmp_path):
    source = write(tmp_path / "source", {"a.npy": npy(np.zeros([8, 4, 4], np.float32))})
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 2 and "source must hold pictures, got latents" in err


# --- info -----------------------------------------------------------------------------------------


def test_info(capsys, tmp_path):
    files = {
        "cat/1.png": png(picture(1)),
        "cat/2.png": png(picture(2)),
        "dog/3.png": png(picture(3, (9, 8))),
        "dog/4.png": b"text",
    }
    source = write(tmp_path / "data.zip", files)
    code, out, err = run(capsys, "info", source)
    assert code == 0 and "broken: " + f"{source}:dog/4.png: what no decoder knows" in err
    for line in (
        f"{source}: ZIP file with a folder for each class",
        "images   4",
        "form     8x8, 3 channels, pixels (2 images)",
        "form     9x8, 3 channels, pixels (1 images)",
        "classes  2, of 2 to 2 images",
        "broken   1",
        "make its files alike: autoguide-fast dataset convert",
    ):
        assert line in out
    code, out, _ = run(capsys, "info", source, "--json", "--quiet")
    info = json.loads(out)
    assert info["images"] == 4 and info["classes"][1] == {"class": 1, "name": "dog", "images": 2}
    assert info["broken"] == [{"file": f"{source}:dog/4.png", "reason": "what no decoder knows"}]


@pytest.mark.parametrize(("name", "images"), [("digits", 1797), ("photos", None)])
def test_info_on_the_bundled(capsys, name, images):
    code, out, _ = run(capsys, "info", name)
    assert code == 0 and "bundled" in out
    assert images is None or f"images   {images}" in out


def test_info_tells_mean_and_deviation_as_nets_see_them(capsys, tmp_path):
    """Of pixels, those of the commonest form; of latents as they are drawn from their moments."""
    images = np.stack([np.asarray(picture(i)) for i in range(3)])
    files = {f"{i}.png": png(picture(i)) for i in range(3)}
    source = write(tmp_path / "pixels", files | {"z.png": png(picture(9, (4, 4)))})
    code, out, _ = run(capsys, "info", source, "--json", "--quiet")
    info = json.loads(out)
    numbers = images.astype(np.float64) / 127.5 - 1
    assert code == 0 and info["mean"] == pytest.approx(numbers.mean(), rel=1e-9)
    assert info["deviation"] == pytest.approx(numbers.std(), rel=1e-9)
    assert info["channel_means"] == pytest.approx(numbers.mean(axis=(0, 1, 2)), rel=1e-9)
    assert info["channel_deviations"] == pytest.approx(numbers.std(axis=(0, 1, 2)), rel=1e-9)
    _, out, _ = run(capsys, "info", source)
    assert f"standard deviation {numbers.std():.4f}" in out and "--sigma-data" in out
    random = np.random.default_rng(0)
    moments = random.normal(2, 3, (4, 8, 16, 16)).astype(np.float32)
    moments[:, 4:] = np.abs(moments[:, 4:])
    (tmp_path / "latents").mkdir()
    for i, each in enumerate(moments):
        np.save(tmp_path / "latents" / f"{i}.npy", each)
    _, out, _ = run(capsys, "info", tmp_path / "latents", "--json", "--quiet")
    info = json.loads(out)
    torch.manual_seed(0)
    drawn = encoders.LatentEncoder().encode(torch.from_numpy(moments).repeat(20, 1, 1, 1)).double()
    assert info["mean"] == pytest.approx(float(drawn.mean()), abs=0.01)
    assert info["channel_deviations"] == pytest.approx(drawn.std(dim=(0, 2, 3)).tolist(), rel=0.02)


def test_info_without_labels(capsys, tmp_path):
    source = write(tmp_path / "data", numbered(2))
    code, out, _ = run(capsys, "info", source)
    assert code == 0 and "classes  none; for a net without labels" in out


@pytest.mark.parametrize("what", ["convert", "encode", "info"])
def test_help_shows_examples(capsys, what):
    code, out, _ = run(capsys, what, "--help")
    assert code == 0 and "examples:\n" in out and f"  autoguide-fast dataset {what} " in out
    if what == "convert":
        assert "center-crop-dhariwal  ADM's centre crop" in out


def test_a_command_needs_to_be_named(capsys):
    code, _, err = run(capsys)
    assert code == 2 and "WHAT" in err
