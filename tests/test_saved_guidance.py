"""`guidance="auto"` and saved weights: what was diagnosed, for the nets that it was found for."""

import json
import pickle

import pytest
import torch
from nets import tiny

from autoguide_fast import Engine, checkpoints, diagnose, load, sample, unlabelled
from autoguide_fast.cli import main
from autoguide_fast.diagnosis import AUTO_FACTOR
from autoguide_fast.encoders import PixelEncoder
from autoguide_fast.guidance import fingerprint, saved_weights, weights_of

SIGMAS = (0.2, 1.0, 5.0)
OPTIONS = {"class_labels": [1, 2], "seeds": [0, 1], "num_steps": 3}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a model, two guides, and what was found of the model and the first."""
    folder = tmp_path_factory.mktemp("pair")
    for seed, name in enumerate(("main", "guide", "other")):
        checkpoints.save(tiny(seed=seed), folder / f"{name}.safetensors")
    found = diagnosed(folder, "guide")
    found.save(folder / "main.guidance.json")
    return folder, found


def diagnosed(folder, *guides):
    generator = torch.Generator().manual_seed(5)
    y = torch.randn(12, 2, 8, 8, generator=generator)
    named = {name: folder / f"{name}.safetensors" for name in guides}
    return diagnose(folder / "main.safetensors", named, y, [0, 1, 2, 3] * 3, SIGMAS)


def test_auto_is_the_weight_that_was_found(pair):
    folder, found = pair
    main_net, guide = folder / "main.safetensors", folder / "guide.safetensors"
    expected = sample(main_net, guide, found.schedule(AUTO_FACTOR), **OPTIONS)
    assert torch.equal(sample(main_net, guide, "auto", **OPTIONS), expected)
    assert not torch.equal(sample(main_net, **OPTIONS), expected)
    # From a file by its name, also for nets that are loaded already.
    nets = load(main_net), load(guide)
    assert torch.equal(sample(*nets, folder / "main.guidance.json", **OPTIONS), expected)
    function = saved_weights(folder / "main.guidance.json").functions()[0]
    assert [function(s) for s in SIGMAS] == pytest.approx(
        1 + AUTO_FACTOR * (found.weights()[:, 0] - 1)
    )


def test_weights_of_other_nets_are_refused(pair):
    folder, _ = pair
    main_net, guide = load(folder / "main.safetensors"), load(folder / "guide.safetensors")
    file = str(folder / "main.guidance.json")
    with pytest.raises(ValueError, match=r"guide must be the net that guidance .* was found for"):
        sample(main_net, load(folder / "other.safetensors"), file, **OPTIONS)
    with pytest.raises(ValueError, match="model must be the net that"):
        sample(guide, guide, file, **OPTIONS)
    with pytest.raises(ValueError, match=r"guide must be the 1 that guidance .* is for, got 0"):
        sample(main_net, None, file, **OPTIONS)
    with torch.no_grad():
        next(guide.parameters()).mul_(1.5)  # a net that was trained on since
    with pytest.raises(ValueError, match="guide must be the net that"):
        sample(main_net, guide, file, **OPTIONS)


def test_an_engine_knows_the_nets_that_it_was_made_of(pair):
    folder, _ = pair
    main_net, guide = load(folder / "main.safetensors"), load(folder / "guide.safetensors")
    file = folder / "main.guidance.json"
    expected = sample(main_net, guide, file, **OPTIONS)
    engine = Engine(main_net, guide)
    with torch.no_grad():  # the engine is a snapshot
        next(guide.parameters()).mul_(1.5)
    for one in (engine, pickle.loads(pickle.dumps(engine))):
        assert torch.equal(one.sample(guidance=file, **OPTIONS), expected)
    with pytest.raises(ValueError, match=r"guide must be the net that guidance .* was found for"):
        Engine(main_net, guide).sample(guidance=file, **OPTIONS)
    with pytest.raises(ValueError, match="model must be the net that"):
        Engine(guide, main_net).sample(guidance=file, **OPTIONS)
    with pytest.raises(ValueError, match=r"guide must be the 1 that guidance .* is for, got 0"):
        Engine(main_net).sample(guidance=file, **OPTIONS)
    with pytest.raises(ValueError, match="for a model that is no name or path, got 'auto'"):
        engine.sample(guidance="auto", **OPTIONS)


class Odd(torch.nn.Module):
    """A denoiser with a tensor that is no plain array."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, x, sigma, class_labels=None):
        return x / (1 + sigma**2)


@pytest.mark.parametrize(
    "make",
    [lambda x: x.to_sparse(), lambda x: (x * 1j).conj()],
    ids=["sparse", "conjugate"],
)
def test_any_tensor_has_a_fingerprint(make, pair):
    folder, _ = pair
    nets = [Odd(make(value * torch.eye(2))).eval() for value in (1, 1, 2)]
    prints = [fingerprint(net) for net in nets]
    assert prints[0] == prints[1] != prints[2]
    options = {"guidance": folder / "main.guidance.json", "shape": [2], "seeds": [0]}
    for model, guide in ((nets[0], nets[2]), (Engine(nets[0], nets[2]), None)):
        with pytest.raises(ValueError, match="model must be the net that guidance"):
            sample(model, guide, **options)


