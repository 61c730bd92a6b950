"""`autoguide-fast sample` in several processes, into files, and once more from its manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_sample_command import contents, images
from test_trainer_distributed import torchrun
from tqdm import tqdm

from autoguide_fast import checkpoints, claims, locks, sample
from autoguide_fast.cli import main
from autoguide_fast.cli.sampling import archives, image_folder, outputs, work
from autoguide_fast.seeds import StackedRandom
from autoguide_fast.trainer.data.datasets import open_dataset

FAST = ("--steps", "2", "--quiet", "--batch-size", "4")
MANY = ("--seeds", "990-1051", "--guidance", "1.5", "--churn", "3", "--balanced")


def run(capsys, out, *arguments):
    """Run `sample`; return its exit code, standard output and standard error."""
    try:
        code = main(["sample", "--out", str(out), *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(out, *arguments, before=lambda: None):
    """Run `sample` in another process; return its number."""
    child = os.fork()
    if child == 0:
        code = 99
        tqdm.set_lock(threading.RLock())  # its own is shared, and stays locked by the dead
        try:
            before()
            code = main(["sample", "--out", str(out), *map(str, arguments)])
        finally:
            os._exit(code)
    return child


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def slowly(seconds=0.03):
    """Makes this process take its time for each batch."""
    take = work.Worker._take

    def slow(self, batch, images):
        time.sleep(seconds)
        take(self, batch, images)

    work.Worker._take = slow


def wait_for(condition, child=None):
    deadline = time.monotonic() + 60
    while not condition():
        assert child is None or os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """62 images of two thousands, by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["sample", *FAST, "--out", str(out), *MANY]) == 0
    found = contents(out)
    assert len(found) == 63 and "00000/000999-class9.png" in found
    assert "00001/001051-class1.png" in found
    return out, found


# --- several processes ----------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_started_by_hand_share_the_work(tmp_path, whole, processes):
    out = tmp_path / "out"
    children = [start(out, *FAST, *MANY, before=slowly) for _ in range(processes)]
    assert [exit_code(child) for child in children] == [0] * processes
    assert contents(out) == whole[1]
    assert (out / "manifest.json").read_bytes() == (whole[0] / "manifest.json").read_bytes()


def test_others_do_the_work_of_a_process_that_is_killed(tmp_path, whole):
    out = tmp_path / "out"
    # It claims a batch and never finishes it.
    victim = start(out, *FAST, *MANY, before=lambda: slowly(60))
    wait_for(lambda: (out / claims.CLAIMS).exists(), victim)
    others = [start(out, *FAST, *MANY, before=slowly) for _ in range(2)]
    wait_for(lambda: len(images(out)) >= 56, victim)
    time.sleep(0.3)
    assert os.waitpid(others[0], os.WNOHANG) == (0, 0), "it must wait for the batch of the victim"
    os.kill(victim, signal.SIGKILL)
    assert exit_code(victim) == -signal.SIGKILL
    assert [exit_code(child) for child in others] == [0, 0]
    assert contents(out) == whole[1]


def test_all_processes_are_killed_and_others_go_on(capsys, tmp_path, whole):
    out = tmp_path / "out"
    children = [start(out, *FAST, *MANY, before=slowly) for _ in range(2)]
    wait_for(lambda: len(images(out)) >= 9)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert [exit_code(child) for child in children] == [-signal.SIGKILL] * 2
    there = images(out)
    assert there.items() <= whole[1].items() and len(there) < 62
    torn = out / "00000" / ".000999-class9.77.png"  # as one killed while it wrote leaves it
    torn.write_bytes(b"half")
    damaged = sorted(there)[0]
    (out / damaged).write_bytes(there[damaged][:-9])
    code, said, _ = run(capsys, out, *FAST, *MANY)
    assert code == 0 and f"{63 - len(there)} images in " in said
    assert contents(out) == whole[1]


