"""From files to pixels and latents: orientation, transparency, odd kinds, odd numbers."""

from __future__ import annotations

import io
import json
import zlib

import numpy as np
import pytest
from dataset_runs import OUTPUTS, beside, run
from pictures import npy, numbered, picture, pixels, png, write
from PIL import Image

from autoguide_fast.trainer.data import Loader, open_dataset
from autoguide_fast.trainer.data.convert import convert
from autoguide_fast.trainer.data.pictures import decode

# EXIF's orientations as operations on an array [height, width, ...], by which viewers undo them.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def served(path) -> np.ndarray:
    """Pixels of a dataset, [N, H, W, C]."""
    data = open_dataset(path)
    return data.batch(np.arange(len(data)))[0].transpose(0, 2, 3, 1)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_pictures_are_turned_as_their_exif_data_say(capsys, tmp_path, kind):
    """Once: what is written, which has no such data, is read as it is."""
    shades = np.kron(np.arange(6).reshape(3, 2) * 40, np.ones([8, 8])).astype(np.uint8)
    image = Image.fromarray(shades).convert("RGB")
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        quality = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
        data = encoded(image, kind, exif=exif, **quality)
        wanted = turn(np.asarray(image)).astype(int)
        assert abs(decode(data, "a").transpose(1, 2, 0) - wanted).max() < 8, orientation
        name = f"{kind}-{orientation}"
        source = write(tmp_path / name, {f"a.{kind.lower()}": data})
        code, _, err = run(
            capsys,
            "convert",
            source,
            tmp_path / f"{name}-out",
            "--quiet",
            "--transform",
            "stretch",
            "--resolution",
            "24x24",
        )
        assert code == 0, err
        stretched = np.asarray(Image.fromarray(wanted.astype(np.uint8)).resize((24, 24), 1))
        assert abs(served(tmp_path / f"{name}-out")[0] - stretched.astype(int)).max() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_turn_nothing():
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense"):
        data = encoded(picture(0), "PNG", exif=exif)
        assert np.array_equal(decode(data, "a").transpose(1, 2, 0), pixels(0))


def transparent(kind: str) -> Image.Image:
    """8x8, red on the left; nothing on the right, where there is a hidden green, or black."""
    opaque = np.zeros([8, 8], bool)
    opaque[:, :4] = True
    if kind in ("RGBA", "LA"):
        colours = np.where(opaque[..., None], [255, 0, 0, 255], [0, 255, 0, 0]).astype(np.uint8)
        return Image.fromarray(colours).convert(kind)
    if kind == "L":
        image = Image.fromarray(np.where(opaque, 76, 10).astype(np.uint8))
        image.info["transparency"] = 10
        return image
    image = Image.fromarray(np.where(opaque[..., None], [255, 0, 0], [0, 255, 0]).astype(np.uint8))
    image.info["transparency"] = (0, 255, 0)
    if kind == "P":
        image = Image.fromarray(np.where(opaque, 0, 1).astype(np.uint8), "P")
        image.putpalette([255, 0, 0, 0, 255, 0])
        image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(("options", "colour"), [([], 255), (["--background", "#808080"], 128)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "L", "RGB", "P"])
def test_transparent_pixels_are_laid_over_a_colour(capsys, tmp_path, kind, options, colour):
    image = transparent(kind)
    data = encoded(
        image,
        "PNG",
        **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}),
    )
    source = write(tmp_path / "source", {"a.png": data, "b.png": png(picture(0, mode="RGBA"))})
    code, printed, err = run(capsys, "convert", source, tmp_path / "out", "--quiet", *options)
    assert code == 0, err
    assert f"; 1 had transparent pixels, laid over #{colour:02x}{colour:02x}{colour:02x}" in printed
    left, right = served(tmp_path / "out")[0, :, :4], served(tmp_path / "out")[0, :, 4:]
    red = [76, 76, 76] if "L" in kind else [255, 0, 0]
    assert (left == red).all() and (right == colour).all()
    assert np.array_equal(served(tmp_path / "out")[1], pixels(0))  # opaque: as it was
    with pytest.raises(ValueError, match=r"an RGB or grey image of 8 bits, got mode .*run"):
        decode(data, "a.png")  # not read with its hidden colours either


def test_half_transparent_pixels_are_mixed(capsys, tmp_path):
    half = np.full([8, 8, 4], [200, 0, 100, 128], np.uint8)
    source = write(tmp_path / "source", {"a.png": png(Image.fromarray(half))})
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--background", "black")
    assert code == 0, err
    assert abs(served(tmp_path / "out")[0].astype(int) - [100, 0, 50]).max() <= 1


def test_a_background_is_a_colour(capsys, tmp_path):
    source = write(tmp_path / "source", numbered(1))
    for text in ("whit", "#12", "#ff000080"):
        code, _, err = run(capsys, "convert", source, tmp_path / "out", "--background", text)
        assert code == 2 and "must be a colour such as white" in err


def frames(kind: str) -> bytes:
    return encoded(
        picture(0, mode="P" if kind == "GIF" else "RGB"),
        kind,
        save_all=True,
        append_images=[picture(1), picture(2)],
    )