@pytest.mark.parametrize("command", ["sample", "evaluate", "grid"])
def test_a_net_with_its_guide_within_takes_no_weights_by_level(tmp_path, capsys, command):
    net = tiny(guidance_range=(1, 3))
    net.encoder = PixelEncoder()
    checkpoints.save(net, tmp_path / "one.safetensors")
    message = "guidance must be a number for a net that has its guide within, got 'auto'"
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "one.safetensors", guidance="auto", **OPTIONS)
    arguments = [command, "--model", str(tmp_path / "one.safetensors"), "--guidance", "auto"]
    arguments += ["--seeds", "0-31"]
    if command == "evaluate":
        ref = ["evaluate", "ref", "--data", "digits", "--features", "pixels"]
        assert main([*ref, "--out", str(tmp_path / "ref.npz")]) == 0, capsys.readouterr().err
        arguments += ["--ref", str(tmp_path / "ref.npz"), "--metrics", "fd_pixels"]
    else:
        arguments += ["--out", str(tmp_path / "made.png")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_grid_has_a_column_for_what_was_found(tmp_path):
    from PIL import Image

    weights = {"auto": "auto", "schedule": str(checkpoints.find("digits").parent)}
    weights["schedule"] += "/digits.guidance.json"
    pictures = []
    for name, weight in weights.items():
        out = tmp_path / f"{name}.png"
        rows = ["--seeds", "0-1", "--steps", "4", "--quiet"]
        assert main(["grid", "--guidance", f"1,{weight}", "--out", str(out), *rows]) == 0
        pictures.append(Image.open(out))
        assert "w = 1; w = " in pictures[-1].text["Description"]
    assert "w = auto" in pictures[0].text["Description"]
    out = tmp_path / "way.png"
    rows = ["--seeds", "0", "--steps", "4", "--quiet", "--trajectory", "denoised"]
    assert main(["grid", "--guidance", "auto", "--out", str(out), *rows]) == 0


def test_the_column_of_a_grid_is_what_sample_makes(monkeypatch):
    import argparse

    import numpy as np

    from autoguide_fast.cli import sampled_grids

    arguments = argparse.Namespace(
        model="digits",
        guide=None,
        seeds=[0, 1],
        classes=[3, 4],
        steps=4,
        device="cpu",
        accept_licence=False,
    )
    rows = sampled_grids.Rows(arguments, True)
    made = rows.sample(guidance=rows.weight("auto"), num_steps=4, array="numpy")
    expected = sample(
        "digits", guidance="auto", seeds=[0, 1], class_labels=[3, 4], num_steps=4, array="numpy"
    )
    assert np.array_equal(made, expected)
    arguments.guide = "digits-uncond"
    with pytest.raises(ValueError, match="grid: guide must be the net that guidance"):
        sampled_grids.Rows(arguments, True).weight("auto")


def test_evaluate_takes_what_was_found(tmp_path, capsys):
    ref = ["evaluate", "ref", "--data", "digits", "--features", "pixels"]
    assert main([*ref, "--out", str(tmp_path / "ref.npz")]) == 0, capsys.readouterr().err
    common = ["evaluate", "--model", "digits", "--seeds", "0-127", "--steps", "2"]
    common += ["--ref", str(tmp_path / "ref.npz"), "--metrics", "fd_pixels"]
    found = []
    file = str(checkpoints.find("digits").parent / "digits.guidance.json")
    for weight in ("auto", file, "1"):
        out = tmp_path / f"{len(found)}.json"
        assert main([*common, "--guidance", weight, "--out", str(out)]) == 0
        found.append(json.loads(out.read_text()))
    text = [json.dumps(each) for each in found]
    assert "digits.guidance.json" in text[0] and "digits.guidance.json" not in text[2]
    assert main([*common, "--guidance", "auto", "--guide", "digits-uncond"]) == 2
    assert "evaluate: guide must be the net that guidance" in capsys.readouterr().err


def test_judge_takes_what_was_found(tmp_path, capsys):
    file = str(checkpoints.find("digits").parent / "digits.guidance.json")
    rows = []
    for weight in ("auto", file, "1.5"):
        out = tmp_path / "judged.json"
        options = ["--images", "100", "--repeats", "1", "--steps", "2", "--guidance", weight]
        judge = ["judge", *options, "--methods", "autoguidance", "--out", str(out)]
        assert main(judge) == 0, capsys.readouterr().err
        rows += json.loads(out.read_text())
    assert rows[0]["w"] == rows[1]["w"] == "digits.guidance.json" and rows[2]["w"] == 1.5
    assert rows[0]["fd_train"] == rows[1]["fd_train"] != rows[2]["fd_train"]
    assert "| autoguidance | digits.guidance.json |" in capsys.readouterr().out
    others = ["--guidance", "auto", "--model", "digits", "--guide", "digits-uncond"]
    assert main(["judge", "--images", "100", "--methods", "autoguidance", *others]) == 2
    assert "judge: guide must be the net that guidance" in capsys.readouterr().err


def test_auto_without_a_diagnosis_says_how_to_make_one(pair, tmp_path):
    folder, _ = pair
    with pytest.raises(ValueError, match=r"without other.guidance.json beside it, .*--save"):
        sample(folder / "other.safetensors", folder / "guide.safetensors", "auto", **OPTIONS)
    with pytest.raises(ValueError, match="a model that is no name or path, got 'auto'"):
        sample(
            load(folder / "main.safetensors"), load(folder / "guide.safetensors"), "auto", **OPTIONS
        )
    uneven = {"sigmas": [1], "auto": {"weights": [[2, 3]]}, "nets": {"model": "", "guides": [""]}}
    for text in ("", "{}", json.dumps(uneven)):
        (tmp_path / "found.json").write_text(text)
        with pytest.raises(ValueError, match="or a file that `autoguide-fast diagnose` wrote"):
            saved_weights(tmp_path / "found.json")


def test_several_guides_have_a_weight_each(pair, tmp_path):
    folder, _ = pair
    found = diagnosed(folder, "guide", "other")
    found.save(tmp_path / "two.json")
    nets = [folder / f"{name}.safetensors" for name in ("main", "guide", "other")]
    expected = sample(nets[0], nets[1:], found.schedules(AUTO_FACTOR), **OPTIONS)
    assert torch.equal(sample(nets[0], nets[1:], tmp_path / "two.json", **OPTIONS), expected)
    with pytest.raises(ValueError, match="was found for"):
        sample(nets[0], nets[:0:-1], tmp_path / "two.json", **OPTIONS)


@pytest.mark.parametrize("name", ["digits", "photos", "mnist"])
def test_the_bundled_pairs_come_with_theirs(name):
    saved = weights_of("auto", checkpoints.find(name))
    saved.check(load(name), [load(f"{name}-guide")])
    assert all(0.5 < weight < 2.5 for (weight,) in saved.weights)


def test_a_fingerprint_is_the_nets_own():
    net = tiny()
    assert fingerprint(net) == fingerprint(tiny()) != fingerprint(tiny(seed=1))
    assert fingerprint(net) != fingerprint(unlabelled(net))
    assert fingerprint(net.double()) != fingerprint(tiny())
    assert fingerprint(lambda x, sigma, labels: x) is None
    assert fingerprint(load("digits")) == fingerprint(load("digits"))


def test_callables_without_weights_take_what_was_found_for_such(tmp_path):
    def model(x, sigma, class_labels=None):
        return 0.5 * x

    def guide(x, sigma, class_labels=None):
        return 0.3 * x

    found = diagnose(model, guide, torch.randn(20, 3), sigmas=SIGMAS)
    assert found.nets == (None, None) and found.bands == ()
    found.save(tmp_path / "found.json")
    shape = {"shape": (3,), "seeds": [0, 1], "num_steps": 3}
    assert torch.equal(
        sample(model, guide, tmp_path / "found.json", **shape),
        sample(model, guide, found.schedule(AUTO_FACTOR), **shape),
    )


def test_the_commands_go_together(tmp_path, capsys):
    for name in ("digits", "digits-guide"):
        net = load(name)
        net.info = {}
        assert isinstance(net.encoder, PixelEncoder)
        checkpoints.save(net, tmp_path / f"{name}.safetensors")
    roles = {"model": "digits", "guide": "digits-guide"}
    nets = [f"--{role}={tmp_path / name}.safetensors" for role, name in roles.items()]
    out = ["--quiet", "--steps", "2", "--seeds", "0-1"]
    assert main(["sample", *nets, *out, "--guidance", "auto", "--out", str(tmp_path / "a")]) == 2
    assert "--save" in capsys.readouterr().err
    diagnosis = ["--images", "20", "--sigmas", "0.2", "1", "--quiet", "--save"]
    plot = tmp_path / "found.png"
    diagnosis += ["--by", "bands", "classes", "--plot", str(plot)]
    assert main(["diagnose", *nets, *diagnosis]) == 0
    printed = capsys.readouterr().out
    assert "by bands" in printed and "by classes" in printed and "coarse" in printed
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert main(["sample", *nets, *out, "--guidance", "auto", "--out", str(tmp_path / "a")]) == 0
    settings = json.loads((tmp_path / "a" / "manifest.json").read_text())["settings"]
    saved = saved_weights(tmp_path / "digits.guidance.json")
    assert settings["guidance"]["weights"] == [list(row) for row in saved.weights]
    # The manifest says the weights, so the file need not be there.
    (tmp_path / "digits.guidance.json").unlink()
    again = ["--from-manifest", str(tmp_path / "a"), "--quiet", "--out", str(tmp_path / "b")]
    assert main(["sample", *again]) == 0
    one, two = ((tmp_path / x / "00000" / "000001.png").read_bytes() for x in "ab")
    assert one == two
    both = ["--guidance", "auto", "1.5", "--out", str(tmp_path / "c")]
    assert main(["sample", *nets, *out, *both]) == 2
    assert "one file or auto by itself" in capsys.readouterr().err
    assert main(["diagnose", "--save"]) == 2
    assert "--save must be for a net in a file of yours" in capsys.readouterr().err
