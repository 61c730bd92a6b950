"""`diagnose`: the best weights are found where they are known, and what does not fit is refused."""

import json
import re

import numpy as np
import pytest
import torch

from autoguide_fast import load, sample
from autoguide_fast.cli import main
from autoguide_fast.diagnosis import BANDS, diagnose
from autoguide_fast.digits import load_digits
from autoguide_fast.guidance import weakened
from autoguide_fast.toy import fractal

STD = 0.7  # of the Gaussian data
SIGMAS = (0.2, 1.0, 4.0)


def shrinking(share):
    """A denoiser of Gaussian data that removes `share` of the noise that the perfect one does."""

    def denoiser(x, sigma, class_labels=None):
        perfect = x * STD**2 / (STD**2 + sigma**2)
        return x + share * (perfect - x)

    return denoiser


def gaussian(count=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return STD * torch.randn(count, 1, 8, 8, generator=generator)


def test_the_best_weight_of_a_gaussian_is_found():
    # D_w removes 0.6 + (w - 1) (0.6 - 0.4) of what is to be removed: all of it at w = 3.
    found = diagnose(shrinking(0.6), shrinking(0.4), gaussian(), sigmas=SIGMAS)
    low, high = found.interval()
    assert found.weights() == pytest.approx(3.0, abs=0.1)
    assert ((low < 3) & (high > 3) & (high - low < 0.4)).all()
    # What the best weight removes of the error: all that is not the perfect denoiser's own.
    y, n = gaussian(4000, 1), torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for level, gain in zip(SIGMAS, found.gain(), strict=True):
        x, sigma = y + level * n, torch.tensor(level)
        error, least = ((y - shrinking(s)(x, sigma)).square().sum() for s in (0.6, 1.0))
        assert gain == pytest.approx(float(1 - least / error), abs=0.02)


def test_a_better_guide_is_weighted_below_one():
    found = diagnose(shrinking(0.8), shrinking(0.9), gaussian(), sigmas=SIGMAS)
    assert found.weights() == pytest.approx(-1.0, abs=0.15)  # 0.8 + (w - 1)(-0.1) = 1
    assert "backwards" in found.summary()


def test_the_weights_are_a_schedule_for_sampling():
    found = diagnose(shrinking(0.6), shrinking(0.4), gaussian(), sigmas=SIGMAS)
    best = found.weights()[:, 0]
    schedule = found.schedule()
    assert [schedule(sigma) for sigma in SIGMAS] == pytest.approx(best)
    assert (schedule(1e-3), schedule(80.0)) == pytest.approx((best[0], best[-1]))
    assert schedule(2.0) == pytest.approx((best[1] + best[2]) / 2)  # halfway between 1 and 4
    assert found.schedule(2)(1.0) == pytest.approx(2 * best[1] - 1)
    # On a denoiser of Gaussian data the best weights make up for what the model lacks.
    options = {"noise": torch.randn(500, 1, 2, 2), "num_steps": 64}
    spread = [
        sample(shrinking(0.6), shrinking(0.4), guidance=w, **options).std()
        for w in (1.0, found.schedule())
    ]
    assert abs(spread[1] - STD) < 0.05 < abs(spread[0] - STD)
    same = diagnose(shrinking(0.6), shrinking(0.6), gaussian(), sigmas=SIGMAS)
    assert same.schedule()(1.0) == 1  # a guide that says what the model says
    two = diagnose(shrinking(0.6), {"a": shrinking(0.4), "b": shrinking(0.2)}, gaussian())
    with pytest.raises(ValueError, match="there must be one guide, got a, b; schedules"):
        two.schedule()


def test_several_guides_are_weighted_together():
    def coarse(x, sigma, class_labels=None):  # shrinks the mean of the image only
        return x + 0.3 * (x.mean((2, 3), keepdim=True) * STD**2 / (STD**2 + sigma**2) - x)

    guides = {"weak": shrinking(0.4), "coarse": coarse}
    found = diagnose(shrinking(0.6), guides, gaussian(), sigmas=SIGMAS)
    weights = found.weights()
    assert weights.shape == (3, 2) and found.guides == ("weak", "coarse")
    # No other pair of weights is nearer to the data.
    moments = found.sets["images"]
    along, gram = moments.along.sum((1, 2)), moments.gram.sum((1, 2))
    for i in range(3):
        a = weights[i] - 1
        assert gram[i] @ a == pytest.approx(along[i], rel=1e-6)


def test_guides_that_say_nothing_get_no_weight():
    same = diagnose(shrinking(0.6), shrinking(0.6), gaussian(20), sigmas=SIGMAS)
    assert np.isnan(same.weights()).all() and (same.gain() == 0).all()
    twice = {"a": shrinking(0.4), "b": shrinking(0.4)}
    assert np.isnan(diagnose(shrinking(0.6), twice, gaussian(20), sigmas=SIGMAS).weights()).all()
    assert "no level" in same.summary()


def test_bands_see_their_own_frequencies():
    def sharper(x, sigma, class_labels=None):  # differs from the model in the finest detail only
        checkers = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
        detail = (x * checkers).mean((2, 3), keepdim=True) * checkers
        return shrinking(0.6)(x, sigma) + 0.2 * detail

    found = diagnose(shrinking(0.6), sharper, gaussian(), sigmas=SIGMAS)
    moments = found.sets["images"]
    share = moments.gram.sum((0, 1, 3, 4)) / moments.gram.sum()
    assert share[BANDS.index("fine")] > 0.75
    total = (gaussian() - gaussian()).square().sum() + moments.error.sum()
    assert moments.error.sum() == pytest.approx(float(total))
    assert np.isnan(found.weights(band="fine")).sum() == 0


@pytest.mark.parametrize("shape", [(5,), (2, 7), (1, 3, 6, 4), (1, 2)])
def test_samples_of_any_shape(shape):
    y = STD * torch.randn(500, *shape, generator=torch.Generator().manual_seed(0))
    found = diagnose(shrinking(0.6), shrinking(0.4), y, sigmas=[1.0])
    low, high = found.interval()
    assert low - 0.1 < 3 < high + 0.1 and found.weights() == pytest.approx(3.0, abs=0.5)
    # Bands are parts of the whole, whatever they are of.
    plain = diagnose(shrinking(0.6), shrinking(0.4), y.flatten(1), sigmas=[1.0])
    assert plain.weights() == pytest.approx(found.weights())
    assert plain.bands == () and found.bands == (BANDS if len(shape) > 1 else ())
    with pytest.raises(ValueError, match="band must be None for vectors"):
        plain.weights(band="fine")
    if found.bands:
        assert np.isfinite(found.weights(band="coarse")).all()


def test_points_of_the_toy():
    data = fractal("A")
    points = data.sample(2000, torch.Generator().manual_seed(0))

    def blurred(width):  # the perfect denoiser of a wider distribution
        def denoiser(x, sigma, class_labels=None):
            level = float((sigma**2 + width**2) ** 0.5)
            return x + sigma**2 * data.score(x, level)

        return denoiser

    found = diagnose(blurred(0.1), blurred(0.15), points, sigmas=[0.05, 0.2])
    low, _ = found.interval()
    assert (low > 1).all() and (found.gain() > 0).all()


def test_lengths_are_the_images():
    y = gaussian(50)
    found = diagnose(lambda x, s, c=None: 0 * x, shrinking(0.4), y, sigmas=[1.0])
    assert found.sets["images"].error.sum() == pytest.approx(float(y.double().square().sum()))


@pytest.fixture(scope="module")
def digits():
    (train, labels), (held, held_labels) = (load_digits(s) for s in ("train", "heldout"))
    return diagnose(
        "digits",
        {"guide": "digits-guide"},
        {"training": train[:256], "heldout": held[:256]},
        {"training": labels[:256], "heldout": held_labels[:256]},
        sigmas=(0.1, 0.4, 1.5),
    )


def test_the_bundled_guide_helps_on_what_was_trained_on(digits):
    low, _ = digits.interval("training")
    assert (low[:2] > 1).all()
    assert (digits.weights("heldout") < digits.weights("training")).all()
    assert "nearer to the data" in digits.summary()


def test_the_verdict_is_in_words(digits):
    assert digits.predicted_gain("training") == pytest.approx(digits.gain("training").mean())
    text = digits.verdict()
    assert f"{100 * digits.predicted_gain():.2f} % (training)" in text
    assert "heldout asks for less guidance than training at sigma 0.1" in text
    better = diagnose(shrinking(0.8), shrinking(0.9), gaussian(), sigmas=SIGMAS)
    assert "None is above 1" in better.verdict()
    same = diagnose(shrinking(0.6), shrinking(0.6), gaussian(20), sigmas=SIGMAS)
    assert same.verdict().startswith("Nothing tells that guidance helps")


def test_an_engine_and_the_nets_agree(digits):
    model, guide = load("digits"), load("digits-guide")
    model.register_forward_hook(lambda *_: None)  # no engine then
    guide.register_forward_hook(lambda *_: None)
    images, labels = load_digits("train")
    eager = diagnose(model, guide, images[:256], labels[:256], sigmas=(0.1, 0.4, 1.5))
    assert eager.weights() == pytest.approx(digits.weights("training"), abs=1e-3)


def test_classes_are_told_apart(digits):
    each = [digits.weights(label=c) for c in range(10)]
    assert np.isfinite(each).all()
    assert min(w[1, 0] for w in each) < digits.weights()[1, 0] < max(w[1, 0] for w in each)
    with pytest.raises(ValueError, match="label must be a class of the images, got 11"):
        digits.weights(label=11)


def test_it_is_saved(digits, tmp_path):
    digits.save(tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["guides"] == ["guide"] and found["training"]["images"] == 256
    assert np.array(found["training"]["weights"]).shape == (3, 1)
    assert list(found["heldout"]["bands"]) == list(BANDS)


def test_guides_of_the_models_own_weights(tmp_path, capsys):
    """By the names that `sample` has for them; what is found of one serves in sampling with it."""
    model, (images, labels) = load("digits"), load_digits("train")
    data = {"images": images[:64], "class_labels": labels[:64], "sigmas": (0.3, 1.0)}
    named = {"a": "self:attn_temperature=0", "b": "self:left_out=dec.8x8_block0"}
    made = {
        "a": weakened(model, attn_temperature=0),
        "b": weakened(model, left_out=["dec.8x8_block0"]),
    }
    found, expected = (diagnose(model, guides, **data) for guides in (named, made))
    assert np.array_equal(found.weights(), expected.weights())
    options = ["--images", "64", "--sigmas", "0.3", "1", "--quiet", "--out"]
    guides = ["--guide", f"a={named['a']}", named["b"]]
    assert main(["diagnose", *guides, *options, str(tmp_path / "two.json")]) == 0
    assert json.loads((tmp_path / "two.json").read_text())["guides"] == ["a", named["b"]]
    one = tmp_path / "one.json"
    assert main(["diagnose", "--guide", named["a"], *options, str(one)]) == 0
    given = {"seeds": [0, 1], "num_steps": 3, "guidance": str(one)}
    assert torch.equal(sample(model, named["a"], **given), sample(model, made["a"], **given))
    with pytest.raises(ValueError, match="must be the net that guidance"):
        sample(model, named["b"], **given)
    with pytest.raises(ValueError, match="diagnose: guide guide must not be disturbed, got one"):
        diagnose(model, "self:input_noise=0.1", **data)
    capsys.readouterr()


def test_the_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "found.json"
    guides = ["--guide", "digits-guide", "none=digits-uncond"]
    options = ["--images", "64", "--sigmas", "0.2", "1", "--quiet", "--out", str(out)]
    assert main(["diagnose", *guides, *options]) == 0
    printed = capsys.readouterr().out
    assert "training, 64 samples" in printed and "held out, 64 samples" in printed
    assert json.loads(out.read_text())["guides"] == ["digits-guide", "none"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--images", "1"], "--images must be >= 2"),
        (["--guide", "digits-guide", "digits-guide"], "each name once"),
        (["--guide", "self:random_labels"], "guide self:random_labels must not be disturbed"),
        (["--guide", "self:nothing"], "guide self must have left_out=BLOCK"),
        (["--out", "/nowhere/found.json"], "--out must be a file in an existing folder"),
        (["--data", "photos"], r"images must be \[N, 1, 8, 8\]"),
        (["--data", "/nowhere"], "dataset"),
    ],
)
def test_the_command_says_what_is_wrong(options, message, capsys):
    assert main(["diagnose", "--quiet", *options]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_same_seed_gives_the_same_numbers():
    runs = [
        diagnose(shrinking(0.6), shrinking(0.4), gaussian(30), sigmas=SIGMAS, seed=s)
        for s in (0, 0, 1)
    ]
    assert np.array_equal(runs[0].weights(), runs[1].weights())
    assert not np.array_equal(runs[0].weights(), runs[2].weights())


def test_a_net_is_fed_in_its_own_type():
    class Shrinking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.share = torch.nn.Parameter(torch.tensor(0.6, dtype=torch.float64))

        def forward(self, x, sigma, class_labels=None):
            assert x.dtype == sigma.dtype == torch.float64
            return shrinking(self.share)(x, sigma)

    y = gaussian(30)
    found = diagnose(Shrinking().eval(), shrinking(0.4), y, sigmas=SIGMAS)
    plain = diagnose(shrinking(0.6), shrinking(0.4), y, sigmas=SIGMAS)
    assert found.weights() == pytest.approx(plain.weights(), rel=1e-4)


BAD = {
    "one_for_all": ({"guide": lambda x, s, c: x[:1]}, "must return images"),
    "nothing": ({"guide": lambda x, s, c: None}, "must return images .* got NoneType"),
    "batch_size": ({"batch_size": 0}, "diagnose: batch_size must be at least 1"),
    "seed": ({"seed": -1}, "diagnose: seeds must"),
    "sigma": ({"sigmas": [0.0]}, "sigmas must be noise levels"),
    "no_sigma": ({"sigmas": []}, "sigmas must hold at least one"),
    "name": ({"images": {"auto": torch.zeros(2, 1, 8, 8)}}, "images must have other names than"),
    "guide": ({"guide": 3}, "guide guide must be a name, a path or a callable"),
    "no_guide": ({"guide": {}}, "guide must be a net or a dict"),
    "shape": ({"images": torch.zeros(2, 3, 8, 8)}, r"images must be \[N, 1, 8, 8\]"),
    "empty": ({"images": torch.zeros(0, 1, 8, 8)}, "images must be finite and at least one"),
    "nan": ({"images": torch.full((1, 1, 8, 8), float("nan"))}, "must be finite"),
    "no_labels": ({"class_labels": None}, "class_labels must be given"),
    "count": ({"class_labels": [1]}, "class_labels must be 2 classes"),
    "class": ({"class_labels": [1, 10]}, "from 0 to 9"),
    "training": ({"model": load("digits").train()}, "evaluation mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    options = {
        "model": "digits",
        "guide": "digits-guide",
        "images": torch.zeros(2, 1, 8, 8),
        "class_labels": [1, 2],
    }
    changed, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        diagnose(**{**options, **changed})