# Samples like the command, but the second process is killed once, with its third batch.
_MORTAL = """
import os, pathlib, signal, sys, time
from autoguide_fast.cli import main
from autoguide_fast.cli.sampling import work

mark, take = pathlib.Path(os.environ["DEAD"]), work.Worker._take
batches = []

def mortal(self, batch, images):
    batches.append(batch)
    if os.environ["RANK"] == "1" and len(batches) == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    while os.environ["RANK"] == "0" and len(batches) == 3 and not mark.exists():
        time.sleep(0.01)  # so that there is something left for the other one
    take(self, batch, images)

work.Worker._take = mortal
sys.exit(main(["sample", *sys.argv[1:]]))
"""


def test_torchrun_shares_the_work_and_replaces_a_process_that_dies(tmp_path, whole):
    program = tmp_path / "mortal.py"
    program.write_text(_MORTAL)
    options = ("--out", tmp_path / "out", *FAST, *MANY)
    run = torchrun(2, *options, program=program, restarts=1, DEAD=str(tmp_path / "dead"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "dead").exists() and run.stdout.count(" images in ") == 1
    assert contents(tmp_path / "out") == whole[1]


def test_a_process_killed_while_it_writes_the_file_is_replaced(tmp_path):
    """Another process waits for the file, and makes it itself."""
    out, options = tmp_path / "out.zip", (*FAST, "--seeds", "0-9")
    assert main(["sample", "--out", str(tmp_path / "whole.zip"), *options]) == 0

    def hang():
        def half(path, folder, manifest):
            path.write_bytes(b"half")
            time.sleep(60)

        archives.WRITERS[".zip"] = half

    victim = start(out, *options, before=hang)
    partial = tmp_path / "out.zip.partial" / ".file.zip"
    wait_for(lambda: partial.exists() and partial.stat().st_size, victim)
    other = start(out, *options)
    time.sleep(0.5)
    assert os.waitpid(other, os.WNOHANG) == (0, 0) and not out.exists()
    os.kill(victim, signal.SIGKILL)
    assert exit_code(victim) == -signal.SIGKILL and exit_code(other) == 0
    assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "whole.zip"]


def test_a_bar_counts_the_images_of_all_processes(capsys, tmp_path):
    """It starts where the job was stopped, and tells speed and time left."""
    options = [option for option in FAST if option != "--quiet"]
    assert run(capsys, tmp_path / "out", *FAST, "--seeds", "0-29")[0] == 0
    other = start(tmp_path / "out", *FAST, "--seeds", "0-99", before=lambda: slowly(0.5))
    slow = work.Worker._take
    try:
        slowly(0.1)
        code, _, bar = run(capsys, tmp_path / "out", *options, "--seeds", "0-99")
    finally:
        work.Worker._take = slow
    assert code == 0 and exit_code(other) == 0
    shown = [line for line in bar.replace("\r", "\n").splitlines() if "images," in line]
    counts = [int(re.search(r"(\d+)/100 images", line)[1]) for line in shown]
    assert counts == sorted(counts) and counts[0] >= 28 and counts[-1] == 100
    assert any("images/s, 00:0" in line and line.endswith(" left") for line in shown)
    assert run(capsys, tmp_path / "quiet", *FAST, "--seeds", "0-3")[2] == ""


def test_another_job_in_the_folder_is_refused_meanwhile(capsys, tmp_path):
    out = tmp_path / "out"
    child = start(out, *FAST, "--seeds", "0-9", before=lambda: slowly(60))
    wait_for(lambda: (out / claims.CLAIMS).exists(), child)
    wait_for(lambda: (out / claims.CLAIMS).stat().st_size, child)
    for other in (("--seeds", "0-10"), ("--seeds", "0-9", "--rho", "6")):
        code, _, error = run(capsys, out, *FAST, *other)
        assert code == 2 and f"out must be a folder without another job under way, got {out}" in (
            error
        )
        assert f"process {child} on" in error and error.count("\n") == 1
    refused = pytest.raises(ValueError, match=f"which process {child} on")
    with refused, locks.sole_writer(out, "train"):
        pytest.fail("two at once")
    os.kill(child, signal.SIGKILL)
    exit_code(child)
    assert run(capsys, out, *FAST, "--seeds", "0-10")[0] == 0
    assert sorted(contents(out)) == [*(f"00000/{i:06d}.png" for i in range(11)), "grid.png"]


