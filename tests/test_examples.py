"""The examples, each at a small size: they run from end to end and judge what they sampled."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")


@pytest.fixture
def example(request, monkeypatch):
    """The example's module, imported as its script imports its neighbours."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: compile(net, backend="eager"))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module(request.param)
    for name in set(sys.modules) - before:
        if name in {*NAMES, "common"}:
            del sys.modules[name]


@pytest.mark.parametrize("example", NAMES, indirect=True)
def test_an_example_runs_and_says_how_near_it_came(example, capsys):
    table = example.main(iterations=8, count=8)
    printed = capsys.readouterr().out
    for figure, by_weight in table.items():
        assert figure in printed and 1.0 in by_weight and len(by_weight) > 2
        values = [value for repeats in by_weight.values() for value in repeats]
        assert len(values) == 3 * len(by_weight) and all(map(math.isfinite, values))
        assert f"lower the {figure}" in printed or f"lowers the {figure}" in printed
    assert "OTHER" not in printed


@pytest.mark.parametrize("example", ["flow_matching"], indirect=True)
def test_the_verdict_follows_the_figures(example):
    verdict = sys.modules["common"].verdict
    alone, better, worse = [0.5, 0.51, 0.49], [0.3, 0.31, 0.32], [0.49, 0.5, 0.48]
    found = verdict("distance", {1.0: alone, 1.5: better, 2.0: worse})
    assert found == "guidance lowers the distance, most at 1.5"
    assert verdict("distance", {1.0: alone, 2.0: worse}) == "guidance does not lower the distance"


def test_all_kinds_of_shapes_have_an_example():
    assert NAMES == ["flow_matching", "moving_digits", "signal_1d", "token_embeddings"]
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert "python examples/signal_1d.py" in readme


@pytest.mark.parametrize("example", ["token_embeddings"], indirect=True)
def test_true_sums_are_told_from_wrong_ones(example):
    tokens = example.sums(200, torch.Generator().manual_seed(0))
    table = torch.eye(12)
    assert example.share_wrong(table[tokens], table) == 0
    assert len({tuple(t) for t in tokens.tolist()}) > 150
    wrong = tokens.clone()
    wrong[:50, 8] = (wrong[:50, 8] + 1) % 10  # another last digit
    wrong[50:100, 2] = 11  # an equals sign in the place of the plus
    wrong[100:150, 4] = 10  # a sign in the place of a digit
    assert example.share_wrong(table[wrong], table) == 0.75


@pytest.mark.parametrize("example", ["flow_matching"], indirect=True)
def test_training_brings_samples_nearer(example, monkeypatch, capsys):
    before = example.main(iterations=8, count=200)["energy distance"]
    after = example.main(iterations=200, count=200)["energy distance"]
    assert max(after[1.0]) < min(before[1.0])
