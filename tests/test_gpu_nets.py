"""The races of whole samplings that wait for a GPU, run on the CPU with a small pair."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_races_run_and_are_written_down(tmp_path):
    script = ROOT / "benchmarks" / "gpu_nets.py"
    command = [sys.executable, str(script), str(tmp_path), "--device", "cpu", "--tiny"]
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