def test_claims_are_taken_once_and_given_back_by_the_dead(tmp_path):
    begun = []

    def take(count, job="job", pieces=9):
        with claims.sharing(tmp_path, "sample", job, pieces, begun.append) as mine:
            taken = []
            for piece in mine.take():
                taken.append(piece)
                if len(taken) == count:
                    break
            return mine, taken, mine.states(), mine.done()

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with claims.sharing(tmp_path, "sample", "job", 9, begun.append) as mine:
            pieces = mine.take()
            for _ in range(3):
                mine.finish(next(pieces), 7)
            next(pieces)
            os.write(writing, b"!")
            signal.pause()
    os.read(reading, 1)
    _, taken, states, done = take(5)
    assert taken == [4, 5, 6, 7, 8] and states == (8,) * 3 + (0,) * 6 and not done
    assert begun == [False]
    with pytest.raises(ValueError, match="without another job under way"):
        take(1, "other")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # Nobody is there any more: what was done counts no longer, since it may have been undone.
    _, taken, states, _ = take(1)
    assert taken == [0] and states == (0,) * 9 and begun == [False, True]
    assert list(tmp_path.iterdir()) == []


# --- files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", ["drawn", "given", "none"])
def test_a_zip_is_a_dataset_of_the_images_and_their_classes(capsys, tmp_path, classes):
    out = tmp_path / "out.zip"
    options = {"given": ["--classes", "3,5"], "none": ["--model", "digits-uncond"]}
    code, said, _ = run(capsys, out, *FAST, "--seeds", "5-14", *options.get(classes, ()))
    assert code == 0 and f"10 images in {out}" in said
    assert [path.name for path in tmp_path.iterdir()] == ["out.zip"]
    streams = StackedRandom("cpu", range(5, 15))
    streams.randn([1, 8, 8])
    drawn = streams.randint(10).tolist()
    labels = {"drawn": drawn, "given": [3, 5] * 5, "none": None}[classes]
    expected = sample(
        "digits-uncond" if classes == "none" else "digits",
        seeds=range(5, 15),
        class_labels=labels,
        num_steps=2,
        batch_size=4,
    )
    with zipfile.ZipFile(out) as archive:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        names = [f"00000/img{i:08d}.png" for i in range(10)]
        assert archive.namelist() == [*names, "dataset.json", "manifest.json"]
        listed = json.loads(archive.read("dataset.json"))
        pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
        assert listed == {"labels": pairs}
    dataset = open_dataset(out)
    found, found_labels = dataset.batch(np.arange(10))
    np.testing.assert_array_equal(found, expected.numpy())
    assert (found_labels is None) == (labels is None)
    if labels is not None:
        assert found_labels.tolist() == labels
    assert run(capsys, out, *FAST, "--seeds", "5-14", *options.get(classes, ()))[1].startswith(
        "all 10 images were there"
    )


def test_an_npz_is_what_the_evaluator_of_adm_reads(capsys, tmp_path, monkeypatch):
    out = tmp_path / "out.npz"
    assert run(capsys, out, *FAST, *MANY)[0] == 0
    expected = sample(
        "digits",
        guidance=1.5,
        seeds=range(990, 1052),
        class_labels=[i % 10 for i in range(62)],
        num_steps=2,
        batch_size=4,
        S_churn=3,
    )
    with np.load(out) as found:
        assert found["arr_0"].dtype == np.uint8 and found["arr_0"].shape == (62, 8, 8, 3)
        for channel in range(3):
            np.testing.assert_array_equal(found["arr_0"][..., channel], expected[:, 0].numpy())
        assert found["arr_1"].tolist() == [i % 10 for i in range(62)]
    with zipfile.ZipFile(out) as archive:  # such as its reader maps into memory
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    before = out.read_bytes()
    (tmp_path / "out.npz").unlink()
    children = [start(out, *FAST, *MANY, before=slowly) for _ in range(2)]
    assert [exit_code(child) for child in children] == [0, 0]
    assert out.read_bytes() == before