def test_of_several_pictures_in_one_file_the_first_is_taken(capsys, tmp_path):
    files = {"a.png": frames("PNG"), "b.tif": frames("TIFF"), "c.png": png(picture(3))}
    source = write(tmp_path / "source", files)
    code, printed, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 0 and "; 2 hold several pictures, the first was taken" in printed, err
    assert np.array_equal(served(tmp_path / "out"), [pixels(0), pixels(0), pixels(3)])


def bomb() -> bytes:
    """A PNG that says that it has more pixels than Pillow unpacks."""
    data = bytearray(encoded(Image.new("1", (1, 1)), "PNG"))
    data[16:24] = (200_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


# Kinds of pictures that cannot be had, and why, as far as that does not depend on Pillow.
BROKEN = {
    "empty.png": (b"", "an empty file"),
    "text.png": (b"text", "what no decoder knows"),
    "cut.png": (png(picture(0))[:-40], ""),
    "cut.jpg": (encoded(picture(0, (64, 64)), "JPEG")[:-400], "truncated"),
    "bomb.png": (bomb(), "exceeds limit"),
    "deep.png": (png(Image.fromarray(np.zeros([8, 8], np.uint16))), "mode I;16"),
    "float.tif": (encoded(Image.fromarray(np.zeros([8, 8], np.float32)), "TIFF"), "mode F"),
    "latents.png": (npy(np.zeros([8, 8, 8], np.float32)), "what no decoder knows"),
}


@pytest.mark.parametrize("out", OUTPUTS)
def test_one_bad_picture_does_not_end_a_conversion(capsys, tmp_path, out):
    files = {name: data for name, (data, _) in BROKEN.items()} | {"z.png": png(picture(5))}
    source = write(tmp_path / "source", files)
    code, printed, err = run(capsys, "convert", source, tmp_path / out, "--quiet")
    assert code == 0 and "Traceback" not in err
    assert f"1 of {len(files)} images" in printed and f"{len(BROKEN)} broken" in printed
    for name, (_, reason) in BROKEN.items():
        (line,) = [line for line in err.splitlines() if line.startswith(f"broken: {source / name}")]
        assert reason in line
    assert np.array_equal(served(tmp_path / out), [pixels(5)])
    assert beside(tmp_path / out) == [out]


@pytest.mark.parametrize("channels", [1, 3])
def test_other_kinds_of_colour(tmp_path, channels):
    """Pure red, as each of them has it."""
    kinds = {
        "CMYK": (0, 255, 255, 0),
        "YCbCr": (76, 85, 255),
        "LAB": (138, 209, 198),
        "RGB": (255, 0, 0),
    }
    files = {
        f"{kind}.tif": encoded(Image.new(kind, (8, 8), colour), "TIFF")
        for kind, colour in kinds.items()
    }
    convert(write(tmp_path / "source", files), tmp_path / "out", channels=channels)
    made = served(tmp_path / "out").astype(int)
    assert len(made) == len(files)
    assert abs(made - ([255, 0, 0] if channels == 3 else [76])).max() < 8


def test_a_library_that_fails_at_one_picture(capsys, tmp_path, monkeypatch):
    """Whatever it raises; and what was written stays where a failure is not one picture's."""
    from autoguide_fast.trainer.data import convert as module
    from autoguide_fast.trainer.data import outputs

    source = write(tmp_path / "source", numbered(4))
    real, calls = module.encode_png, []

    def failing(image):
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return real(image)

    arguments = ["convert", source, tmp_path / "out", "--quiet", "--workers", 1]
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode_png", failing)
        patch.setattr(outputs.FolderOutput, "finish", lambda self: int("no number"))
        code, _, err = run(capsys, *arguments)
    assert code == 2 and "img00000001.png: out of luck" in err and "no number" in err
    code, printed, err = run(capsys, *arguments)
    assert code == 0 and "4 of 4 images" in printed and "3 of them from before" in printed, err


def test_the_picture_that_is_not_square_is_named(capsys, tmp_path):
    files = {"a.png": b"broken", "b.png": png(picture(1, (9, 8)))}
    source = write(tmp_path / "source", files)
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 2 and f"must be square, got 9x8 in {source / 'b.png'}; add" in err


# --- latents --------------------------------------------------------------------------------------

MOMENTS = np.random.RandomState(0).rand(8, 4, 4).astype(np.float32)


def changed(value: float, channel: int = 0, dtype=np.float32) -> np.ndarray:
    array = MOMENTS.astype(dtype)
    array[channel, 1, 2] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        *[
            (
                MOMENTS[:count],
                rf"latents: .* \[8, H, W\], .* 4 channels, got float32 \[{count}, 4, 4",
            )
            for count in (3, 4, 6)
        ],
        (np.concatenate([MOMENTS, MOMENTS]), r"got float32 \[16, 4, 4\]; run `autoguide-fast"),
        (MOMENTS.astype(np.int32), r"got int32 \[8, 4, 4\]"),
        (MOMENTS.astype(np.complex64), r"got complex64 \[8, 4, 4\]"),
        (np.zeros([8, 0, 0], np.float32), r"got float32 \[8, 0, 0\]"),
        (changed(np.nan), "latents that are finite, got 1 numbers that are not"),
        (changed(-np.inf, 7), "latents that are finite, got 1 numbers that are not"),
        (changed(1e300, dtype=np.float64), "latents that are finite"),
        (changed(-9, 5), r"standard deviations are >= 0, got -9; if .* store exp\(x / 2\)"),
        (MOMENTS.astype(object), "a readable NPY file, got Object arrays cannot be loaded"),
    ],
)
def test_latents_that_cannot_be_trained_on_are_refused(capsys, tmp_path, array, message):
    """When they are opened, when they are read, and in `info`, which goes on."""
    files = {"a.npy": npy(MOMENTS), "b.npy": npy(array)}
    data = open_dataset(write(tmp_path / "data", files))
    with pytest.raises(ValueError, match=f"^dataset: .*b.npy must be .*{message}"):
        data.batch(np.arange(2))
    with pytest.raises(ValueError, match=f"^dataset: .*b.npy must be .*{message}"):
        open_dataset(write(tmp_path / "first", {"b.npy": npy(array)}))
    code, printed, _ = run(capsys, "info", tmp_path / "data", "--json", "--quiet")
    info = json.loads(printed)
    assert code == 0 and len(info["broken"]) == 1 and info["forms"][0]["images"] == 1


