"""The README's examples of the ways in, run as they stand there."""

import re
import shutil

import pytest
import torch
from markdown_pages import ROOT, examples
from nets import conditional_unet

from autoguide_fast.networks import Precond

DATA = ROOT / "tests" / "data"
FIRST, *OTHERS = examples("README.md", "python")
EXAMPLES = {re.findall(r"\*\*A (.*?)\*\*", e.before)[-1]: e for e in OTHERS}  # by their first words


def run(name, **names):
    """The names that an example leaves behind."""
    assert EXAMPLES[name].code.count("\n") <= 10
    return EXAMPLES[name].run(**names)


def test_the_first():
    found = FIRST.run(
        denoiser=lambda x, sigma, labels: x / (1 + sigma**2),
        worse=lambda x, sigma, labels: x / (1.2 + sigma**2),
        noise=torch.randn(2, 3, 8, 8),
        labels=None,
    )
    assert found["images"].shape == (64, 1, 8, 8) and found["images"].dtype == torch.uint8
    assert found["x"].shape == (2, 3, 8, 8) and found["x"].isfinite().all()


def test_a_snapshot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("s.pkl", "xs.pkl"):
        shutil.copy(DATA / "pixels-labelled.pkl", name)
    found = run("snapshot of the reference implementation")
    assert found["images"].shape == (16, 3, 16, 16) and found["images"].dtype == torch.uint8
    assert isinstance(found["net"], Precond)


def test_a_preset(tmp_path, monkeypatch):
    """With small weights under the published names, which stand for themselves."""
    from autoguide_fast.checkpoints import presets

    preset = presets()["edm2-img512-s-autog-fid"]
    for weights in (preset.net, preset.guide):
        shutil.copy(DATA / "pixels-labelled.pkl", tmp_path / weights.file)
    monkeypatch.setenv("AGF_MODELS", str(tmp_path))
    assert run("published preset")["images"].shape == (16, 3, 16, 16)


def test_a_net_of_another_library(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.setattr(torch, "compile", lambda net: net)  # tests/test_module_engine.py compiles

    def unet(width):
        net = conditional_unet(width)
        # As if it were trained: of pure noise, all of it.
        net.register_forward_hook(lambda net, given, output: (0.1 * output[0] + given[0],))
        return net

    found = run(
        "net of another library",
        unet=unet(8),
        smaller_unet=unet(4),
        scheduler=diffusers.DDIMScheduler(),
        prompt=torch.randn(1, 3, 6),
    )
    assert found["latents"].shape == (4, 4, 8, 8) and found["latents"].isfinite().all()


def test_a_net_of_ones_own():
    found = run(
        "net of your own",
        net=lambda x_t, time: x_t,
        alphas_cumprod=torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0),
        velocity_net=lambda x_t, time: -x_t,
        worse=lambda x, sigma, labels: x / (1 + sigma**2),
        noise=torch.randn(2, 3, 8, 8),
    )
    assert found["images"].shape == (2, 3, 8, 8) and found["images"].isfinite().all()


def test_there_are_no_other_examples():
    assert len(OTHERS) == 4
    assert set(EXAMPLES) == {
        "snapshot of the reference implementation",
        "published preset",
        "net of another library",
        "net of your own",
    }


def test_its_rows_of_speed_are_those_of_the_docs():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n### Speed\n")[1]
    rows = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    assert len(rows) >= 9
    known = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8").splitlines()
    assert not set(rows) - set(known)
