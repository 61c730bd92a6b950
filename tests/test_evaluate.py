"""`autoguide-fast evaluate`: from files and from the sampler, alone and together, interrupted."""

from __future__ import annotations

import json
import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from autoguide_fast import load, metrics, sample
from autoguide_fast.cli import main
from autoguide_fast.digits import load_digits
from autoguide_fast.metrics.detectors import Detector
from autoguide_fast.trainer import evaluate_compare, feature_parts, measuring
from autoguide_fast.trainer.image_sources import FileImages, as_ranges, open_images


def run(capsys, *arguments):
    """Run the command line; return its exit code, standard output and standard error."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse leaves this way
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Features of the two splits of the digits."""
    folder = tmp_path_factory.mktemp("references")
    for split in ("train", "heldout"):
        arguments = ["evaluate", "ref", "--data", "digits", "--split", split, "--quiet"]
        arguments += ["--out", str(folder / f"{split}.npz"), "--features", "pixels"]
        assert main([*arguments, "--keep-features"]) == 0
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The held-out digits as a folder of `sample`, a ZIP file with labels, and ADM's .npz."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = (t.numpy() for t in load_digits("heldout"))
    (folder / "sampled").mkdir()
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        listed = []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "sampled" / f"{i:06d}-class{label}.png"
            Image.fromarray(image[0]).save(path)
            name = f"00000/img{i:08d}.png"
            archive.write(path, name)
            listed.append([name, int(label)])
        archive.writestr("dataset.json", json.dumps({"labels": listed}))
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "sampled" / "grid.png")
    (folder / "sampled" / "settings.json").write_text('{"guidance": 1.7}')
    np.savez(folder / "adm.npz", arr_0=images.transpose(0, 2, 3, 1), arr_1=labels)
    np.savez_compressed(folder / "small.npz", arr_0=images.transpose(0, 2, 3, 1))
    return folder


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sampled", "images.zip", "adm.npz"])
def test_images_and_classes_of_all_kinds_of_files(pictures, name):
    images, labels = load_digits("heldout")
    source = open_images(str(pictures / name))
    assert source.count == 359 and source.labelled
    for (found, classes), chosen in zip(
        source.parts([range(3, 100), range(300, 359)]),
        (slice(3, 100), slice(300, 359)),
        strict=True,
    ):
        assert torch.equal(found, images[chosen]) and np.array_equal(classes, labels[chosen])
    about = source.about()
    assert about["size"] == [1, 8, 8] and about["source"] == name
    assert about.get("sampled_with") == ({"guidance": 1.7} if name == "sampled" else None)


def test_seeds_are_written_as_they_are_given():
    assert as_ranges([0, 1, 2, 7, 9, 10]) == "0-2,7,9-10" and as_ranges([5]) == "5"
    assert as_ranges(list(range(0, 60, 2))).endswith("38 and 10 ranges more")


# --- figures --------------------------------------------------------------------------------


def test_figures_of_files_are_those_of_the_functions(capsys, references, pictures, tmp_path):
    names = ["fd_pixels", "kid_pixels", "pr_pixels", "dc_pixels", "near_pixels"]
    code, out, err = run(
        capsys,
        *["evaluate", "--images", pictures / "images.zip", "--ref", references / "train.npz"],
        *["--heldout", references / "heldout.npz", "--metrics", *names, "--per-class"],
        *["--out", tmp_path / "found.json", "--quiet"],
    )
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    real, fake = (metrics.pixel_features(load_digits(s)[0]) for s in ("train", "heldout"))
    figures = found["metrics"]
    expected = metrics.frechet_distance(fake, real)
    assert figures["fd_pixels"]["values"] == [pytest.approx(expected, rel=1e-5)]
    assert figures["kid_pixels"]["mean"] == pytest.approx(
        metrics.kernel_distance(real, fake, subsets=None).mean, rel=1e-4
    )
    assert figures["precision_pixels"]["mean"] == metrics.precision_recall(real, fake).precision
    assert figures["density_pixels"]["mean"] == pytest.approx(
        metrics.density_coverage(real, fake).density
    )
    near = metrics.memorisation(fake, real, fake)
    assert figures["nearest_ratio_pixels"]["mean"] == pytest.approx(near.ratio, rel=1e-5) == 1
    assert set(found["per_class"]) == set("0123456789")
    protocol = found["protocol"]
    assert protocol["images"]["count"] == 359 and protocol["metrics"]["pr_pixels"] == {"k": 3}
    assert protocol["metrics"]["kid_pixels"]["subsets"] == "all pairs"  # of fewer than a subset
    assert protocol["reference"]["images"]["split"] == "train"
    assert len(protocol["reference"]["sha256"]) == 64 and "torch" in protocol["versions"]
    assert "fd_pixels" in out and "protocol:" in out and "images.count: 359" in out
    assert os.listdir(tmp_path) == ["found.json"]


