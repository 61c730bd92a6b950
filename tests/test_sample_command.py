"""`autoguide-fast sample` writes images as they come, and goes on where it was stopped."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import shutil
import signal
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from nets import tiny
from PIL import Image
from tqdm import tqdm

from autoguide_fast import checkpoints, sample
from autoguide_fast.cli import main
from autoguide_fast.cli.sampling import image_folder, work
from autoguide_fast.cli.sampling.job import Job
from autoguide_fast.cli.sampling.manifest import MANIFEST
from autoguide_fast.cli.sampling.options import Sampling
from autoguide_fast.encoders import PixelEncoder

FAST = ("--steps", "2", "--quiet", "--batch-size", "4")


def run(capsys, out, *arguments):
    """Run `sample`; return its exit code, standard output and standard error."""
    code = main(["sample", *FAST, "--out", str(out), *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def contents(folder):
    """The images in a folder and their bytes; all files must be whole and known."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    found.pop(MANIFEST)
    return found


def images(folder):
    """The images in a folder that have their names, whole or not, and their bytes."""
    paths = sorted(folder.glob("*/[0-9]*.png"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """22 images, written without interruption, and the options that made them."""
    options = ("--seeds", "0-21", "--guidance", "1.5", "--churn", "3")
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(["sample", *FAST, "--out", str(out), *options]) == 0
    return contents(out), options


def slowly_encoded(image, encode=image_folder.plots.to_image):
    time.sleep(0.02)
    return encode(image)


def test_a_command_killed_in_the_midst_goes_on_to_the_same_bytes(capsys, tmp_path, whole):
    """Killed with -9, time and again; what is there at any time is whole."""
    expected, options = whole
    out = tmp_path / "out"
    kills = 0
    for wait_for in (1, 6, 7, 13):  # images: in batches and between them
        child = os.fork()
        if child == 0:
            tqdm.set_lock(threading.RLock())  # its own is shared, and stays locked by the dead
            image_folder.plots.to_image = slowly_encoded
            os._exit(main(["sample", *FAST, "--out", str(out), *options]))
        while len(list(out.glob("*/[0-9]*.png"))) < wait_for:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        there = images(out)
        assert there.items() <= expected.items() and len(there) < 22
    assert kills == 4
    code, said, _ = run(capsys, out, *options)
    assert code == 0 and f"{22 - len(there)} images in " in said
    assert f"{len(there)} were there: 22 files" in said
    assert contents(out) == expected


def test_only_what_is_missing_or_damaged_is_written_again(capsys, tmp_path, whole):
    expected, options = whole
    out = tmp_path / "out"
    run(capsys, out, *options)
    damaged = out / "00000" / "000007.png"
    size = damaged.stat().st_size
    other = Image.fromarray(np.zeros((9, 8), np.uint8))
    damages = [
        lambda: damaged.unlink(),
        lambda: damaged.write_bytes(b""),
        lambda: os.truncate(damaged, size - 20),
        lambda: damaged.write_text("no picture"),
        lambda: other.save(damaged),
    ]
    for place in range(8, size, 7):
        data = bytearray(expected["00000/000007.png"])
        data[place] ^= 4
        damages.append(lambda data=data: damaged.write_bytes(data))
    folder = image_folder.ImageFolder(out, Job(Sampling(seeds=range(22))))
    for damage in damages:
        damage()
        assert folder.missing(range(22)) == [7]
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/0*.png")}
    code, said, _ = run(capsys, out, *options)
    assert code == 0 and said.startswith("1 images in ") and "21 were there" in said
    assert contents(out) == expected
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [damaged]
    (out / "grid.png").unlink()
    code, said, _ = run(capsys, out, *options)
    assert said.startswith("all 22 images were there") and contents(out) == expected


def test_networks_compute_in_the_type_that_is_asked_for(capsys, tmp_path):
    assert run(capsys, tmp_path, "--seeds", "0-3", "--compute-dtype", "int8")[0] == 0
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["settings"]["compute_dtype"] == "int8"
    code, _, err = run(capsys, tmp_path, "--seeds", "0-5")
    assert code == 2 and "compute_dtype" in err
    code, _, err = run(capsys, tmp_path / "b", "--compute-dtype", "float16")
    assert code == 2 and "dtype must be torch.float32, torch.bfloat16, torch.int8 or 'auto'" in err


def test_other_settings_are_refused_and_named(capsys, tmp_path):
    out, net = tmp_path / "out", tmp_path / "net.safetensors"
    shutil.copy(checkpoints.bundled_path("digits"), net)
    given = {"--model": net, "--seeds": "0-3", "--guidance": 1.5, "--guide": "digits-guide"}

    def again(**changes):
        options = given | {"--" + name.replace("_", "-"): v for name, v in changes.items()}
        words = [word for option in options.items() for word in option]
        return run(capsys, out, *words)

    assert again()[0] == 0
    before = contents(out)
    for change, said in (
        ({"guidance": 2.0}, "guidance was 1.5, is 2.0;"),
        ({"guidance": 1}, "guide was digits-guide (contents "),
        ({"rho": 5, "sigma_max": 70}, "sigma_max was 80.0, is 70.0, rho was 7.0, is 5.0;"),
        ({"churn": 4}, "churn was none, is [4.0, 0.0, inf, 1.0];"),
        ({"model": "digits-guide"}, f"model was {net} (contents "),
    ):
        code, _, error = again(**change)
        assert code == 2 and "settings must stay those of the images in" in error
        assert said in error and error.count("\n") == 1
    checkpoints.save(checkpoints.load("digits-guide"), net)  # another net under the same name
    code, _, error = again()
    assert code == 2 and f"model was {net} (contents 2ff34908), is {net} (contents " in error
    assert contents(out) == before
    # What is in the files' names, and what changes no more than rounding, may differ.
    shutil.copy(checkpoints.bundled_path("digits"), net)
    for more in ({"seeds": "2-6"}, {"classes": 3}, {"batch_size": 2}):
        assert again(**more)[0] == 0
    found = contents(out)
    assert len(found) == 7 + 4 + 1 and before["00000/000003.png"] == found["00000/000003.png"]
    (out / MANIFEST).write_bytes(b"{")
    code, _, error = again()
    assert code == 2 and f"{out / MANIFEST} must say how" in error and "damaged" in error
    # Without settings, images would pass for those of the next command that is stopped.
    (out / MANIFEST).unlink()
    code, _, error = again()
    assert code == 2 and "got 11 of them and no such file; remove them" in error
    assert not (out / MANIFEST).exists()
    for path in out.glob("*/0*.png"):
        path.unlink()
    assert again()[0] == 0


@pytest.mark.parametrize(
    ("encoder", "rule"),
    [(None, "have an encoder that makes"), (PixelEncoder(), "make images of 1 or 3 channels")],
)
def test_a_net_without_pictures_is_refused_before_the_work(
    capsys, tmp_path, monkeypatch, encoder, rule
):
    net = tiny()  # of two channels
    net.encoder = encoder
    path = tmp_path / "net.safetensors"
    checkpoints.save(net, path)
    monkeypatch.setattr("autoguide_fast.sample", pytest.fail)
    code, _, error = run(capsys, tmp_path / "out", "--model", path)
    assert code == 2 and f"model must {rule}" in error and f"got {path} with" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_full_disk_leaves_whole_images_and_says_what_to_do(capsys, tmp_path, whole, monkeypatch):
    expected, options = whole
    save, saved = Image.Image.save, itertools.count()  # from several threads

    def full(image, path, *rest, **more):
        if next(saved) >= 6:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(image, path, *rest, **more)

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, error = run(capsys, tmp_path / "out", *options)
    monkeypatch.undo()
    assert code == 2 and ".png must be written, got No space left on device; make room" in error
    assert "repeat the command: it goes on" in error and error.count("\n") == 1
    there = contents(tmp_path / "out")
    assert len(there) == 6 and there.items() <= expected.items()
    assert run(capsys, tmp_path / "out", *options)[0] == 0
    assert contents(tmp_path / "out") == expected


def test_files_that_may_not_grow_are_a_sentence(capsys, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, _, error = run(capsys, tmp_path / "out", "--seeds", "0-3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "File too large; choose a place" in error and "Errno" not in error


def test_ctrl_c_says_how_far_it_came(capsys, tmp_path, whole, monkeypatch):
    expected, options = whole
    take = work.Worker._take

    def press_ctrl_c(self, batch, images):
        take(self, batch, images)
        if 8 in batch:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(work.Worker, "_take", press_ctrl_c)
    code, _, error = run(capsys, tmp_path / "out", *options)
    monkeypatch.undo()
    assert code == 130 and "interrupted; 12 of 22 images are in" in error
    assert len(contents(tmp_path / "out")) == 12
    assert run(capsys, tmp_path / "out", *options)[0] == 0
    assert contents(tmp_path / "out") == expected


def test_batches_are_handed_out_and_not_kept():
    options = {"seeds": range(10), "num_steps": 2, "batch_size": 4}
    together = sample("digits", **options)
    got, alive = {}, []

    def take(indices, images):
        alive.append(sum(ref() is not None for ref in refs))
        refs.append(weakref.ref(images))
        got.update(zip(indices, images.clone(), strict=True))

    refs = []
    assert sample("digits", on_batch=take, **options) is None
    assert torch.equal(torch.stack([got[i] for i in range(10)]), together)
    assert alive == [0, 0, 0]
    arrays = []
    sample("digits", on_batch=lambda i, x: arrays.append(x), array="numpy", **options)
    np.testing.assert_array_equal(np.concatenate(arrays), together.numpy())
    with pytest.raises(TypeError, match="on_batch must be callable, got int; it is called with"):
        sample("digits", on_batch=3, **options)


def test_batches_may_be_handed_out_one_by_one():
    """Each is asked for when the one before has been sampled; the rest is not sampled."""
    together = sample("digits", seeds=range(10), num_steps=2, batch_size=4)
    got, order = {}, []

    def hand_out():
        for batch in (range(8, 10), range(4)):
            order.append(batch)
            yield batch

    def take(indices, images):
        order.append(indices)
        got.update(zip(indices, images, strict=True))

    options = {"seeds": range(10), "num_steps": 2}
    assert sample("digits", batches=hand_out(), on_batch=take, **options) is None
    assert order == [range(8, 10), range(8, 10), range(4), range(4)]
    assert sorted(got) == [0, 1, 2, 3, 8, 9] and all(torch.equal(got[i], together[i]) for i in got)
    numbers = []
    sample(
        "digits",
        batches=[range(4)],
        on_batch=take,
        callback=lambda info: numbers.append((info.batch, info.num_batches)),
        **options,
    )
    assert numbers == [(0, None)] * 2
    with pytest.raises(ValueError, match="on_batch must be given with batches, got None; it"):
        sample("digits", batches=[range(4)], **options)
    for wrong in (range(8, 12), range(0), range(0, 4, 2), [0, 1]):
        with pytest.raises(ValueError, match="batches must be ranges of the 10 images, got"):
            sample("digits", batches=[wrong], on_batch=take, **options)


def test_ways_to_guide_and_to_sample(tmp_path):
    """Several guides, kinds and samplers are named in the manifest, which makes them again."""
    from autoguide_fast import sample
    from autoguide_fast.guidance import APG, CFGPlusPlus

    command = ["--seeds", "0-1", "--steps", "3", "--quiet", "--out"]
    ways = {
        "kind": (["--kind", "apg:eta=0.5", "--guidance", "1.7"], {"guidance": APG(1.7, eta=0.5)}),
        "euler": (
            ["--kind", "cfg_plus_plus", "--guidance", "0.5", "--sampler", "euler"],
            {"guidance": CFGPlusPlus(0.5), "sampler": "euler"},
        ),
        "schedule": (["--schedule", "flow"], {"schedule": "flow"}),
        "self": (
            ["--guide", "self:random_labels", "--guidance", "1.2"],
            {"guide": "self:random_labels", "guidance": 1.2},
        ),
        "several": (
            [
                "--guide",
                "digits-guide",
                "digits-uncond",
                "--guidance",
                "1.5",
                "1.2",
                "--interval",
                "0",
                "1",
                "0.1",
                "9",
            ],
            {
                "guide": ["digits-guide", "digits-uncond"],
                "guidance": [1.5, 1.2],
                "interval": [(0, 1), (0.1, 9)],
            },
        ),
    }
    for name, (options, expected) in ways.items():
        out = tmp_path / name
        assert main(["sample", *options, *command, str(out)]) == 0
        images = sample("digits", **expected, seeds=range(2), num_steps=3).numpy()
        found = [np.asarray(Image.open(out / "00000" / f"{i:06d}.png")) for i in range(2)]
        np.testing.assert_array_equal(found, images[:, 0])
        again = ["sample", "--from-manifest", str(out), "--quiet", "--out", str(tmp_path / "again")]
        assert main([*again[:-1], again[-1] + name]) == 0
        other = tmp_path / f"again{name}" / "00000" / "000001.png"
        assert other.read_bytes() == (out / "00000" / "000001.png").read_bytes()
        # The folder is of this way alone.
        assert main(["sample", *command, str(out)]) == 2
    assert (
        main(
            [
                "sample",
                "--kind",
                "apg:eta=0.2",
                "--guidance",
                "1.7",
                *command,
                str(tmp_path / "kind"),
            ]
        )
        == 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "abc"], "--kind must be one of apg, cfg_plus_plus"),
        (["--kind", "apg:most"], "--kind apg must have eta=NUMBER, momentum=NUMBER, most=NUMBER"),
        (["--kind", "apg", "--guidance", "1", "2"], "--kind must be for one guide"),
        (["--interval", "1"], "--interval must be pairs of noise levels, got 1"),
        (["--guidance", "2", "3"], "--guidance must be one weight for each of 1 guides, got 2"),
        (["--sampler", "abc"], "sampler must be one of heun, euler"),
        (["--schedule", "abc"], "schedule must be one of rho, exponential"),
    ],
)
def test_bad_ways(options, message, tmp_path, capsys):
    assert (
        main(["sample", *options, "--seeds", "0", "--quiet", "--out", str(tmp_path / "out")]) == 2
    )
    assert message in capsys.readouterr().err