def test_a_file_is_refused_that_is_damaged_or_of_another_job(capsys, tmp_path):
    out = tmp_path / "out.zip"
    assert run(capsys, out, *FAST, "--seeds", "0-5")[0] == 0
    whole = out.read_bytes()
    for other, said in (
        (("--seeds", "0-6"), "other seeds, classes or batches in it"),
        (("--seeds", "0-5", "--rho", "6"), "changes: rho was 7.0, is 6.0"),
    ):
        code, _, error = run(capsys, out, *FAST, *other)
        assert code == 2 and f"one of the same job, got {out} with {said}; remove it" in error
    damaged = bytearray(whole)
    damaged[whole.index(b"IDAT") + 9] ^= 1
    for data, said in (
        (damaged, "damage in its part 00000/img00000000.png"),
        (whole[:-30], "a file that `sample` did not write, or a damaged one"),
    ):
        out.write_bytes(data)
        code, _, error = run(capsys, out, *FAST, "--seeds", "0-5")
        assert code == 2 and f"got {out} with {said}; remove it" in error
        assert out.read_bytes() == data
    out.unlink()
    assert run(capsys, out, *FAST, "--seeds", "0-5")[0] == 0 and out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out.zip"]
    (tmp_path / "folder.npz").mkdir()
    code, _, error = run(capsys, tmp_path / "folder.npz", *FAST)
    assert code == 2 and "--out must be a file where it ends in .npz, got the folder" in error


@pytest.mark.parametrize("kind", [".zip", ".npz"])
def test_a_file_for_which_there_is_no_room_leaves_its_images(capsys, tmp_path, kind):
    """The images fit below the limit, the file of all of them does not."""
    out = tmp_path / f"out{kind}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        code, _, error = run(capsys, out, *FAST, "--seeds", "0-29")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and f"{out} must be written, got File too large; " in error
    assert "its images are kept" in error and error.count("\n") == 1
    work_folder = tmp_path / f"out{kind}.partial"
    assert [path.name for path in tmp_path.iterdir()] == [work_folder.name]
    there = images(work_folder)
    assert len(there) == 30 and len(contents(work_folder)) == 30
    victim = sorted(there)[4]
    (work_folder / victim).write_bytes(there[victim][:50])  # finished ones are checked
    code, said, _ = run(capsys, out, *FAST, "--seeds", "0-29")
    assert code == 0 and said.startswith("1 images in") and "29 were there" in said
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert run(capsys, tmp_path / f"other{kind}", *FAST, "--seeds", "0-29")[0] == 0
    assert out.read_bytes() == (tmp_path / f"other{kind}").read_bytes()


def test_a_disk_that_is_full_while_processes_write(capsys, tmp_path, whole, monkeypatch):
    """Each of them says so in a sentence; what is there is whole, and is gone on with."""
    save, out = Image.Image.save, tmp_path / "out"

    def full(image, path, *rest, **more):
        if len(images(out)) > 20:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(image, path, *rest, **more)

    monkeypatch.setattr(Image.Image, "save", full)
    children = [start(out, *FAST, *MANY, before=slowly) for _ in range(2)]
    assert [exit_code(child) for child in children] == [2, 2]
    monkeypatch.undo()
    assert contents(out).items() <= whole[1].items()
    assert run(capsys, out, *FAST, *MANY)[0] == 0 and contents(out) == whole[1]


def test_a_folder_of_an_earlier_version_goes_on(capsys, tmp_path, whole):
    """All images in one folder, and the settings alone."""
    out = tmp_path / "out"
    out.mkdir()
    for path in whole[0].glob("*/*.png"):
        if path.stem != "001003-class3":
            shutil.copy(path, out / path.name)
    settings = json.loads((whole[0] / "manifest.json").read_text())["settings"]
    settings["churn"] = [float(x) for x in settings["churn"]]  # infinity, as Python writes it
    (out / "settings.json").write_text(json.dumps(settings))
    (out / ".partial.png").write_bytes(b"half")
    code, _, error = run(capsys, out, *FAST, *MANY, "--rho", "6")
    assert code == 2 and "rho was 7.0, is 6.0" in error
    assert (out / "000999-class9.png").exists()  # a refused command changes nothing
    code, said, _ = run(capsys, out, *FAST, *MANY)
    assert code == 0 and said.startswith("1 images in") and contents(out) == whole[1]


