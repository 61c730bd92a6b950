"""The races of whole samplings that wait for a GPU, run on the CPU with a small pair."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu_nets(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_nets

    return gpu_nets


def test_races_run_and_are_written_down(tmp_path):
    script = ROOT / "benchmarks" / "gpu_nets.py"
    command = [sys.executable, str(script), str(tmp_path), "--device", "cpu", "--tiny"]
    command += ["--seconds", "1000"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-2000:] + run.stdout[-2000:]
    facts = json.loads((tmp_path / "cpu-nets.json").read_text())
    assert [row["batch"] for row in facts["rows"]] == [1, 4]
    for row in facts["rows"]:
        assert set(row["contestants"]) == {"ours-float32", "eager"}
        assert row["contestants"]["ours-float32"]["error"] < 1e-5
        assert len(row["contestants"]["eager"]["seconds"]) >= 2
        assert row["contestants"]["ours-float32"]["over_ours"] == 1
    assert facts["rows"][0]["first_image_seconds"] > 0
    text = (tmp_path / "cpu-nets.md").read_text()
    assert text == run.stdout[: len(text)] and text.count("| tiny |") == 4


FIGURES = {
    "contestants": {
        "ours-float16": {
            "seconds": [1.0],
            "median": 1.0,
            "over_ours": 1.0,
            "error": 1e-3,
            "tflop_per_second": 100.0,
        },
        "eager": {"failed": "ValueError: off"},
    }
}


@pytest.mark.parametrize("how", ["failed", "unfinished"])
def test_a_row_that_ends_early_keeps_what_it_had(how, gpu_nets, monkeypatch):
    output = json.dumps(FIGURES) + "\n" + '{"contest'  # the second line was being written

    def run(command, timeout, **options):
        if how == "unfinished":
            raise subprocess.TimeoutExpired(command, timeout, output.encode())
        return subprocess.CompletedProcess(command, 1, output, "Traceback ...\nmine: too hot")

    monkeypatch.setattr(gpu_nets.subprocess, "run", run)
    args = argparse.Namespace(device="cuda", reference=None)
    row = gpu_nets.run_row(args, ("s-xs", 8, 32), ["ours-float16", "eager"], 60, False)
    assert row["contestants"] == FIGURES["contestants"] and how in row
    machine = {**gpu_nets.cpu(), "command": "python x"}
    text = gpu_nets.table({"machine": machine, "ceilings": {}, "rows": [row]})
    assert "`python x`" in text and "| ours-float16 | 1 | 8 | 1.00 | 100.0 |" in text
    assert "eager: ValueError: off" in text and row[how] in text


def test_a_contestant_that_fails_leaves_the_others(gpu_nets, monkeypatch, capsys):
    import gpu_row

    class Broken:
        def model(self, *arguments):
            raise RuntimeError("mine\nand more")

    make = gpu_row.contestant

    def contestant(name, model, guide, path):
        if name == "eager":
            return Broken()
        return make("eager" if name == "compile" else name, model, guide, path)

    monkeypatch.setattr(gpu_row, "contestant", contestant)
    args = argparse.Namespace(
        pair="tiny",
        batch=2,
        steps=2,
        device="cpu",
        contestants="ours-float32,eager,compile",
        reference=None,
        seconds=0,
    )
    with torch.no_grad():
        gpu_row.race(args, None)
    found = json.loads(capsys.readouterr().out.strip().split("\n")[-1])["contestants"]
    assert found["eager"] == {"failed": "RuntimeError: mine"}
    assert found["ours-float32"]["over_ours"] == 1 and len(found["compile"]["seconds"]) == 2
