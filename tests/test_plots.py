"""Grids pixel by pixel, and the comparison picture as a file that opens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from autoguide_fast import plots

GAP = 128  # the grey of the lines between images


@pytest.mark.parametrize("channels", [1, 3])
def test_to_image_keeps_every_pixel(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 4, 6), dtype=np.uint8)
    image = plots.to_image(torch.from_numpy(pixels))
    assert image.size == (6, 4) and image.mode == ("L" if channels == 1 else "RGB")
    np.testing.assert_array_equal(
        np.asarray(image).reshape(4, 6, channels), pixels.transpose(1, 2, 0)
    )


def test_image_grid_places_images_row_by_row():
    images = np.array([10, 20, 30, 40, 50], np.uint8)[:, None, None, None]
    grid = np.asarray(plots.image_grid(images, columns=3, scale=1, gap=1))
    expected = [
        [GAP, GAP, GAP, GAP, GAP, GAP, GAP],
        [GAP, 10, GAP, 20, GAP, 30, GAP],
        [GAP, GAP, GAP, GAP, GAP, GAP, GAP],
        [GAP, 40, GAP, 50, GAP, GAP, GAP],
        [GAP, GAP, GAP, GAP, GAP, GAP, GAP],
    ]
    np.testing.assert_array_equal(grid, expected)


def test_image_grid_enlarges_without_smoothing():
    images = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    grid = plots.image_grid(images, gap=0)
    assert grid.size == (2 * 48, 2 * 48)
    small = grid.resize((16, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(small)[:8, 8:], images[1].transpose(1, 2, 0))
    assert set(np.asarray(grid).flat) <= set(images.flat)


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (64, 8, 8), (65, 9, 8)]
)
def test_image_grid_is_nearly_square(count, columns, rows):
    grid = plots.image_grid(np.zeros((count, 1, 64, 64), np.uint8), gap=0)
    assert grid.size == (columns * 64, rows * 64)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (np.zeros((1, 1, 8, 8)), {}, TypeError, "images must be uint8, got float64"),
        (np.zeros((1, 8, 8), np.uint8), {}, ValueError, r"shape \[N, C, H, W\] .* got \[1, 8, 8\]"),
        (np.zeros((1, 2, 8, 8), np.uint8), {}, ValueError, "C = 1 or 3, got"),
        (np.zeros((0, 1, 8, 8), np.uint8), {}, ValueError, "N >= 1"),
        (np.zeros((1, 1, 8, 8), np.uint8), {"columns": 0}, ValueError, "columns must be >= 1"),
        (np.zeros((1, 1, 8, 8), np.uint8), {"scale": 0}, ValueError, "scale must be >= 1, got 0"),
        (np.zeros((1, 1, 8, 8), np.uint8), {"gap": -1}, ValueError, "gap must be >= 0, got -1"),
        (np.zeros((1, 1, 8, 8), np.uint8), {"columns": 2.5}, ValueError, "columns must be >= 1"),
        (np.zeros((1, 1, 8, 8), np.uint8), {"scale": np.nan}, ValueError, "scale must be >= 1"),
    ],
)
def test_image_grid_rejects(images, options, error, message):
    with pytest.raises(error, match="image_grid: .*" + message):
        plots.image_grid(images, **options)


def comparison(path, counts=(20, 20, 20), highest=0.3):
    panels = [
        plots.Panel(f"method {i}", "FD 0.1", np.full((count, 1, 8, 8), 255, np.uint8))
        for i, count in enumerate(counts)
    ]
    curves = [
        plots.Curve("CFG", [1, 2, 3], [0.1, 0.2, highest], 2, plots.ORANGE),
        plots.Curve("autoguidance", [1, 1.5, 3], [0.1, 0.05, 0.2], 1.5, plots.BLUE),
    ]
    plots.comparison_picture(path, panels, curves, 10, "distance", "a footnote")
    return np.asarray(Image.open(path).convert("RGB"))


def test_comparison_picture_shows_grids_and_curves(tmp_path):
    pixels = comparison(tmp_path / "picture.png")
    height, width, _ = pixels.shape
    assert width == 2100 and height == 720
    for color in (plots.ORANGE, plots.BLUE):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        where = np.argwhere((pixels == rgb).all(axis=2))
        assert len(where) > 500 and where[:, 1].min() > width * 2 / 3  # the curves, on the right
    black = (pixels == 0).all(axis=2)
    for left in (60, 550, 1040):  # ink, in each of the three grids
        assert black[100:250, left : left + 400].mean() > 0.2


def test_comparison_picture_is_the_same_every_time(tmp_path):
    first, second = comparison(tmp_path / "a.png"), comparison(tmp_path / "b.png")
    np.testing.assert_array_equal(first, second)


def test_comparison_picture_cuts_a_line_that_leaves_the_plot(tmp_path):
    # At w = 3 the distance is thirty times that at w = 1; the other curve must stay readable.
    assert not np.array_equal(
        comparison(tmp_path / "a.png", highest=3.0), comparison(tmp_path / "b.png", highest=0.3)
    )


@pytest.mark.parametrize("counts", [(20, 20, 30), (25, 25, 25)])
def test_comparison_picture_rejects_uneven_panels(tmp_path, counts):
    with pytest.raises(ValueError, match="panels must all hold the same multiple of 10 images"):
        comparison(tmp_path / "picture.png", counts)
