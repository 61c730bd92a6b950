"""The command line: parsing, errors in one line, info, sample, plugins."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import autoguide_fast_command
from autoguide_fast.cli import entry, main
from autoguide_fast.cli.arguments import (
    guidance_weights,
    integer_ranges,
    positive_integer,
    shown_ranges,
)


def run(capsys, *arguments):
    """Run the command line; return its exit code, standard output and standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5,0,9-11", [5, 0, 9, 10, 11]),
        ("4,4", [4, 4]),
        ("3-3", [3]),
        ("0, 2", [0, 2]),
    ],
)
def test_integer_ranges(text, values):
    assert integer_ranges(text) == values
    assert integer_ranges(shown_ranges(values)) == values


@pytest.mark.parametrize("text", ["", "-1", "1-", "a", "1.5", "3-1", "1,,2", "0-2-4"])
def test_integer_ranges_rejects(text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"must (be|have)"):
        integer_ranges(text)


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_positive_integer_rejects(text):
    assert positive_integer("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="must be an integer >= 1"):
        positive_integer(text)


@pytest.mark.parametrize("text", ["", "1", "0.5,2", "2,x", "nan", "inf", "2,,3"])
def test_guidance_weights(text):
    assert guidance_weights("2,1.25, 2") == (1.25, 2.0)
    with pytest.raises(argparse.ArgumentTypeError, match="must be numbers above 1"):
        guidance_weights(text)


COMMANDS = ("sample", "grid", "report", "presets", "convert", "demo")

# --- the command itself ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([], "  autoguide-fast demo\n"),
        (["sample"], "  autoguide-fast sample --model digits --seeds 0-63 --classes 3 --out"),
        (["demo"], "  autoguide-fast demo --images 5000 --weights 1.25,"),
    ],
)
def test_help_shows_examples(capsys, command, example):
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0 and "examples:\n" in out and example in out