def test_images_are_written_while_the_next_are_sampled(monkeypatch, tmp_path):
    """Sampling goes on while images wait to be encoded, two batches of them and no more."""
    sampled, written = [], []
    write, take = image_folder.ImageFolder.write, work.Worker._take

    def slow(self, i, image):
        time.sleep(0.05)
        write(self, i, image)
        written.append(i)

    def note(self, batch, images):
        sampled.append((batch.start // 4, len(written) // 4))
        take(self, batch, images)

    monkeypatch.setattr(work, "_cores", lambda: 1)
    monkeypatch.setattr(image_folder.ImageFolder, "write", slow)
    monkeypatch.setattr(work.Worker, "_take", note)
    assert main(["sample", "--out", str(tmp_path / "out"), *FAST, "--seeds", "0-31"]) == 0
    ahead = [batch - done for batch, done in sampled]
    assert 1 < max(ahead) <= work._WAITING + 1


# --- labels and manifests -------------------------------------------------------------------


def test_balanced_classes_go_round(capsys, tmp_path):
    out = tmp_path / "out"
    assert run(capsys, out, *FAST, "--seeds", "7,3-13,40", "--balanced")[0] == 0
    seeds = [7, *range(3, 14), 40]
    expected = {f"00000/{seed:06d}-class{i % 10}.png" for i, seed in enumerate(seeds)}
    assert set(images(out)) == expected
    job = json.loads((out / "manifest.json").read_text())["jobs"][0]
    assert job["labels_rule"] == "image i of the seeds as listed, from 0, has class i mod 10"
    code, _, error = run(capsys, out, "--balanced", "--classes", "3")
    assert code == 2 and "--balanced must come without --classes, got both" in error
    code, _, error = run(capsys, tmp_path / "b", "--balanced", "--model", "digits-uncond")
    assert code == 2 and "must be for a model with classes, got digits-uncond" in error
    assert not (tmp_path / "b").exists()


def test_a_manifest_repeats_its_images(capsys, tmp_path):
    net = tmp_path / "net.safetensors"
    shutil.copy(checkpoints.bundled_path("digits"), net)
    out = tmp_path / "out"
    common = ["--model", net, "--guide", "digits-guide", "--guidance", 1.5, "--churn", 3]
    common += ["--interval", 0.1, 20, "--rho", 5, *FAST]
    assert run(capsys, out, *common, "--seeds", "0-5", "--classes", "2,4")[0] == 0
    # Another job in the same folder; the batches have another size, and so are recorded.
    assert run(capsys, out, *common, "--seeds", "3-9", "--batch-size", 3)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert manifest["settings"]["churn"] == [3.0, 0.0, "inf", 1.0]
    assert [job["seeds"] for job in manifest["jobs"]] == ["0-5", "3-9"]
    assert [job["batch_size"] for job in manifest["jobs"]] == [4, 3]
    (made_with,) = manifest["jobs"][0]["made_with"]
    assert made_with["torch"] == torch.__version__ and made_with["device"] == "cpu"
    assert made_with["processor"] and made_with["threads"] == torch.get_num_threads()
    digest = checkpoints.read_header(net, "test")["checksum"]
    assert manifest["settings"]["model"] == {"name": str(net), "digest": digest}

    def repeat(source, target, *more):
        return run(capsys, tmp_path / target, "--from-manifest", source, "--quiet", *more)

    code, _, error = repeat(out / "manifest.json", "again")
    assert code == 0 and not error
    assert contents(tmp_path / "again") == contents(out)
    assert json.loads((tmp_path / "again" / "manifest.json").read_text()) == manifest
    code, _, error = repeat(out, "again.zip")
    assert code == 2 and "--out must be a folder where the manifest has several jobs" in error
    code, _, error = repeat(out, "other", "--steps", 3)
    assert code == 2 and "must come without other options of sampling, got --steps" in error
    code, _, error = repeat(net, "other")
    assert code == 2 and f"--from-manifest must be a manifest that `sample` wrote, got {net}" in (
        error
    )
    # The net has moved, and another one has its name.
    shutil.move(net, tmp_path / "moved.safetensors")
    checkpoints.save(checkpoints.load("digits-guide"), net)
    code, _, error = repeat(out, "other")
    assert code == 2 and f"got changes: model was {net} (contents {digest[:8]}), is" in error
    assert error.count("\n") == 1 and not (tmp_path / "other").exists()
    assert repeat(out, "moved", "--model", tmp_path / "moved.safetensors")[0] == 0
    assert contents(tmp_path / "moved") == contents(out)
    # Made elsewhere: said, not refused.
    manifest["jobs"][0]["made_with"][0]["torch"] = "2.11.0"
    (tmp_path / "elsewhere.json").write_text(json.dumps(manifest))
    code, _, error = repeat(
        tmp_path / "elsewhere.json", "third", "--model", tmp_path / "moved.safetensors"
    )
    assert code == 0 and "may differ by rounding from those that are repeated: torch 2.11.0" in (
        error
    )


@pytest.mark.parametrize("kind", [".zip", ".npz"])
def test_a_file_is_its_own_manifest(capsys, tmp_path, kind):
    one, two = tmp_path / f"one{kind}", tmp_path / f"two{kind}"
    assert run(capsys, one, *FAST, "--seeds", "0-9", "--balanced")[0] == 0
    assert run(capsys, two, "--from-manifest", one, "--quiet")[0] == 0
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, two)]
    assert digests[0] == digests[1]
    code, _, error = run(capsys, two, "--from-manifest", tmp_path / f"none{kind}", "--quiet")
    assert code == 2 and "must be a manifest, or what `sample` wrote with one, got" in error