def test_damaged_headers_of_arrays_are_named(tmp_path):
    whole = npy(MOMENTS)
    for old, new in (
        (b"'descr'", b"'descx'"),
        (b"(8, 4, 4)", b"(8, 4e4)"),
        (b"<f4", b"<q9"),
        (b"(8, 4, 4), ", b"(8, 9999999999999,)"[:11]),
    ):
        with pytest.raises(ValueError, match=r"^dataset: x must be .*NPY file"):
            decode(whole.replace(old, new), "x")


@pytest.mark.parametrize(
    "array",
    [
        MOMENTS[:, ::-1, ::-1],
        MOMENTS.astype(">f4"),
        np.asfortranarray(MOMENTS),
        MOMENTS.astype(">f8").transpose(0, 2, 1),
        MOMENTS.astype(np.float16),
    ],
    ids=["negative strides", "foreign byte order", "Fortran order", "all of it", "half"],
)
def test_arrays_however_they_lie(tmp_path, array):
    data = open_dataset(write(tmp_path / "data", {"a.npy": npy(array)}))
    images, _ = data.batch(np.arange(1))
    assert images.dtype == np.float32 and images.dtype.isnative and images.flags.c_contiguous
    assert np.array_equal(images[0], array.astype(np.float32))
    assert np.array_equal(decode(npy(array), "a"), array.astype(np.float32))


# --- datasets of one's own ------------------------------------------------------------------------


class Given:
    """A dataset that serves given arrays."""

    name, resolution, num_classes = "mine", 4, 10

    def __init__(self, images, labels):
        self.images, self.labels, self.channels = images, labels, 8
        self.encoder_name = "latents"

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images, self.labels


IMAGES, LABELS = np.stack([MOMENTS] * 2), np.array([3, 9])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[:, :, ::-1, ::-1], LABELS[::-1]),
        (IMAGES.astype(">f4"), LABELS.astype(">i8")),
        (np.asfortranarray(IMAGES), LABELS.astype(np.uint8)),
        (np.frombuffer(IMAGES.tobytes(), np.float32).reshape(IMAGES.shape), LABELS),
        (IMAGES, None),
    ],
    ids=["negative strides", "foreign byte order", "Fortran order", "read-only", "no labels"],
)
def test_a_loader_takes_arrays_however_they_lie(images, labels):
    with Loader(Given(images, labels), [(0, 2)], seed=0) as loader:
        batch = next(loader)
    assert np.array_equal(batch.images.numpy(), images) and batch.images.is_contiguous()
    assert labels is None or batch.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES * np.nan, LABELS, "finite numbers, got nan or inf in number "),
        (IMAGES.astype(np.float64), LABELS, r"uint8 or float32 \[2, 8, 4, 4\], got float64"),
        (IMAGES[:1], LABELS, r"got float32 \[1, 8, 4, 4\] from mine; correct it"),
        (IMAGES, LABELS.astype(float), r"labels int64 \[2\], got float64 \[2\]"),
        (IMAGES, np.eye(10)[LABELS], r"labels int64 \[2\], got float64 \[2, 10\]"),
        (IMAGES, LABELS + 1, "labels from 0 to 9, got 10 for number "),
        (IMAGES, LABELS - 4, "labels from 0 to 9, got -1 for number "),
    ],
)
def test_a_loader_refuses_what_does_not_fit(images, labels, message):
    with (
        Loader(Given(images, labels), [(0, 2)], seed=0) as loader,
        pytest.raises(ValueError, match=f"^Loader: dataset must give .*{message}"),
    ):
        next(loader)