def test_examples_in_help_and_readme_are_right(capsys):
    texts = [(Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")]
    commands = ([], *([command] for command in COMMANDS))
    texts += [run(capsys, *command, "--help")[1] for command in commands]
    lines = [line.strip() for text in texts for line in text.replace("\\\n", " ").splitlines()]
    lines = [
        re.sub("^torchrun .* -m autoguide_fast.cli ", "autoguide-fast ", line) for line in lines
    ]
    examples = [line for line in lines if line.startswith("autoguide-fast ")]
    ours = [shlex.split(line, comments=True)[1:] for line in examples]
    ours = [words for words in ours if words[0] in ("info", *COMMANDS)]
    assert len(ours) >= 10
    for words in ours:
        assert callable(entry.build_parser().parse_args(words).run), words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "autoguide-fast: the following arguments are required: COMMAND"),
        (["paint"], "autoguide-fast: argument COMMAND: invalid choice: 'paint'"),
        (["sample"], "autoguide-fast sample: the following arguments are required: --out"),
        (["sample", "--out", "x", "--seeds", "9-1"], "--seeds: must have ranges that run upwards"),
        (["sample", "--out", "x", "--steps", "0"], "--steps: must be an integer >= 1, got '0'"),
        (["demo", "--images", "99"], "demo: --images must be >= 100 and <= 10000000, got 99"),
        (["demo", "--images", "1000000000000"], "--images must be >= 100 and <= 10000000, got 1"),
        (["sample", "--out", "x", "--seeds", "0-999999999999"], "must be at most 10000000 int"),
        (["sample", "--out", "x", "--classes", "9" * 5000], "--classes: must be integers >= 0"),
        (["judge", "--images", "10000000000000"], "--images must be >= 100 and <= 10000000, got 1"),
        (["judge", "--workers", "0"], "judge: --workers must be >= 1, got 0"),
        (["judge", "--out", "no/such/folder/a.json"], "--out must be a file in an existing folder"),
        (["plot", "x", "--out", "no/such/folder/a.png"], "--out must be a file in an existing fol"),
        (["demo", "--out", "no/such/folder/a.png"], "--out must be a file in an existing folder"),
        (["demo", "--out", "."], "--out must be a file in an existing folder, got ."),
        (["demo", "--device", "cuda:99"], "device must be present on this machine, got 'cuda:99'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1


def test_interruption_is_no_traceback(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("autoguide_fast.cli.info.collect", interrupt)
    code, _, err = run(capsys, "info")
    assert code == 130 and err == "\nautoguide-fast info: interrupted\n"


def test_interruption_of_the_import_is_no_traceback(tmp_path):
    """The import of the package takes seconds; here, of another one, until Ctrl-C comes."""
    (tmp_path / "autoguide_fast").mkdir()
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "autoguide_fast" / "__init__.py").write_text(slow)
    root = Path(__file__).parent.parent
    program = f"import sys; sys.path[:0] = {[str(tmp_path), str(root)]!r}\n"
    program += "import autoguide_fast_command as command; sys.exit(command.main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "\nautoguide-fast: interrupted\n")


@pytest.mark.parametrize("arguments", [["-m", "autoguide_fast.cli"], ["-mautoguide_fast.cli"]])
@pytest.mark.parametrize("ignored", [False, True])
def test_interruption_of_the_import_of_the_module(tmp_path, arguments, ignored):
    """Where Ctrl-C is ignored, as in the background of a shell, it stays so."""
    (tmp_path / "torch").mkdir()  # the first that takes time; here, until Ctrl-C comes
    slow = "import sys\nprint('importing', flush=True)\nsys.stdin.read()\nsys.exit(7)\n"
    (tmp_path / "torch" / "__init__.py").write_text(slow)
    command = [sys.executable, *arguments, "info"]
    if ignored:
        code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        command = [sys.executable, "-c", code + "os.execv(sys.argv[1], sys.argv[1:])", *command]
    pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
    process = subprocess.Popen(
        command,
        **pipes,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    expected = (7, "") if ignored else (130, "\nautoguide-fast: interrupted\n")
    assert (process.returncode, error) == expected


def test_the_library_leaves_signals_alone():
    program = "import signal, sys; sys.argv[0] = '-m'; import autoguide_fast\n"
    program += "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_interruption_of_a_plugin_is_no_traceback(capsys, monkeypatch):
    def interrupt(subparsers):
        raise KeyboardInterrupt

    monkeypatch.setattr("autoguide_fast.cli.sample.add_command", interrupt)
    assert run(capsys, "info") == (130, "", "\nautoguide-fast: interrupted\n")


def test_the_program_is_the_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["autoguide-fast", "--version"])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        autoguide_fast_command.main()
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("autoguide-fast ")
    assert signal.getsignal(signal.SIGINT) is handler


def test_traceback_on_request(capsys, monkeypatch):
    def fail():
        raise ValueError("info: x must be y, got z;\nask for help")

    monkeypatch.setattr("autoguide_fast.cli.info.collect", fail)
    code, _, err = run(capsys, "info")
    assert (code, err) == (2, "autoguide-fast info: x must be y, got z; ask for help\n")
    with pytest.raises(ValueError, match="x must be y"):
        main(["--traceback", "info"])


def greet_add_command(subparsers):
    parser = subparsers.add_parser("greet")
    parser.add_argument("--name", default="you")
    parser.set_defaults(run=lambda arguments: print(f"hello {arguments.name}"))


def test_plugins_add_commands_and_broken_ones_do_no_harm(capsys, monkeypatch):
    plugins = [
        EntryPoint("greet", f"{__name__}:greet_add_command", entry.PLUGIN_GROUP),
        EntryPoint("broken", "no_such_module:add_command", entry.PLUGIN_GROUP),
    ]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(entry, "entry_points", lambda group: plugins)
    code, out, err = run(capsys, "greet", "--name", "Ada")
    assert (code, out) == (0, "hello Ada\n")
    assert err.startswith("autoguide-fast: the command broken cannot be loaded: No module named")


def test_module_runs_as_a_program():
    command = [sys.executable, "-m", "autoguide_fast.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.startswith("autoguide-fast ")


# --- info -----------------------------------------------------------------------------------


def test_info_for_programs(capsys):
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert code == 0
    for name in ("autoguide_fast", "python", "torch", "numpy", "compiler", "build_type", "isa"):
        assert facts[name], name
    assert "mp_silu" in facts["ops"] and "guided_heun_first" in facts["ops"]
    assert facts["threads"] >= 1 and facts["devices"][0].startswith("cpu")
    assert facts["isa"] in facts["isa_available"]


def test_info_for_people(capsys):
    code, out, _ = run(capsys, "info")
    facts = json.loads(run(capsys, "info", "--json")[1])
    assert code == 0 and "unknown" not in out
    for name in ("torch", "numpy", "compiler", "isa"):
        assert facts[name] in out
    assert all(f"  {op}\n" in out for op in facts["ops"])
    assert ("none: built without CUDA" in out) != bool(facts["cuda_architectures"])


# --- sample ---------------------------------------------------------------------------------

FAST = ("--steps", 2, "--quiet")


def files(folder):
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found)


def test_sample_writes_images_and_grid(capsys, tmp_path):
    out = tmp_path / "new" / "folder"
    code, text, _ = run(capsys, "sample", "--seeds", "3-5", "--classes", "3,7", "--out", out, *FAST)
    assert code == 0 and text.startswith("3 images in ") and str(out) in text
    expected = [f"00000/{name}.png" for name in ("000003-class3", "000004-class7", "000005-class3")]
    assert files(out) == [*expected, "grid.png", "manifest.json"]
    assert Image.open(out / expected[0]).size == (8, 8)
    assert Image.open(out / "grid.png").size == (2 * 48 + 6, 2 * 48 + 6)


def test_sample_repeats_one_seed_in_many_classes(capsys, tmp_path):
    code, text, _ = run(
        capsys, "sample", "--seeds", 7, "--classes", "0-9", "--out", tmp_path, *FAST
    )
    assert code == 0 and text.startswith("10 images in ")
    expected = [f"00000/000007-class{label}.png" for label in range(10)]
    assert files(tmp_path) == [*expected, "grid.png", "manifest.json"]


def test_sample_depends_on_the_seed_alone(capsys, tmp_path):
    common = ("--guidance", 1.5, *FAST)
    run(capsys, "sample", "--seeds", "0-4", "--out", tmp_path / "a", *common)
    run(capsys, "sample", "--seeds", "4,2", "--batch-size", 1, "--out", tmp_path / "b", *common)
    names = ["00000/000002.png", "00000/000004.png"]
    assert files(tmp_path / "b") == [*names, "grid.png", "manifest.json"]
    for name in names:
        a, b = (np.asarray(Image.open(tmp_path / folder / name), int) for folder in "ab")
        assert np.abs(a - b).max() <= 1  # rounding to 0..255 may fall either way


def test_sample_guides_with_the_net_that_is_named(capsys, tmp_path):
    pixels = {}
    for guide in ("digits-guide", "digits-uncond", None):
        out = tmp_path / str(guide)
        option = ("--guide", guide) if guide else ()
        run(capsys, "sample", "--seeds", "1", "--guidance", 3, "--out", out, *option, *FAST)
        pixels[guide] = np.asarray(Image.open(out / "00000" / "000001.png"))
    np.testing.assert_array_equal(pixels["digits-guide"], pixels[None])
    assert not np.array_equal(pixels["digits-uncond"], pixels[None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digitz"], "digitz"),
        (["--classes", "10"], "class_labels must"),
        (["--sigma-min", "90"], "sigma_min must"),
        (["--churn", "1", "2", "3", "4", "5"], "--churn must be at most four numbers, got 5"),
        (["--device", "cuda:99"], "device"),
        (["--interval", "3", "1"], "interval"),
    ],
)
def test_sample_errors_are_one_line(capsys, tmp_path, arguments, message):
    code, out, err = run(
        capsys, "sample", "--seeds", "0", "--out", tmp_path / "out", *FAST, *arguments
    )
    assert code == 2 and out == ""
    assert err.startswith("autoguide-fast sample: ") and message in err and err.count("\n") == 1


def test_sample_says_when_it_cannot_write(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "sample", "--out", tmp_path / "file", *FAST)
    assert code == 2 and err.count("\n") == 1 and "file" in err
