"""One process at a time writes to a folder; what cannot be written is said with its remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket

import pytest

from autoguide_fast import files, locks
from autoguide_fast.cli import main
from autoguide_fast.locks import sole_writer as writer


@contextlib.contextmanager
def other_process(folder):
    """Another process that holds the lock of a folder; gives its number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with writer(folder, "train"):
            os.write(writing, b"!")
            signal.pause()
    try:
        assert os.read(reading, 1) == b"!"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_second_writer_is_told_of_the_first_until_that_is_gone(tmp_path):
    with other_process(tmp_path / "run") as child:
        message = f"got {tmp_path / 'run'}, which process {child} on {socket.gethostname()} "
        rule = "sample: out must be written by one process"
        with pytest.raises(ValueError, match=rule) as caught, writer(tmp_path / "run", "sample"):
            pytest.fail("two at once")
        assert message in str(caught.value)
    # The other was killed with -9.
    with writer(tmp_path / "run", "sample"):
        assert (tmp_path / "run" / locks.LOCK).is_file()
        me = f"which process {os.getpid()} on"
        with pytest.raises(ValueError, match=me), writer(tmp_path / "run", "sample"):
            pytest.fail("two at once")
        (tmp_path / "run" / "written").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["written"]


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    for made in (False, True):
        with contextlib.suppress(KeyError), writer(tmp_path / "run", "train"):
            raise KeyError
        assert (tmp_path / "run").exists() == made
        (tmp_path / "run").mkdir(exist_ok=True)


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking, the one before may remove the file: the new one counts."""
    flock, calls = locks.fcntl.flock, []

    def removed_once(file, how):
        calls.append(how)
        flock(file, how)
        if len(calls) == 1:
            (tmp_path / locks.LOCK).unlink()

    monkeypatch.setattr(locks.fcntl, "flock", removed_once)
    with writer(tmp_path, "train"):
        monkeypatch.undo()
        rule = "by one process at a time"
        with pytest.raises(ValueError, match=rule), writer(tmp_path, "train"):
            pytest.fail("two at once")
    assert len(calls) == 2


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, capsys):
    def unsupported(file, how):
        raise OSError(errno.ENOLCK, "")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with writer(tmp_path, "train"):
        assert f"train: {tmp_path} is on a file system without locks (No locks available); see" in (
            capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--resume", "auto"],
        ["sample", "--seeds", "0", "--steps", "1"],
        ["ema", "reconstruct", "--ema", "0.1", "--run"],
        ["tune", "--images", "100", "--guide", "{run}", "--main"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_leave_a_folder_to_the_one_that_writes_it(capsys, tmp_path, arguments, request):
    if arguments[-1] in ("--run", "--main"):
        run = request.getfixturevalue("stored_run")
        arguments = [str(run) if a == "{run}" else a for a in [*arguments, str(run)]]
    with other_process(tmp_path / "out") as child:
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert f"out must be written by one process at a time, got {tmp_path / 'out'}" in error
        assert f"process {child} on" in error and error.count("\n") == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == [locks.LOCK]


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    """A run of one step."""
    from autoguide_fast.trainer import loop
    from autoguide_fast.trainer.options import TrainOptions

    out = tmp_path_factory.mktemp("stored") / "run"
    options = TrainOptions(channels=4, channels_per_head=4, batch=16, duration=16, snapshots=1)
    loop.train(options, out, progress=False)
    return out


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OSError(errno.ENOSPC, ""), "No space left on device", "make room"),
        (OSError(errno.EDQUOT, ""), "Disk quota exceeded", "make room"),
        (OSError(errno.EACCES, ""), "Permission denied", "get permission"),
        (OSError(errno.EROFS, ""), "Read-only file system", "not read-only"),
        (OSError(errno.EEXIST, ""), "File exists", "another name"),
        (OSError(errno.EISDIR, ""), "Is a directory", "folder that is in the way"),
        (RuntimeError("I/O error (os error 28)"), "No space left on device", "make room"),
        (OSError("it reads back otherwise"), "it reads back otherwise", "another place"),
    ],
)
def test_advice_fits_what_failed(error, reason, remedy):
    assert files.reason(error) == reason and remedy in files.remedy(error)


def test_a_file_that_cannot_be_written_is_named_as_the_user_knows_it(tmp_path):
    path = tmp_path / "job.json"
    path.write_text("before")
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken", ".job.77.json")):

        def write(temporary, error=error):
            temporary.write_text("half")
            raise error

        with pytest.raises(OSError) as caught:
            files.write_atomically(path, write)
        assert caught.value.filename == str(path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.write_atomically(path, lambda target: target.write_text("figures"))
    assert os.read(reading, 20) == b"figures" and path.is_fifo()
    os.close(reading)


@pytest.mark.parametrize(
    "arguments",
    [["sample", "--seeds", "0"], ["train", "--duration", "256"]],
    ids=lambda arguments: arguments[0],
)
def test_a_file_in_place_of_the_folder_is_a_sentence(capsys, tmp_path, arguments):
    (tmp_path / "file").touch()
    for out, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "x", "Not a dir")):
        assert main([*arguments, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert f"out must be a folder that can be written, got {out} ({why}" in error
        assert "Errno" not in error and "room" not in error and error.count("\n") == 1