def test_figures_straight_from_the_sampler(capsys, references, tmp_path):
    """Of the images that `sample` makes of the same seeds, in repeats on other ones."""
    code, out, err = run(
        capsys,
        *["evaluate", "--model", "digits", "--guidance", 1.5, "--seeds", "5-154", "--steps", 3],
        *["--balanced", "--repeats", 2, "--ref", references / "train.npz", "--quiet"],
        *["--metrics", "fd_pixels", "--out", tmp_path / "found.json"],
    )
    assert code == 0, err
    found = json.loads((tmp_path / "found.json").read_text())
    real = metrics.pixel_features(load_digits("train")[0])
    values = []
    for first in (5, 155):
        images = sample(
            "digits",
            guidance=1.5,
            seeds=range(first, first + 150),
            class_labels=[i % 10 for i in range(150)],
            num_steps=3,
        )
        values.append(metrics.frechet_distance(metrics.pixel_features(images), real))
    figure = found["metrics"]["fd_pixels"]
    assert figure["values"] == pytest.approx(values, rel=1e-4)
    assert figure["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-2)
    assert "± " in out and "(2 repeats)" in out
    images = found["protocol"]["images"]
    assert images["seeds"] == "5-304" and images["labels"] == "all classes in turn"
    assert images["model"]["name"] == "digits" and images["guide"]["name"] == "digits-guide"
    assert images["sampler"]["guidance"] == 1.5 and "truncated" in images["rounding"]


def test_drawn_classes_are_those_of_the_seeds(capsys, references, tmp_path, monkeypatch):
    """Without --classes each seed draws its class; figures by class know which."""
    seen = []
    collected = measuring.Collected.add
    monkeypatch.setattr(
        measuring.Collected,
        "add",
        lambda self, features, labels, place: (
            seen.append((features["pixels"], labels)) or collected(self, features, labels, place)
        ),
    )
    code, _, err = run(
        capsys,
        *["evaluate", "--model", "digits", "--seeds", "0-39", "--steps", 1, "--per-class"],
        *["--ref", references / "train.npz", "--metrics", "fd_pixels", "--quiet"],
    )
    assert code == 0, err
    (features, labels), *_ = seen
    images = sample("digits", seeds=range(40), class_labels=labels.tolist(), num_steps=1)
    torch.testing.assert_close(features, torch.from_numpy(metrics.pixel_features(images)).float())


def test_an_own_network_and_its_reference(capsys, pictures, tmp_path):
    net = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.to(torch.float32))

    for name, factor in (("a.pt", 4), ("b.pt", 2)):
        net[0].kernel_size = net[0].stride = factor
        torch.jit.script(Small()).save(str(tmp_path / name))
    made = ["evaluate", "ref", "--data", "digits", "--features", "file", "--quiet"]
    code, out, err = run(
        capsys, *made, "--detector-file", tmp_path / "a.pt", "--out", tmp_path / "r.npz"
    )
    assert code == 0 and "1438 images" in out, err
    measured = ["evaluate", "--images", pictures / "small.npz", "--ref", tmp_path / "r.npz"]
    measured += ["--metrics", "fd_file", "--quiet", "--detector-file"]
    code, out, err = run(capsys, *measured, f"file={tmp_path / 'a.pt'}")
    assert code == 0 and "fd_file" in out, err
    code, _, err = run(capsys, *measured, tmp_path / "b.pt")
    assert code == 2 and "--ref must be of the same network as here" in err
    code, _, err = run(capsys, *measured, f"dinov2={tmp_path / 'b.pt'}")
    assert code == 2 and "--detector-file must be F=FILE" in err


