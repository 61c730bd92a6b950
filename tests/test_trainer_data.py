"""What a run knows of its data: other data are refused when it is resumed, the same taken."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time

import numpy as np
import pytest
from pictures import npy, numbered, picture, png, write
from test_trainer_loop import TINY

from autoguide_fast.trainer import durable, loop, training_data
from autoguide_fast.trainer.data.stores import FolderStore
from autoguide_fast.trainer.options import TrainOptions


def run_on(tmp_path, place, files):
    """A run that was interrupted; gives its options, which name the dataset."""
    data = write(tmp_path / place, files)
    options = TrainOptions(**TINY, data=str(data), duration=32, snapshots=1)
    loop.train(options, tmp_path / "run", progress=False, stop=lambda nimg: True)
    return options


@pytest.mark.parametrize("place", ["data", "data.zip"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (numbered(4, [0, 1, 1, 1]), "changes: contents was [0-9a-f]{16}, is [0-9a-f]{16}; bring"),
        (numbered(4, [0, 1, 0, 2]), "changes: classes was 2, is 3, contents was"),
        ({"00000/img00000003.png": png(picture(9)) + b"longer"}, "changes: contents was"),
        (numbered(5, [0, 1, 0, 1, 0]), "changes: images was 4, is 5, contents was"),
        (numbered(4, [0, 1, 0, 1], mode="L"), "changes: channels was 3, is 1, contents was"),
    ],
    ids=["relabelled", "another class", "one replaced", "one added", "all replaced"],
)
def test_a_resumed_run_refuses_other_data(tmp_path, place, change, message):
    files = numbered(4, [0, 1, 0, 1])
    options = run_on(tmp_path, place, files)
    write(tmp_path / place, {**files, **change})
    with pytest.raises(ValueError, match=f"data must stay as in the run .* got {message}"):
        loop.train(options, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("place", ["data", "data.zip"])
def test_a_run_goes_on_where_its_data_have_moved(tmp_path, place):
    options = run_on(tmp_path, place, numbered(4, [0, 1, 0, 1]))
    (tmp_path / "elsewhere").mkdir()
    moved = str((tmp_path / place).rename(tmp_path / "elsewhere" / place))
    options = dataclasses.replace(options, data=moved)
    trainer = loop.train(options, tmp_path / "run", resume=True, progress=False)
    assert trainer.nimg == 32


def test_a_checkpoint_that_does_not_know_its_data_goes_on_where_they_lay(tmp_path):
    options = run_on(tmp_path, "data", numbered(4, [0, 1, 0, 1]))
    folder = tmp_path / "run" / loop.CHECKPOINTS
    state = durable.load_checkpoint(folder, pytest.fail)
    del state["data"]
    durable.save_checkpoint(folder, 16, state)
    data = write(tmp_path / "other", numbered(5, [0, 1, 0, 1, 0]))
    moved = dataclasses.replace(options, data=str(data))
    with pytest.raises(ValueError, match=f"data was {options.data}, is {data}; repeat"):
        loop.train(moved, tmp_path / "run", resume=True, progress=False)
    write(tmp_path / "data", numbered(5, [0, 1, 0, 1, 0]))
    assert loop.train(options, tmp_path / "run", resume=True, progress=False).nimg == 32


class Noise:
    """A dataset of no more than must be."""

    name, encoder_name, resolution, channels, num_classes = "noise", "pixels", 8, 1, 10

    def __init__(self, count):
        self.images = np.random.RandomState(0).randint(0, 256, (count, 1, 8, 8), np.uint8)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], indices % 10


def test_data_without_a_digest_are_known_by_their_form():
    options = TrainOptions(**TINY)
    state = loop.Trainer(options, Noise(20)).state_dict()
    loop.Trainer(options, Noise(20)).load_state_dict(state)
    with pytest.raises(ValueError, match="got changes: images was 20, is 21; bring"):
        loop.Trainer(options, Noise(21)).load_state_dict(state)


def padded(index: int) -> bytes:
    data = png(picture(index))
    return data + bytes(400 - len(data))


@pytest.mark.parametrize("place", ["data", "data.zip"])
def test_a_picture_replaced_by_one_of_its_size_and_time_is_noticed(tmp_path, place):
    files = {f"{i % 2}/{i:03d}.png": padded(i) for i in range(100)}
    options = run_on(tmp_path, place, files)
    path = tmp_path / place / "0/050.png" if place == "data" else tmp_path / place
    times = os.stat(path)
    training_data._CONTENTS.clear()  # as another process would begin
    write(tmp_path / place, files | {"0/050.png": padded(200)})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=r"changes: contents was [0-9a-f]{16}, is [0-9a-f]{16}"):
        loop.train(options, tmp_path / "run", resume=True, progress=False)


def test_a_folder_is_read_again_only_where_it_was_written_to(tmp_path, monkeypatch):
    options = run_on(tmp_path, "data", numbered(4, [0, 1, 0, 1]))
    real, read = FolderStore.marks, []
    monkeypatch.setattr(
        FolderStore, "marks", lambda self, names: read.append(1) or real(self, names)
    )
    for expected, touch in ((0, False), (1, True), (0, False)):
        training_data._CONTENTS.clear()
        read.clear()
        if touch:
            time.sleep(0.02)
            os.utime(tmp_path / "data/00000/img00000003.png", (0, 0))
        loop.train(options, tmp_path / "run", resume=True, progress=False, stop=lambda nimg: True)
        assert len(read) == expected
        options = dataclasses.replace(options, duration=options.duration + 16)


def test_a_run_goes_on_with_a_zip_file_of_its_folder(tmp_path):
    files = numbered(4, [0, 1, 0, 1])
    options = run_on(tmp_path, "data", files)
    shutil.rmtree(tmp_path / "data")
    path = write(tmp_path / "packed.zip", {f"data/{name}": data for name, data in files.items()})
    options = dataclasses.replace(options, data=str(path))
    assert loop.train(options, tmp_path / "run", resume=True, progress=False).nimg == 32


def test_classes_in_another_order_are_other_data(tmp_path, capsys):
    """Folders 0 to 11, which earlier versions took in the order 0, 1, 10, 11, 2."""
    options = run_on(tmp_path, "data", {f"{i}/a.png": png(picture(i)) for i in range(12)})
    assert "train: the folders for classes are numbers and count as such" in capsys.readouterr().err
    folder = tmp_path / "run" / loop.CHECKPOINTS
    state = durable.load_checkpoint(folder, pytest.fail)
    del state["data"]
    durable.save_checkpoint(folder, 16, state)
    with pytest.raises(ValueError, match=r"must have the classes that the run began with"):
        loop.train(options, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_latents_that_are_not_finite_end_a_run_by_their_name(tmp_path, bad):
    """They would make every gradient nan, which a step repairs, and so train on nothing."""
    arrays = np.random.RandomState(0).rand(4, 8, 8, 8).astype(np.float32)
    arrays[2, 3, 1, 1] = bad
    path = write(tmp_path / "data", {f"{i}.npy": npy(a) for i, a in enumerate(arrays)})
    options = TrainOptions(**TINY, data=str(path), labelled=False, duration=32)
    with pytest.raises(ValueError, match=r"2.npy must be latents that are finite, got 1 numbers"):
        loop.train(options, tmp_path / "run", progress=False)
