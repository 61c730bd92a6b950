"""Where the data lie in a source: folders around them, odd names, links, names of classes."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
from dataset_runs import run
from pictures import numbered, picture, pixels, png, write

from autoguide_fast.trainer.data import open_dataset

PLACES = ["source", "source.zip"]
CLASSES = {
    f"{name}/{i}.png": png(picture(2 * i + (name == "dog")))
    for i in range(2)
    for name in ("cat", "dog")
}


def wrapped(files: dict[str, bytes], *folders: str) -> dict[str, bytes]:
    return {"/".join([*folders, name]): data for name, data in files.items()}


def served(path):
    """Everything that a dataset serves, in plain values."""
    data = open_dataset(path)
    images, labels = data.batch(np.arange(len(data)))
    return images.tolist(), None if labels is None else labels.tolist(), data.classes


# --- folders around the data ---------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("folders", [["data"], ["a", "b c"], ["train"]])
@pytest.mark.parametrize(
    "files", [numbered(4, [2, 0, 1, 0]), numbered(4), CLASSES], ids=["listed", "bare", "classes"]
)
def test_folders_around_the_data_are_passed_over(tmp_path, place, folders, files):
    plain = write(tmp_path / place, files)
    (tmp_path / "more").mkdir()
    clutter = {
        "__MACOSX/data/._0.png": b"?",
        "data/.DS_Store": b"?",
        ".hidden/1.png": b"?",
        "data/__MACOSX/1.png": b"?",
    }
    path = write(tmp_path / "more" / place, {**wrapped(files, *folders), **clutter})
    assert served(path) == served(plain)
    assert open_dataset(path).digest() == open_dataset(plain).digest()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("files", "message", "folder"),
    [
        (wrapped(numbered(2), "faces", "00000"), None, None),
        (
            {"faces/a.png": b"", "faces/b.png": b""},
            "must have several folders for classes, or none, got .* with faces alone",
            "faces",
        ),
        ({"cat/a/1.png": b"", "cat/a/2.png": b""}, "with cat/a alone", "cat/a"),
        (
            {**wrapped(numbered(2, [0, 1]), "train"), **wrapped(numbered(2, [1, 0]), "val")},
            "must have one dataset.json for all of it, got .* with 2, such as train/",
            "train",
        ),
        (
            {**wrapped(numbered(2, [0, 1]), "data"), "other/a.png": b""},
            "with 1, such as data/dataset.json",
            "data",
        ),
        (
            {**wrapped(CLASSES, "train"), **wrapped(CLASSES, "val")},
            "must be one split, got .* with train, val",
            "train",
        ),
        (
            wrapped({**wrapped(CLASSES, "train"), **wrapped(CLASSES, "test")}, "data"),
            "must be one split, got .* with test, train",
            "data/train",
        ),
    ],
    ids=[
        "numbered alone",
        "one class",
        "one class below",
        "two lists",
        "a list for a part",
        "splits",
        "splits below",
    ],
)
def test_what_may_be_several_datasets_is_refused(tmp_path, place, files, message, folder):
    path = write(tmp_path / place, files)
    if message is None:
        assert open_dataset(path).num_classes == 0
        return
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(path)
    remedy = f"; name {path / folder}" if path.is_dir() else f"; unpack it and name its {folder}"
    assert remedy in str(error.value)


# --- names in archives ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd", ["{}", "\\{}", "/{}", "C:/data/{}", "C:\\data\\{}", "./{}", "data//{}", "/srv/./data/{}"]
)
def test_names_in_archives_are_made_plain(tmp_path, odd):
    backslashes = "\\" in odd
    for files in (CLASSES, numbered(2, [1, 0])):
        named = {
            odd.format(name.replace("/", "\\") if backslashes else name): data
            for name, data in files.items()
        }
        path = tmp_path / "odd.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in named.items():
                info = zipfile.ZipInfo("x")
                info.filename = name  # as other writers leave it
                archive.writestr(info, data)
            folder = zipfile.ZipInfo("x")
            folder.filename = odd.format("empty" + ("\\" if backslashes else "/"))
            archive.writestr(folder, b"")
        assert served(path) == served(write(tmp_path / "plain.zip", files))


def test_names_that_leave_an_archive_or_come_twice_are_refused(tmp_path):
    path = write(tmp_path / "up.zip", {"../cat/1.png": png(picture(0))})
    with pytest.raises(ValueError, match=r"must hold files below its top, got ../cat/1.png; pack"):
        open_dataset(path)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        for index in range(2):
            with pytest.warns(UserWarning) if index else pytest.MonkeyPatch.context():
                archive.writestr("cat/1.png", png(picture(index)))
    with pytest.raises(ValueError, match=r"must hold every file once, got cat/1.png twice"):
        open_dataset(tmp_path / "twice.zip")


def test_a_name_that_is_not_utf8(capsys, tmp_path):
    """In a folder and in an archive; converted like any other, and named where it is broken."""
    good, bad = b"sch\xf6n.png", b"b\xf6se.png"
    (tmp_path / "source").mkdir()
    for name, data in ((good, png(picture(0))), (bad, b"text")):
        with open(os.path.join(os.fsencode(tmp_path / "source"), name), "wb") as file:
            file.write(data)
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        archive.writestr("schön.png", png(picture(0)))
        archive.writestr("böse.png", b"text")
    raw = (tmp_path / "source.zip").read_bytes()
    (tmp_path / "source.zip").write_bytes(raw.replace("ö".encode(), b"\xf6\xf6"))
    for place in PLACES:
        out = tmp_path / f"{place}-out"
        code, printed, err = run(capsys, "convert", tmp_path / place, out, "--quiet")
        assert code == 0 and "1 of 2 images" in printed and "1 broken" in printed, err
        assert np.array_equal(
            open_dataset(out).batch(np.arange(1))[0][0].transpose(1, 2, 0), pixels(0)
        )
    (tmp_path / "classes").mkdir()
    for name in (b"\xf6", b"a"):
        os.makedirs(os.path.join(os.fsencode(tmp_path / "classes"), name))
        (tmp_path / "classes" / os.fsdecode(name) / "1.png").write_bytes(png(picture(0)))
    code, printed, err = run(capsys, "info", tmp_path / "classes", "--quiet")
    assert code == 0 and "images   2" in printed, err
    printed.encode()  # what a terminal is given


# --- links ----------------------------------------------------------------------------------------


def test_folders_to_which_links_lead_are_read_once(capsys, tmp_path):
    """Loops to a parent and between two folders, a link to itself; and one that is wanted."""
    source = write(tmp_path / "source", CLASSES)
    write(tmp_path / "elsewhere", {"5.png": png(picture(5))})
    for link, target in (
        ("cat/self", "."),
        ("cat/up", ".."),
        ("cat/other", "../dog"),
        ("dog/other", "../cat"),
        ("loop", "loop"),
        ("mouse", tmp_path / "elsewhere"),
    ):
        (source / link).symlink_to(target)
    data = open_dataset(source)
    assert data.classes == ["cat", "dog", "mouse"] and len(data) == 5
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        f"note: the link {source / link} leads to a folder that is read anyway, and has been left "
        "out"
        for link in ("cat/other", "cat/self", "cat/up", "dog/other")
    ]


def test_pipes_are_no_files(tmp_path):
    source = write(tmp_path / "source", numbered(2))
    os.mkfifo(source / "00000/img00000002.png")
    assert len(open_dataset(source)) == 2


# --- classes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_folders_that_are_numbers_count_as_numbers(capsys, tmp_path, place):
    path = write(tmp_path / place, {f"{i}/a.png": png(picture(i)) for i in range(12)})
    data = open_dataset(path)
    assert data.classes == [str(i) for i in range(12)] and data.renumbered
    images, labels = data.batch(np.arange(12))
    for image, label in zip(images, labels, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), pixels(label))
    code, _, err = run(capsys, "convert", path, tmp_path / "out", "--quiet")
    assert code == 0 and "count as such: class 2 is 2, not 10" in err
    assert open_dataset(tmp_path / "out").batch(np.arange(12))[1].tolist() == labels.tolist()


@pytest.mark.parametrize(
    "names", [["0", "1", "9"], ["01", "02", "10"], ["1", "10", "2x"], ["n01", "n10", "n2"]]
)
def test_other_folders_are_in_the_order_of_their_names(tmp_path, names):
    path = write(tmp_path / "source", {f"{name}/a.png": png(picture(0)) for name in names})
    data = open_dataset(path)
    assert data.classes == names and not data.renumbered and not data.notes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 10**6], None, "must number its classes below 1000000, got class 1000000; number"),
        ([0, 2**70], None, "must number its classes below 1000000, got class 11805916207174113"),
        ([0, 10**12], None, "must number its classes below 1000000, got class 1000000000000; "),
        ([0, -(2**70)], None, "must number its classes from 0, got class -118"),
        ([0, 3], ["cat", "dog"], "must name every class, got 2 names and class 3; add"),
        ([0, 1], "cat dog", "must list the names of its classes as texts, got 'cat dog'; write"),
        ([0, 1], ["cat", 7], "must list the names of its classes as texts"),
        ([0, 1], {"cat": 0}, "must list the names of its classes as texts"),
    ],
)
def test_classes_that_cannot_be(tmp_path, place, labels, classes, message):
    files = numbered(2, labels)
    files["dataset.json"] = json.dumps(
        {**json.loads(files["dataset.json"]), "classes": classes}
    ).encode()
    with pytest.raises(ValueError, match=f"^dataset: .*dataset.json {message}") as error:
        open_dataset(write(tmp_path / place, files))
    assert "; " in str(error.value)


def test_names_for_more_classes_than_there_are_files_of(tmp_path):
    files = numbered(2, [0, 1])
    content = {**json.loads(files["dataset.json"]), "classes": ["cat", "dog", "mouse"]}
    files["dataset.json"] = json.dumps(content).encode()
    data = open_dataset(write(tmp_path / "a", files))
    assert data.num_classes == 3 and data.classes == ["cat", "dog", "mouse"]


def test_a_file_listed_twice(tmp_path):
    files = numbered(2, [0, 1])
    listed = json.loads(files["dataset.json"])["labels"]
    for more, message in (([listed[1]], None), ([[listed[1][0], 0]], "got .*1.png with 1 and 0;")):
        path = write(
            tmp_path / str(bool(message)),
            {**files, "dataset.json": json.dumps({"labels": listed + more}).encode()},
        )
        if message is None:
            assert open_dataset(path).batch(np.arange(2))[1].tolist() == [0, 1]
            continue
        with pytest.raises(ValueError, match="must list a file with one class, " + message):
            open_dataset(path)


def test_a_list_made_on_another_system(tmp_path):
    files = numbered(2, [1, 0])
    files["dataset.json"] = files["dataset.json"].replace(b"00000/", b"00000\\\\")
    assert open_dataset(write(tmp_path / "a", files)).batch(np.arange(2))[1].tolist() == [1, 0]