def test_cmmd_of_a_network_in_a_file(capsys, tmp_path):
    """The whole way of a metric on features that are compared pair by pair."""

    class Clip(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool2d(x, 21).flatten(1)[:, :768]

    torch.jit.script(Clip()).save(str(tmp_path / "clip.pt"))
    for name, seed in (("real", 0), ("fake", 1)):
        random = np.random.default_rng(seed)
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    file = ["--detector-file", f"clip={tmp_path / 'clip.pt'}", "--quiet"]
    made = ["evaluate", "ref", "--data", tmp_path / "real", "--out", tmp_path / "ref.npz"]
    assert run(capsys, *made, "--features", "clip", "--keep-features", *file)[0] == 0
    measured = ["evaluate", "--ref", tmp_path / "ref.npz", "--metrics", "cmmd", *file]
    measured += ["--out", tmp_path / "found.json", "--images"]
    values = []
    for name in ("real", "fake"):
        code, _, err = run(capsys, *measured, tmp_path / name)
        assert code == 0, err
        values.append(json.loads((tmp_path / "found.json").read_text())["metrics"]["cmmd"]["mean"])
    assert abs(values[0]) < 1e-9 < values[1]


# --- interruption and processes -------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on(capsys, references, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "CHUNK", 64)
    command = ["evaluate", "--images", pictures / "sampled", "--ref", references / "train.npz"]
    command += ["--metrics", "fd_pixels", "kid_pixels", "--quiet", "--out"]
    assert run(capsys, *command, tmp_path / "whole.json")[0] == 0
    calls, compute = [], Detector.__call__

    def counted(self, images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(self, images)

    monkeypatch.setattr(Detector, "__call__", counted)
    code, _, err = run(capsys, *command, tmp_path / "found.json")
    assert code == 130 and "repeat the command to go on" in err
    parts = sorted((tmp_path / "found.json.parts").glob("*.npz"))
    assert len(parts) == 3 and not (tmp_path / "found.json").exists()
    data = bytearray(parts[1].read_bytes())  # one is damaged meanwhile, another cut short
    data[len(data) // 2] ^= 1
    parts[1].write_bytes(data)
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    calls[:] = [0] * 4
    code, _, err = run(capsys, *command, tmp_path / "found.json")
    assert code == 0, err
    assert len(calls) == 4 + 5  # of six parts one was whole
    found, whole = (json.loads((tmp_path / n).read_text()) for n in ("found.json", "whole.json"))
    assert found == whole and not (tmp_path / "found.json.parts").exists()


def test_parts_of_other_images_do_not_count(tmp_path):
    part = feature_parts.Part({"pixels": np.zeros((4, 2), np.float32)}, np.arange(4), "abc")
    parts = feature_parts.FeatureParts(tmp_path / "parts", {"images": 1})
    assert parts.load(range(4)) is None
    parts.store(range(4), part)
    found = parts.load(range(4))
    assert found.digest == "abc" and found.labels.tolist() == [0, 1, 2, 3]
    assert np.array_equal(found.features["pixels"], part.features["pixels"])
    other = feature_parts.FeatureParts(tmp_path / "parts", {"images": 2})
    assert other.load(range(4)) is None and parts.load(range(5)) is None
    other.remove()
    assert parts.load(range(4)) is not None
    parts.remove()
    assert not (tmp_path / "parts").exists()


def test_two_processes_find_the_same(capsys, fork_server, references, pictures, tmp_path):
    """Features are the same bits; sums differ by their order."""
    command = ["evaluate", "--quiet", "--per-class", "--device", "cpu", "--batch-size", "32"]
    command += ["--images", str(pictures / "images.zip"), "--ref", str(references / "train.npz")]
    command += ["--metrics", "fd_pixels", "pr_pixels", "--repeats", "2", "--out"]
    assert run(capsys, *command, tmp_path / "one.json")[0] == 0
    command.append(str(tmp_path / "two.json"))
    result = fork_server.run("fork_server:command", *command, processes=2)
    assert result.returncode == 0, result.stderr
    found = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")]
    one, two = found
    assert one["protocol"].pop("processes") == 1 and two["protocol"].pop("processes") == 2
    assert one["protocol"] == two["protocol"]
    for name, figure in one["metrics"].items():
        assert figure["values"] == pytest.approx(two["metrics"][name]["values"], rel=1e-11)
    assert one["per_class"] == two["per_class"]


# --- comparing ------------------------------------------------------------------------------


def test_compare_says_in_what_protocols_differ(capsys, tmp_path):
    protocol = {
        "versions": {"torch": "2.11"},
        "images": {"seeds": "0-9", "model": {"digest": "a"}},
        "metrics": {"fid": {}},
    }
    figures = {"fid": {"mean": 2.5, "std": None, "values": [2.5]}}
    (tmp_path / "a.json").write_text(json.dumps({"protocol": protocol, "metrics": figures}))
    protocol = json.loads(json.dumps(protocol))
    protocol["versions"]["torch"] = "2.13"
    figures = {"fid": {"mean": 2.25, "std": 0.1, "values": [2.15, 2.35]}}
    (tmp_path / "b.json").write_text(json.dumps({"protocol": protocol, "metrics": figures}))
    code, out, _ = run(capsys, "evaluate", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0
    assert "The protocols agree in what figures depend on." in out
    assert "versions.torch: 2.11 | 2.13" in out
    assert "2.25 ± 0.1 (2 repeats)" in out and "-0.25" in out
    protocol["images"] |= {"seeds": "10-19", "balanced": True}
    (tmp_path / "b.json").write_text(json.dumps({"protocol": protocol, "metrics": {}}))
    code, out, _ = run(capsys, "evaluate", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0 and "images.seeds: 0-9 | 10-19" in out
    assert "images.balanced: - | True" in out and "agree" not in out
    (tmp_path / "b.json").write_text("[]")
    code, _, err = run(capsys, "evaluate", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 2 and "must be what `evaluate --out` wrote" in err


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "images must come from --images or from --model, got neither"),
        (["--images", "x", "--model", "digits"], "got both; name one"),
        (["--images", "x", "--guidance", "2"], "--guidance must be left out for --images, got it"),
        (["--images", "x"], "--ref must name reference statistics, got none"),
        (["--images", "x", "--ref", "no.npz"], "--ref must be a file of reference statistics"),
        (["--model", "digits", "--ref", "train.npz"], "--seeds must name at least two images"),
        (
            ["--model", "digits", "--ref", "train.npz", "--seeds", "0-9", "--metrics", "is"],
            "metrics must be named as",
        ),
        (["--model", "digits", "--ref", "r", "--metrics", "near"], "--heldout must name features"),
        (
            ["--model", "digits-uncond", "--ref", "train.npz", "--seeds", "0-9", "--balanced"],
            "--classes and --balanced must be left out for a net without classes",
        ),
        (
            ["--model", "digits-uncond", "--ref", "train.npz", "--seeds", "0-9", "--guidance", "2"],
            "--guide must be given where --guidance is not 1",
        ),
        (["--images", "adm.npz", "--ref", "train.npz", "--repeats", "200"], "at least 2 for each"),
        (["--images", "no", "--ref", "train.npz"], "got no, which does not exist"),
        (["--images", "train.npz", "--ref", "train.npz"], "with images in arr_0, got train.npz"),
        (
            [
                "--images",
                "small.npz",
                "--ref",
                "train.npz",
                "--metrics",
                "fd_pixels",
                "--per-class",
            ],
            "--images must have classes for --per-class, got none",
        ),
        (["--images", "small.npz", "--ref", "train.npz", "--out", "no/x.json"], "--out must be a"),
        (["ref", "--data", "digits", "--out", "x.json"], "--out must be an .npz file"),
        (["ref", "--data", "no", "--out", "x.npz", "--split", "all"], "--split must be left out"),
        (["ref", "--data", "digits", "--out", "x.npz", "--features", "vgg"], "--features must be"),
        (["compare", "no.json", "no.json"], "no.json must be a file that can be read"),
    ],
)
def test_bad_input_is_one_line(
    capsys, tmp_path, monkeypatch, references, pictures, arguments, message
):
    for path in (references / "train.npz", pictures / "small.npz", pictures / "adm.npz"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "evaluate", *arguments)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1


def test_inception_that_is_missing_is_one_sentence(capsys, references, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("AGF_MODELS", raising=False)
    command = ["evaluate", "--model", "digits", "--seeds", "0-9", "--ref", references / "train.npz"]
    code, _, err = run(capsys, *command)
    assert code == 2 and "got no inception-2015-12-05.pt; download https://" in err
    assert len(err.strip().splitlines()) == 1


def test_help_shows_examples(capsys):
    for command in (["evaluate"], ["evaluate", "ref"], ["evaluate", "compare"]):
        code, out, _ = run(capsys, *command, "--help")
        assert code == 0 and f"autoguide-fast {' '.join(command)} " in out[out.index("examples:") :]


def test_latents_are_no_pictures(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 4, 4), np.float32))
    with pytest.raises(ValueError, match=r"--images must be pictures, got .* with latents"):
        FileImages(str(tmp_path))


def test_nets_are_told_apart_by_what_they_hold(tmp_path):
    from autoguide_fast import checkpoints
    from autoguide_fast.trainer.sampling_options import load_net

    _, first = load_net("digits", None, "--model", "cpu")
    checkpoints.save(load("digits"), tmp_path / "copy.safetensors")
    net, second = load_net(str(tmp_path / "copy.safetensors"), None, "--model", "cpu")
    assert first["name"] == "digits" and second["name"] == "copy.safetensors"
    assert len(first["digest"]) == len(second["digest"]) == 32 and net.label_dim == 10
    with pytest.raises(ValueError, match=r"--guide must be a file or a run's folder with its EMA"):
        load_net(str(tmp_path), None, "--guide", "cpu")
    assert evaluate_compare.shown({"mean": None}) == "none: too few images"
