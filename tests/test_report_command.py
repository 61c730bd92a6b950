"""`autoguide-fast report`: one page with all that its inputs hold, and nothing from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from autoguide_fast import diagnose, plots
from autoguide_fast.cli import main
from autoguide_fast.digits import load_digits
from autoguide_fast.trainer import loop
from autoguide_fast.trainer.options import TrainOptions

EVALUATION = {
    "protocol": {
        "detector": {"name": "inception-v3", "sha256": "0123abcd"},
        "count": 50000,
        "labels": "balanced",
        "sampled_with": {"jobs": [{"seeds": "0-9"}]},
    },
    "metrics": {
        "fid": {"mean": 1.34012, "std": 0.0123, "values": [1.33, 1.35, 1.3401]},
        "recall": {"mean": 0.61, "std": None, "values": [0.61]},
        "kid": {"mean": None, "std": None, "values": [None]},
    },
    "per_class": {
        "cat": {"fid": {"mean": 7.5, "std": None, "values": [7.5]}},
        "dog": {"recall": {"mean": 0.5, "std": None, "values": [0.5]}},
    },
}


class Page(HTMLParser):
    """What a page shows: its text, tables, pictures, and whatever it refers to."""

    def __init__(self, text):
        super().__init__()
        self.words, self.images, self.references, self.open, self.tables = [], [], [], [], []
        self.feed(text)
        assert not self.open, "all elements are closed"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.references += [named[k] for k in ("src", "href", "srcset", "data") if k in named]
        assert tag not in ("script", "iframe", "object", "embed"), tag
        assert not any(name.startswith("on") for name in named)
        if tag == "img":
            self.images.append(named)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if "style" not in self.open:
            self.words.append(data)

    def cells(self, first):
        """Rows of all tables by their first cell."""
        return [row[1:] for table in self.tables for row in table if row and row[0] == first]


def decoded(uri):
    kind, data = uri.split(";base64,")
    return kind.removeprefix("data:"), base64.b64decode(data)


def write(capsys, tmp_path, *paths, options=()):
    out = tmp_path / "report.html"
    code = main(["report", *map(str, paths), "--out", str(out), *options])
    captured = capsys.readouterr()
    assert code == 0 and captured.out.endswith(f": {out}\n"), captured.err
    text = out.read_text(encoding="utf-8")
    found = Page(text)
    assert all(r.startswith(("data:image/", "#")) for r in found.references)
    assert "http" not in text.replace("http://www.w3.org", "") and "url(" not in text
    assert all(len(image["alt"]) > 20 for image in found.images)
    assert 'name="viewport"' in text and '<html lang="en">' in text
    return found


@pytest.fixture
def sampled(tmp_path, capsys):
    """A folder of six images with its manifest."""
    options = ["--seeds", "0-5", "--steps", "2", "--guidance", "1.5", "--balanced", "--quiet"]
    for out in ("images", "images.zip"):
        assert main(["sample", "--out", str(tmp_path / out), *options]) == 0
    capsys.readouterr()
    return tmp_path / "images"


def test_images_are_shown_with_their_manifest(capsys, tmp_path, sampled):
    for path in (sampled, sampled.with_suffix(".zip")):
        page = write(capsys, tmp_path, path)
        (image,) = page.images
        assert image["alt"] == f"Grid of 6 of 6 images of 8x8 pixels from {path}."
        kind, data = decoded(image["src"])
        files = sorted(sampled.glob("*/*.png"))
        expected = plots.image_grid(np.stack([np.asarray(Image.open(f))[None] for f in files]))
        assert kind == "image/png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
        assert page.cells("guidance") == [["1.5"]] and page.cells("seeds") == [["0-5"]]
        assert page.cells("model")[0][0].startswith("digits (checksum 2ff34908")
        assert page.cells("labels_rule")[0][0].endswith("class i mod 10")
        assert page.cells("torch") and page.cells("processor")
        assert f"autoguide-fast sample --from-manifest {path} --out again/" in page.text
    (sampled / "manifest.json").unlink()
    assert "No manifest is there" in write(capsys, tmp_path, sampled).text


def test_large_images_are_few(capsys, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        plots.to_image(np.full((3, 700, 600), 10 * i, np.uint8)).save(
            tmp_path / "images" / f"{i}.png"
        )
    page = write(capsys, tmp_path, tmp_path / "images")
    assert "9 of 20 images of 600x700 pixels, drawn at random" in page.text
    page = write(capsys, tmp_path, tmp_path / "images", options=["--count", "2"])
    assert "2 of 20 images of 600x700 pixels, drawn at random" in page.text


def test_an_evaluation_has_its_metrics_and_its_protocol(capsys, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(EVALUATION))
    page = write(capsys, tmp_path, path, options=["--title", "Pair 3"])
    assert page.cells("fid") == [["1.3401 ± 0.012", "1.33, 1.35, 1.3401"]]
    assert page.cells("recall") == [["0.61", "0.61"]]
    assert page.cells("kid") == [["none", "none"]]
    assert page.cells("cat") == [["7.5", "none"]] and page.cells("dog") == [["none", "0.5"]]
    assert page.cells("sampled_with.jobs.seeds") == [["0-9"]]
    assert page.cells("detector.sha256") == [["0123abcd"]] and page.cells("count") == [["50000"]]
    assert page.text.startswith("Pair 3 Pair 3 Written on ")


def test_a_run_has_its_curves_its_samples_and_its_options(capsys, tmp_path):
    run = tmp_path / "run"
    options = TrainOptions(channels=4, channels_per_head=4, batch=16, duration=64, snapshots=2)
    loop.train(options, run, progress=False)
    (run / "samples").mkdir()
    for images in (32, 64):
        Image.new("L", (10, images)).save(run / "samples" / f"main-{images:09d}.png")
    page = write(capsys, tmp_path, run)
    *charts, samples = page.images
    assert [chart["alt"].split(" over ")[0] for chart in charts] == [
        f"Line chart of the {name}" for name in plots.CURVES.values()
    ]
    for chart in charts:
        kind, data = decoded(chart["src"])
        assert kind == "image/svg+xml" and ET.fromstring(data).tag.endswith("}svg")
    assert Image.open(io.BytesIO(decoded(samples["src"])[1])).size == (10, 64)
    assert page.cells("nimg") == [["64"]] and page.cells("channels_per_head") == [["4"]]


def test_a_diagnosis_has_the_weight_over_the_noise_level(capsys, tmp_path):
    images, labels = load_digits("train")
    found = diagnose("digits", "digits-guide", images[:40], labels[:40], sigmas=(0.1, 1.0))
    found.save(tmp_path / "found.json")
    page = write(capsys, tmp_path, tmp_path / "found.json")
    (chart,) = page.images
    highest = found.weights().max()
    assert (
        "for the guide guide over the noise level, with its 95 % interval: images at most "
        in (chart["alt"])
    )
    assert f"{highest:.3g}." in chart["alt"]
    low, high = found.interval()
    expected = f"{found.weights()[1, 0]:.3f} ({low[1, 0]:.3f} to {high[1, 0]:.3f})"
    assert page.cells("1")[0][0] == expected


def test_several_inputs_are_sections_of_one_page(capsys, tmp_path, sampled):
    evaluation, rows = tmp_path / "evaluation.json", tmp_path / "rows.json"
    evaluation.write_text(json.dumps(EVALUATION))
    rows.write_text(json.dumps([{"method": "none", "w": 1.0}, {"method": "CFG", "fd": 0.5}]))
    page = write(capsys, tmp_path, sampled, evaluation, rows, sampled / "manifest.json")
    assert [r for r in page.references if r.startswith("#")] == [f"#part-{i}" for i in range(1, 5)]
    assert page.cells("CFG") == [["none", "0.5"]]
    for title in ("6 images", "Evaluation", "Measurements", "Manifest"):
        assert page.text.count(title) >= 2


def test_a_picture_is_described_as_grid_describes_it(capsys, tmp_path):
    path = tmp_path / "weights.png"
    options = ["--seeds", "3", "--classes", "0-9,0-9", "--guidance", "1,2", "--steps", "1"]
    assert main(["grid", "--out", str(path), "--quiet", *options]) == 0
    capsys.readouterr()
    (image,) = write(capsys, tmp_path, path).images
    assert image["alt"].startswith(
        "Grid of samples of digits guided by digits-guide, 1 steps. Rows: class 0, seed 3; class 1,"
    )
    assert image["alt"].endswith("class 1, seed 3; 8 more. Columns: w = 1; w = 2.")
    shown = Image.open(io.BytesIO(decoded(image["src"])[1]))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(Image.open(path)))
    Image.new("L", (3, 3)).save(tmp_path / "other.png")
    (image,) = write(capsys, tmp_path, tmp_path / "other.png").images
    assert image["alt"] == "The picture other.png, as it is."
    (tmp_path / "other.png").write_bytes(b"half")
    assert main(["report", str(tmp_path / "other.png"), "--out", str(tmp_path / "r.html")]) == 2
    assert "report: a picture must be whole" in capsys.readouterr().err


def test_what_stands_in_a_file_is_text(capsys, tmp_path):
    """`Page` refuses scripts, whoever's they are."""
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    path = tmp_path / "evaluation.json"
    found = {"protocol": {evil: evil}, "metrics": {evil: {"mean": 1.0, "std": None}}}
    path.write_text(json.dumps(found))
    page = write(capsys, tmp_path, path, options=["--title", evil])
    assert page.cells(evil) == [["1"], [evil]] and page.images == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "got one that cannot be read"),
        ("{}", "got one of another form"),
        ('{"metrics": {"fid": 3}}', "got one that is not whole"),
        ('{"sigmas": [1], "guides": ["a"], "x": {"weights": []}}', "got one that is not whole"),
    ],
)
def test_other_files_are_refused_in_a_sentence(capsys, tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert main(["report", str(path), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert "report: a JSON file must be an evaluation" in error and message in error
    assert error.count("\n") == 1 and not (tmp_path / "r.html").exists()
    assert main(["report", str(tmp_path / "no"), "--out", str(tmp_path / "r.html")]) == 2
    assert "images must be a folder or a ZIP file" in capsys.readouterr().err
