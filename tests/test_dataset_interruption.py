"""Conversions that are interrupted, however it is, and go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dataset_runs import OUTPUTS, Stopped, beside, content, run
from pictures import numbered, picture, pixels, png, write

from autoguide_fast.trainer.data import convert as convert_module
from autoguide_fast.trainer.data import open_dataset, outputs, zip_output
from autoguide_fast.trainer.data.convert import convert
from autoguide_fast.trainer.data.outputs import open_output
from autoguide_fast.trainer.data.sources import Origin

ORIGIN = Origin(1, 2, 3)


def opened(dest, options=None):
    """An output of pictures whose sources do not change."""
    return open_output("s", dest, ".png", options or {}, lambda index, origin: origin == ORIGIN)


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("after", [0, 1, 7, 12])
def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch, out, after):
    source = write(tmp_path / "source", numbered(12, list(range(12))))
    convert(source, tmp_path / ("whole" + out), workers=2)
    made, real = [], convert_module._convert_one

    def stopping(source, index, *rest):
        if index >= after:
            raise Stopped
        return real(source, index, *rest)

    monkeypatch.setattr(convert_module, "_convert_one", stopping)
    if after < 12:
        with pytest.raises(Stopped):
            convert(source, tmp_path / out)
        assert not (tmp_path / out).exists()

    def counting(source, index, *rest):
        made.append(index)
        return real(source, index, *rest)

    monkeypatch.setattr(convert_module, "_convert_one", counting)
    report = convert(source, tmp_path / out)
    resumed = after if after < 12 else 0
    assert report.resumed == resumed and made == list(range(resumed, 12))
    assert content(tmp_path / out) == content(tmp_path / ("whole" + out))
    assert beside(tmp_path / out) == [out]


@pytest.mark.parametrize("out", OUTPUTS)
def test_an_end_between_the_last_byte_and_the_name(tmp_path, out):
    source = write(tmp_path / "source", numbered(4, [0, 1, 0, 1]))
    convert(source, tmp_path / ("whole" + out))
    files = content(tmp_path / ("whole" + out))
    for stop in (True, False):
        with (
            pytest.raises(Stopped) if stop else contextlib.nullcontext(),
            opened(tmp_path / out) as output,
        ):
            assert [output.has(i) for i in range(4)] == [not stop] * 4
            for index, name in enumerate(sorted(files)[:4]) if stop else ():
                output.write(index, files[name], ORIGIN)
            output.finish(np.array([0, 1, 0, 1]), None, 4)
            if stop:
                raise Stopped
    assert content(tmp_path / out) == files


@pytest.mark.parametrize("lost", [1, 30, 200])
def test_a_torn_file_is_made_again(tmp_path, lost):
    files = numbered(5)
    options = {"a": 1}
    with pytest.raises(Stopped), opened(tmp_path / "out.zip", options) as output:
        for index, name in enumerate(sorted(files)):
            output.write(index, files[name], ORIGIN)
        raise Stopped
    partial = tmp_path / "out.zip.partial"
    os.truncate(partial, partial.stat().st_size - lost)
    with opened(tmp_path / "out.zip", options) as output:
        assert [output.has(i) for i in range(5)] == [True] * 4 + [False]
        output.write(4, files["00000/img00000004.png"], ORIGIN)
        assert output.finish(None, None, 5) == 5
    found = content(tmp_path / "out.zip")
    assert {name: found[name] for name in files} == files


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_conversion_survives_kill(tmp_path, monkeypatch, out):
    """kill -9 at several moments, then the conversion to its end: as if nothing had happened."""
    source = write(tmp_path / "source", numbered(400, list(range(400)), size=(32, 32)))
    convert(source, tmp_path / ("whole" + out), workers=2)
    real = convert_module._convert_one

    def slowly(*arguments):
        time.sleep(0.003)
        return real(*arguments)

    monkeypatch.setattr(convert_module, "_convert_one", slowly)
    partial, written = tmp_path / (out + ".partial"), [0]
    while len(written) <= 10 and written[-1] < 800_000:  # of 1,200,000 bytes
        arguments = (source, tmp_path / out)
        process = multiprocessing.get_context("fork").Process(target=convert, args=arguments)
        process.start()
        while process.is_alive() and _size(partial) < written[-1] + 20_000:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        written.append(_size(partial))
    assert written == sorted(written) and len(written) > 4
    assert convert(source, tmp_path / out).resumed > 50
    assert content(tmp_path / out) == content(tmp_path / ("whole" + out))
    assert beside(tmp_path / out) == [out]


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.glob("*/img*"))
    return path.stat().st_size if path.exists() else 0


def test_ctrl_c_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    source = write(tmp_path / "source", numbered(3))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "_convert_one", interrupt)
    code, _, err = run(capsys, "convert", source, tmp_path / "out", "--quiet")
    assert code == 130 and "interrupted; repeat the command to go on" in err
    monkeypatch.undo()
    assert run(capsys, "convert", source, tmp_path / "out", "--quiet")[0] == 0


def test_options_must_stay_when_going_on(tmp_path):
    source = write(tmp_path / "source", numbered(3))
    with pytest.raises(Stopped), opened(tmp_path / "out", {"x": 1, "y": 2}):
        raise Stopped
    with (
        pytest.raises(ValueError, match=r"begun, got changes: x was 1, is 5; repeat .* or remove"),
        opened(tmp_path / "out", {"x": 5, "y": 2}),
    ):
        pass
    with pytest.raises(ValueError, match="command was None, is convert"):
        convert(source, tmp_path / "out")


def test_two_processes_cannot_write_one_output(tmp_path):
    with opened(tmp_path / "out") as output:
        output.write(0, b"first", ORIGIN)
        with (
            pytest.raises(ValueError, match="dest must be written by one process") as caught,
            opened(tmp_path / "out"),
        ):
            pass
        assert f"got {tmp_path / 'out'}, which process {os.getpid()} on" in str(caught.value)
        assert output.finish(None, None, 1) == 1
    assert (tmp_path / "out/00000/img00000000.png").read_bytes() == b"first"


def test_one_that_waited_for_another_does_not_overwrite_it(tmp_path, monkeypatch):
    """Between the question and the lock, the other may have finished."""
    real = outputs.locked

    def late(*arguments):
        (tmp_path / "out.zip").write_bytes(b"the other's")
        return real(*arguments)

    monkeypatch.setattr(outputs, "locked", late)
    with pytest.raises(ValueError, match="dest must not exist"), opened(tmp_path / "out.zip"):
        pass
    assert (tmp_path / "out.zip").read_bytes() == b"the other's"


@pytest.mark.parametrize("text", ["", "null", "[1]", '{"x": ', "\xff"])
def test_damaged_options_are_not_taken_for_the_same(tmp_path, text):
    with pytest.raises(Stopped), opened(tmp_path / "out", {"x": 1}):
        raise Stopped
    record = tmp_path / "out.partial.json"
    record.write_bytes(text.encode("latin1"))
    with (
        pytest.raises(ValueError, match=r"x was None, is 1; .* or remove out.partial and "),
        opened(tmp_path / "out", {"x": 1}),
    ):
        pass


def test_options_of_a_conversion_that_is_gone_count_no_more(tmp_path):
    """Killed between its renaming and the removal of its options; then the output was removed."""
    (tmp_path / "out.partial.json").write_text('{"x": 1}')
    with opened(tmp_path / "out", {"x": 2}) as output:
        output.write(0, b"first", ORIGIN)
        output.finish(None, None, 1)
    assert beside(tmp_path / "out") == ["out"]


def test_zip_output_beyond_the_old_limits(tmp_path, monkeypatch):
    """Many files, and places past what four bytes hold, read back by another implementation."""
    path = tmp_path / "many.zip"
    output = zip_output.ZipOutput(path, bool)
    for index in range(70_000):
        output.write(f"{index:05d}", b"")
    output.finish()
    output.close()
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 70_000

    path = tmp_path / "far.zip"
    output = zip_output.ZipOutput(path, bool)
    output.write("first", b"1")
    output._file.seek(5 << 30)  # a hole in the file, which takes no room
    output.write("second", b"2")
    output.finish()
    output.close()
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[1].header_offset == 5 << 30
        assert [archive.read(name) for name in archive.namelist()] == [b"1", b"2"]


# --- sources that change ------------------------------------------------------------------------


def interrupted(source, dest, after):
    """Converts the first `after` files, and is stopped."""

    def stopping(source, index, *rest):
        if index >= after:
            raise Stopped
        return real(source, index, *rest)

    real = convert_module._convert_one
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(convert_module, "_convert_one", stopping)
        convert(source, dest)


def padded(index: int, size: int) -> bytes:
    """A picture in so many bytes."""
    data = png(picture(index))
    return data + bytes(size - len(data))


@pytest.mark.parametrize("out", OUTPUTS)
@pytest.mark.parametrize("place", ["source", "source.zip"])
def test_what_was_made_from_files_that_changed_is_made_anew(capsys, tmp_path, place, out):
    """Replaced by one of the same size, with the same time: content decides."""
    files = {f"{i}.png": padded(i, 400) for i in range(6)}
    source = write(tmp_path / place, files)
    interrupted(source, tmp_path / out, 4)
    files["2.png"] = padded(9, 400)
    times = os.stat(source / "2.png" if source.is_dir() else source)
    write(tmp_path / place, files if place.endswith(".zip") else {"2.png": files["2.png"]})
    os.utime(
        source / "2.png" if source.is_dir() else source, ns=(times.st_atime_ns, times.st_mtime_ns)
    )
    code, printed, err = run(capsys, "convert", source, tmp_path / out, "--quiet")
    assert code == 0 and "have changed since was made anew" in printed, err
    images, _ = open_dataset(tmp_path / out).batch(np.arange(6))
    wanted = [pixels(i).transpose(2, 0, 1) for i in (0, 1, 9, 3, 4, 5)]
    assert np.array_equal(images, wanted)
    assert beside(tmp_path / out) == [out]


@pytest.mark.parametrize("out", OUTPUTS)
def test_files_that_are_only_newer_have_not_changed(tmp_path, out):
    source = write(tmp_path / "source", numbered(6, [0] * 6))
    interrupted(source, tmp_path / out, 4)
    for path in source.rglob("*.png"):
        os.utime(path, (0, 0))
    report = convert(source, tmp_path / out)
    assert report.resumed == 4 and not report.changed


def test_a_changed_file_that_is_broken_now_leaves_no_picture(tmp_path):
    source = write(tmp_path / "source", numbered(4, [0, 1, 2, 3]))
    interrupted(source, tmp_path / "out", 3)
    (source / "00000/img00000001.png").write_bytes(b"text")
    report = convert(source, tmp_path / "out")
    assert report.written == 3 and len(report.broken) == 1
    assert open_dataset(tmp_path / "out").batch(np.arange(3))[1].tolist() == [0, 2, 3]


def test_more_files_are_another_source(tmp_path):
    source = write(tmp_path / "source", numbered(4))
    interrupted(source, tmp_path / "out", 3)
    write(source, {"00000/img00000009.png": png(picture(9))})
    with pytest.raises(ValueError, match=r"begun, got changes: files was 4 \(.*, is 5 \("):
        convert(source, tmp_path / "out")
