"""`autoguide-fast grid`: every image on its place, by its label; images of all kinds read."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from autoguide_fast import checkpoints, plots, sample
from autoguide_fast.cli import main, pictures
from autoguide_fast.guidance import guided_denoiser
from autoguide_fast.schedules import rho_schedule


def run(capsys, out, *arguments):
    code = main(["grid", "--out", str(out), "--quiet", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def cells(path, rows, columns, scale=12, size=8, labels=True):
    """The images in a picture, uint8 `[rows, columns, H, W, 3]`, and what is left of them."""
    picture = np.asarray(Image.open(path))
    pitch = size * scale + 4
    left = picture.shape[1] - columns * pitch - 4
    top = picture.shape[0] - rows * pitch - 4
    assert (top == 28) == labels and left > 20
    found = np.stack(
        [
            [
                picture[
                    top + 4 + r * pitch : top + (r + 1) * pitch : scale,
                    left + 4 + c * pitch : left + (c + 1) * pitch : scale,
                ]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )
    assert (picture[:top] < 128).any() == labels  # ink
    assert (picture[top:, : left - 4] < 128).any()
    return found


def grey(images):
    """uint8 `[N, 1, H, W]` as a picture in colours has them."""
    return np.repeat(np.asarray(images)[:, 0, :, :, None], 3, axis=-1)


def test_one_seed_a_row_and_one_weight_a_column(capsys, tmp_path):
    out = tmp_path / "grid.png"
    weights = (1, 1.5, 3)
    options = ("--classes", "3,7", "--seeds", "5", "--guidance", "1,1.5,3", "--steps", 4)
    code, said, _ = run(capsys, out, *options)
    assert code == 0 and said == f"2 seeds at 3 guidance weights: {out}\n"
    found = cells(out, 2, 3)
    for column, weight in enumerate(weights):
        expected = sample("digits", guidance=weight, seeds=[5, 5], class_labels=[3, 7], num_steps=4)
        np.testing.assert_array_equal(found[:, column], grey(expected))


@pytest.mark.parametrize("classes", [(), ("--classes", "4")])
def test_a_trajectory_ends_at_the_image(capsys, tmp_path, classes):
    out, seeds = tmp_path / "grid.png", [2, 9]
    options = ("--seeds", "2,9", "--steps", 6, "--guidance", 2, "--at", "0,3,6", *classes)
    labels = 4 if classes else None
    common = dict(guidance=2, seeds=seeds, class_labels=labels, num_steps=6)
    states = {}
    sample("digits", callback=lambda info: states.update({info.step + 1: info.x}), **common)
    model, guide = (checkpoints.load(name) for name in ("digits", "digits-guide"))
    sigma = rho_schedule(6, 0.002, 80.0, 7.0)[3].float()
    final = sample("digits", **common)

    assert run(capsys, out, "--trajectory", "state", *options)[0] == 0
    found = cells(out, 2, 3)
    scaled = states[3] / (1 + (sigma / 0.5) ** 2).sqrt()
    np.testing.assert_array_equal(found[:, 1], grey(model.encoder.decode(scaled)))
    np.testing.assert_array_equal(found[:, 2], grey(final))
    assert found[:, 0].std() > 30  # noise, in the contrast of the data

    assert run(capsys, out, "--trajectory", "denoised", *options)[0] == 0
    found = cells(out, 2, 3)
    np.testing.assert_array_equal(found[:, 2], grey(final))
    if classes:
        one_hot = torch.nn.functional.one_hot(torch.tensor([4, 4]), 10).float()
        denoised = guided_denoiser(model, guide, 2.0)(states[3], sigma, one_hot)
        apart = found[:, 1].astype(int) - grey(model.encoder.decode(denoised))
        assert np.abs(apart).max() <= 1


def write_images(folder, images):
    for i, image in enumerate(images):
        path = folder / f"{i // 3:05d}" / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plots.to_image(image).save(path)


@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_of_images_that_are_there(capsys, tmp_path, kind, channels):
    images = np.random.default_rng(3).integers(0, 256, (10, channels, 8, 8), np.uint8)
    path = tmp_path / {"folder": "images", "zip": "images.zip", "npz": "images.npz"}[kind]
    if kind == "folder":
        write_images(path, images)
        (path / "grid.png").write_bytes(b"of the others")
        (path / ".000003.77.png").write_bytes(b"half")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, image in enumerate(images):
                data = io.BytesIO()
                plots.to_image(image).save(data, "PNG")
                archive.writestr(f"00000/img{i:08d}.png", data.getvalue())
            archive.writestr("dataset.json", "{}")
    else:
        np.savez(path, images.transpose(0, 2, 3, 1), np.arange(10))
    code, said, _ = run(capsys, tmp_path / "sheet.png", "--images", path, "--columns", 4)
    assert code == 0 and said.startswith(f"10 of 10 images in {path}: ")
    found = cells(tmp_path / "sheet.png", 3, 4, labels=False).reshape(12, 8, 8, 3)
    expected = np.broadcast_to(images.transpose(0, 2, 3, 1), (10, 8, 8, 3))
    np.testing.assert_array_equal(found[:10], expected)
    assert (found[10:] == 255).all()
    run(capsys, tmp_path / "sheet.png", "--images", path, "--count", 3, "--columns", 4)
    shown = cells(tmp_path / "sheet.png", 1, 3, labels=False)[0]
    places = [int(np.flatnonzero((expected == one).all((1, 2, 3)))[0]) for one in shown]
    assert places == sorted(set(places))


def test_images_drawn_of_many_show_all_classes():
    """At equal distances, only some of the classes that go round would be met."""
    chosen = pictures.Pictures(range(1000), lambda i: None).some(100)
    assert len(set(chosen)) == 100 and {i % 10 for i in chosen} == set(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "3"], "grid: --at must come with --trajectory"),
        (["--trajectory", "state", "--guidance", "1,2"], "must be one weight with --trajectory"),
        (["--trajectory", "state", "--at", "40"], "--at must be steps from 0 to 32, got 40"),
        (["--seeds", "0-999"], "at most 1024 images in a picture, got 4000"),
        (["--model", "no-such-net"], "a net must be a bundled name"),
        (["--classes", "12", "--steps", "1"], "class_labels must"),
        (["--images", "x", "--classes", "3"], "grid: --classes must come without --images"),
        (["--columns", "3"], "grid: --columns must come with --images"),
        (["--images", "nowhere"], "images must be a folder or a ZIP file of pictures, or an .npz"),
        (["--out", "no/such/folder/a.png"], "--out must be a file in an existing folder"),
    ],
)
def test_wrong_usage_is_a_sentence(capsys, tmp_path, arguments, message):
    code, out, error = run(capsys, tmp_path / "grid.png", *arguments)
    assert code == 2 and out == "" and message in error and error.count("\n") == 1
    assert not (tmp_path / "grid.png").exists()


def test_images_that_do_not_go_together_are_a_sentence(capsys, tmp_path):
    write_images(tmp_path / "a", np.zeros((2, 1, 8, 8), np.uint8))
    plots.to_image(np.zeros((3, 8, 8), np.uint8)).save(tmp_path / "a" / "c.png")  # colour will do
    assert run(capsys, tmp_path / "s.png", "--images", tmp_path / "a")[0] == 0
    plots.to_image(np.zeros((1, 9, 8), np.uint8)).save(tmp_path / "a" / "b.png")
    code, _, error = run(capsys, tmp_path / "s.png", "--images", tmp_path / "a")
    assert code == 2 and "of one size, got 8x8 in 00000/000000.png and 8x9 in b.png" in error
    (tmp_path / "a" / "b.png").write_bytes(b"no picture")
    code, _, error = run(capsys, tmp_path / "s.png", "--images", tmp_path / "a")
    assert code == 2 and "got a damaged one in b.png" in error
    for name, array in (
        ("float.npz", np.zeros((2, 8, 8, 3))),
        ("flat.npz", np.zeros((2, 8), np.uint8)),
    ):
        np.savez(tmp_path / name, array)
        code, _, error = run(capsys, tmp_path / "s.png", "--images", tmp_path / name)
        assert code == 2 and f"got {array.dtype} {list(array.shape)} at" in error


def test_labels_fit_above_their_images():
    grid = plots.labelled_grid(
        np.zeros((2, 3, 64, 64), np.uint8), ["one"], ["a long label, wider than 96", "b"]
    )
    font = plots._font(plots._LABEL_SIZE)
    assert (grid.width - font.getlength("one")) / 2 > font.getlength("a long label, wider than 96")
    for rows, columns in ((["a"], ["b"]), (["a", "b"], ["c", "d"]), (["a"], [])):
        with pytest.raises(ValueError, match="labelled_grid: images must fill"):
            plots.labelled_grid(np.zeros((2, 1, 8, 8), np.uint8), rows, columns)