def test_grids_of_many_large_images_stay_small():
    """Those that fit into 4096 pixels on a side, of 50,000 images of 512x512, too."""
    assert outputs.grid_count((3, 512, 512)) == 64
    assert outputs.grid_count((3, 64, 64)) == outputs.grid_count((1, 8, 8)) == 1024
    assert outputs.grid_count((3, 8192, 8192)) == 1


def test_files_of_images_are_written_one_image_at_a_time(tmp_path):
    """However many there are, the memory is that of a few."""
    import tracemalloc

    class Folder:
        def __init__(self, count):
            self.job = self
            self.shape, self.first = (3, 64, 64), range(count)

        def pixels(self, i):
            return np.full((3, 64, 64), i % 256, np.uint8)

        def all_labels(self):
            return None

    peaks = []
    for count in (50, 800):
        tracemalloc.start()
        archives.write_npz(tmp_path / "out.npz", Folder(count), "{}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000  # the images themselves are 9 MB more
    with np.load(tmp_path / "out.npz") as found:
        assert (found["arr_0"] == (np.arange(800) % 256).reshape(-1, 1, 1, 1)).all()


def test_evaluate_reads_whatever_sample_writes(tmp_path, capsys):
    """The same figure from a folder, a ZIP file, an .npz and straight from the sampler."""
    reference, figures = tmp_path / "ref.npz", {}
    options = ["--data", "digits", "--features", "pixels", "--out", str(reference)]
    assert main(["evaluate", "ref", *options]) == 0
    sampled = ["--seeds", "0-29", "--steps", "3", "--balanced", "--guidance", "1.5", "--quiet"]
    for out in ("folder", "images.zip", "images.npz", "sampled"):
        path = str(tmp_path / out)
        images = ["--images", path]
        if out == "sampled":
            images = ["--model", "digits", *sampled[:-1]]
        else:
            assert main(["sample", *sampled, "--out", path]) == 0
        common = ["--ref", str(reference), "--metrics", "fd_pixels", "--out", f"{path}.json"]
        assert main(["evaluate", *images, *common]) == 0
        found = json.loads((tmp_path / f"{out}.json").read_text())
        figures[out] = found["metrics"]["fd_pixels"]["mean"]
        told = found["protocol"]["images"]
        if out != "sampled":
            assert told["sampled_with"]["settings"]["guidance"] == 1.5 and told["size"] == [1, 8, 8]
    assert len(set(figures.values())) == 1
