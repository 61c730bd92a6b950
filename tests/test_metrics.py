"""Metrics against golden data, closed forms, and sets small enough to judge by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoguide_fast import metrics
from autoguide_fast.digits import load_digits

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def digits():
    """Features and labels of the two splits."""
    splits = {}
    for split in ("train", "heldout"):
        images, labels = load_digits(split)
        splits[split] = metrics.pixel_features(images), labels.numpy()
    return splits


def gaussian(seed, count, width, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, scale, (count, width))


# --- digits ---------------------------------------------------------------------------------


def test_digits_split_is_complete_disjoint_and_stratified():
    images, labels = load_digits("all")
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and images.max() == 255 and images.min() == 0
    parts = [load_digits("train"), load_digits("heldout")]
    assert [len(part[0]) for part in parts] == [1438, 359]
    rows = [tuple(row) for part in parts for row in part[0].flatten(1).tolist()]
    assert sorted(rows) == sorted(map(tuple, images.flatten(1).tolist()))
    shares = parts[1][1].bincount() / labels.bincount()
    assert (shares - 0.2).abs().max() < 0.005


def test_digits_split_never_moves():
    # Trained weights in the package rely on these very images having been held out.
    images, labels = load_digits("heldout")
    weights = torch.arange(1, images.numel() + 1).remainder(1009)
    assert int((images.flatten().long() * weights).sum()) == 885109269
    assert labels[:12].tolist() == [3, 7, 3, 9, 0, 8, 7, 0, 8, 0, 3, 3]


def test_digits_rejects_an_unknown_split():
    with pytest.raises(ValueError, match=r"load_digits: split must be .* got 'test'"):
        load_digits("test")


# --- features -------------------------------------------------------------------------------


def test_pixel_features_scale_and_order():
    images = np.array([[[[0, 255], [51, 204]]]], dtype=np.uint8)
    expected = [[-1.0, 1.0, -0.6, 0.6]]
    for value in (images, torch.from_numpy(images)):
        features = metrics.pixel_features(value)
        assert features.dtype == np.float64
        np.testing.assert_allclose(features, expected, atol=1e-15)
    with pytest.raises(TypeError, match="pixel_features: images must be uint8, got float32"):
        metrics.pixel_features(images.astype(np.float32))


# --- Frechet distance -----------------------------------------------------------------------


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, metrics.feature_statistics])
def test_frechet_distance_golden(convert):
    golden = np.load(DATA / "frechet.npz")
    distance = metrics.frechet_distance(
        convert(golden["features_a"]), convert(golden["features_b"])
    )
    np.testing.assert_allclose(distance, golden["distance"], rtol=1e-9)


def test_frechet_distance_closed_form():
    # Diagonal covariances: |m|^2 + sum (sqrt(s_a) - sqrt(s_b))^2.
    mu_a, mu_b = np.array([1.0, -2.0, 0.5]), np.array([0.0, 1.0, 0.5])
    var_a, var_b = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    expected = 10 + (2 - 1) ** 2 + (1 - 3) ** 2 + (0 - 0.5) ** 2
    distance = metrics.frechet_distance((mu_a, np.diag(var_a)), (mu_b, np.diag(var_b)))
    assert distance == pytest.approx(expected, rel=1e-14)


def test_frechet_distance_one_column():
    a, b = np.array([[0.0], [2.0]]), np.array([[4.0], [12.0]])
    # Means 1 and 8, standard deviations sqrt(2) and sqrt(32).
    assert metrics.frechet_distance(a, b) == pytest.approx(49 + (32**0.5 - 2**0.5) ** 2)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_frechet_distance_of_singular_covariances(rank):
    # Far fewer samples than features, features that never vary, and copies of one another.
    basis = gaussian(1, max(rank, 1), 40)
    a = gaussian(2, 12, max(rank, 1)) @ basis * (rank > 0)
    b = a + 3.0
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, b) == pytest.approx(9.0 * 40, rel=1e-10)


def test_frechet_distance_is_symmetric_and_scales_with_the_square():
    a, b = gaussian(3, 200, 10), gaussian(4, 150, 10, scale=2.0, shift=0.3)
    distance = metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert metrics.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * distance, rel=1e-10)


def test_frechet_distance_takes_float16_in_float64():
    a = torch.from_numpy(gaussian(5, 64, 6)).half()
    b = torch.from_numpy(gaussian(6, 64, 6)).bfloat16()
    assert metrics.frechet_distance(a, b) == metrics.frechet_distance(a.double(), b.double())


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(4), np.zeros((4, 4)), r"a must have shape \[N, D\], got \[4\]"),
        (np.zeros((1, 4)), np.zeros((4, 4)), "a must have at least 2 rows, got 1"),
        (np.zeros((4, 4)), np.zeros((4, 5)), "b must have as many features as a, got 5 and 4"),
        (np.zeros((4, 4)), np.full((4, 4), np.nan), "b must be finite, got NaN.* in 4 of 4 rows"),
        ((np.zeros(3), np.eye(4)), np.zeros((4, 4)), r"a must be finite \(mu, sigma\)"),
        ((np.zeros(2),), np.zeros((4, 2)), r"a must be features or a pair \(mu, sigma\)"),
        ((np.zeros(2), np.array([[1.0, 2], [0, 1]])), np.zeros((4, 2)), r"a\[1\] must be symmetr"),
        ((np.zeros(2), -np.eye(2)), np.zeros((4, 2)), r"a\[1\] must have variances >= 0, got -1"),
    ],
)
def test_frechet_distance_rejects(a, b, message):
    with pytest.raises(ValueError, match="frechet_distance: " + message):
        metrics.frechet_distance(a, b)


# --- precision and recall -------------------------------------------------------------------


def precision_recall_reference(real, fake, k):
    """The two equations, one pair of points at a time."""

    def inside(queries, points):
        hits = 0
        for query in queries:
            for i, point in enumerate(points):
                others = np.delete(points, i, axis=0)
                radius = np.sort(np.linalg.norm(others - point, axis=1))[k - 1]
                if np.linalg.norm(query - point) <= radius:
                    hits += 1
                    break
        return hits / len(queries)

    return inside(fake, real), inside(real, fake)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 7, 2048])
def test_precision_recall_against_the_equations(k, chunk):
    real, fake = gaussian(7, 40, 3), gaussian(8, 30, 3, scale=0.7, shift=0.4)
    expected = precision_recall_reference(real, fake, k)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1
    assert metrics.precision_recall(real, fake, k, chunk) == pytest.approx(expected)


def test_precision_recall_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    fake = np.array([[0.5], [1.5], [30.0]])
    # Nearest real neighbours: 1, 1, 1, 8: the balls cover [-1, 3] and [2, 18].
    # Nearest fake neighbours: 1, 1, 28.5: the balls cover [-0.5, 2.5] and [1.5, 58.5].
    scores = metrics.precision_recall(real, fake, k=1)
    assert scores.precision == pytest.approx(2 / 3) and scores.recall == 1.0


def test_precision_recall_of_extremes():
    real = gaussian(9, 50, 4)
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    assert metrics.precision_recall(real, real + 1000) == (0.0, 0.0)
    # One mode of two: all of it is real, half of the real images are covered.
    two = np.concatenate([real, gaussian(10, 50, 4) + 1000])
    assert metrics.precision_recall(two, real) == (1.0, 0.5)


def test_precision_recall_far_from_the_origin():
    # Copies lie at distance 0, also where rounding of |p|^2 is larger than the radii.
    real = np.round(gaussian(11, 60, 5), 3)
    fake = np.repeat(real[:20], 3, axis=0)
    near = metrics.precision_recall(real, fake, k=2)
    far = metrics.precision_recall(real + 1e6, fake + 1e6, k=2)
    assert near.precision == far.precision == 1.0
    assert near.recall == far.recall == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"k": 2.5}, "k must be a whole number, got 2.5"),
        ({"k": float("nan")}, "k must be a whole number, got nan"),
        ({"fake": np.zeros((10, 2)) * 1j}, "fake must be real numbers, got complex128"),
        ({"fake": np.full((10, 2), "a")}, "fake must be real numbers, got <U1"),
        ({"real": np.full((10, 2), 1e200)}, "real must be finite, .* more than 1e100 in 10 of 10"),
        ({"chunk": 0}, "chunk must be >= 1, got 0"),
        ({"k": 10}, "real must have at least 11 rows, got 10"),
        ({"fake": np.zeros((3, 2))}, "fake must have at least 4 rows, got 3"),
        ({"fake": np.zeros((10, 3))}, "fake must have as many columns as real, got 3 and 2"),
    ],
)
def test_precision_recall_rejects(arguments, message):
    good = {"real": np.zeros((10, 2)), "fake": np.zeros((10, 2))}
    with pytest.raises(ValueError, match="precision_recall: " + message):
        metrics.precision_recall(**(good | arguments))


# --- memorisation ---------------------------------------------------------------------------


def test_memorisation_tells_copies_from_news(digits):
    training, heldout = digits["train"][0], digits["heldout"][0]
    copies = metrics.memorisation(training[:100], training, heldout)
    assert copies.sample_distances.max() == 0 and copies.ratio == 0
    assert copies.nearest.tolist() == list(range(100))
    assert copies.share_nearer_than(0.05) == 1.0
    # One half of the held-out digits judged against the other is as new as new can be.
    news = metrics.memorisation(heldout[::2], training, heldout[1::2])
    assert 0.9 < news.ratio < 1.1
    assert news.share_nearer_than(0.05) < 0.15
    summary = news.summary()
    assert summary["ratio"] == summary["sample_median"] / summary["heldout_median"]


def test_memorisation_distances_by_hand():
    result = metrics.memorisation(
        samples=np.array([[0.0, 3.0], [9.0, 0.0]]),
        training=np.array([[0.0, 0.0], [10.0, 0.0]]),
        heldout=np.array([[6.0, 3.0]]),
    )
    assert result.sample_distances.tolist() == [3.0, 1.0]
    assert result.nearest.tolist() == [0, 1]
    assert result.heldout_distances.tolist() == [5.0]
    assert result.ratio == pytest.approx(0.4)


def test_memorisation_rejects_different_widths():
    with pytest.raises(ValueError, match="memorisation: samples must have as many columns"):
        metrics.memorisation(np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((2, 4)))


# --- class agreement ------------------------------------------------------------------------


def test_classifier_on_heldout_digits(digits):
    classifier = metrics.train_classifier(*digits["train"])
    features, labels = digits["heldout"]
    assert metrics.class_agreement(classifier, features, labels) > 0.98
    assert metrics.class_agreement(classifier, features, (labels + 1) % 10) < 0.01
    assert metrics.class_agreement(classifier, features, torch.from_numpy(labels)) > 0.98


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.zeros(4), np.zeros((4, 1), np.int64)])
def test_class_labels_must_be_one_integer_per_row(labels):
    with pytest.raises(ValueError, match=r"train_classifier: labels must be integers of shape"):
        metrics.train_classifier(np.zeros((4, 2)), labels)


def test_classifier_needs_two_classes():
    with pytest.raises(ValueError, match="train_classifier: labels must hold at least two classes"):
        metrics.train_classifier(np.zeros((4, 2)), np.ones(4, np.int64))


# --- the reference set ----------------------------------------------------------------------


def test_reference_judges_real_digits_as_good_and_noise_as_bad():
    images, labels = load_digits("train")
    reference = metrics.Reference(images, labels)
    real = reference.quality(*load_digits("heldout"))
    assert real.nimg == 359 and real.frechet < 0.5
    assert real.precision > 0.9 and real.agreement > 0.98
    noise = torch.randint(256, (359, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    bad = reference.quality(noise.to(torch.uint8), load_digits("heldout")[1])
    assert bad.frechet > 10 and bad.precision == 0 and bad.agreement < 0.3
    assert reference.frechet(noise.to(torch.uint8)) == bad.frechet
    assert set(real.as_dict()) == {"nimg", "frechet", "precision", "recall", "agreement"}


def test_reference_averages_groups_of_its_own_size():
    images, labels = load_digits("train")
    reference = metrics.Reference(images[:100], labels[:100])
    many = reference.quality(images[100:350], labels[100:350])
    groups = [
        metrics.precision_recall(
            metrics.pixel_features(images[:100]),
            metrics.pixel_features(images[start : start + 100]),
        )
        for start in (100, 200)
    ]
    assert many.nimg == 250
    assert many.precision == pytest.approx(np.mean([group.precision for group in groups]))
    assert many.recall == pytest.approx(np.mean([group.recall for group in groups]))


def test_two_scales_are_means_and_the_middle():
    images = torch.arange(2 * 3 * 16 * 16, dtype=torch.int64).remainder(251).to(torch.uint8)
    images = images.view(2, 3, 16, 16)
    features = metrics.two_scale_features(images)
    assert features.shape == (2, 3 * (16 + 64))
    assert features[1, 0] == pytest.approx(images[1, 0, :4, :4].double().mean() / 127.5 - 1)
    middle = features[:, 48:].reshape(2, 3, 8, 8)
    np.testing.assert_allclose(middle, images[:, :, 4:12, 4:12].numpy() / 127.5 - 1)
    for unfit in (images[0], images[..., :4], images[..., :15]):
        with pytest.raises(ValueError, match="two_scale_features: images must be"):
            metrics.two_scale_features(unfit)
