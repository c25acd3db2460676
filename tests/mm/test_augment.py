from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtsmap.mm.augment import AugmentOptions, disturb_colour, disturb_terrain, turn, without_slumps, zoom
from rtsmap.mm.packs import Terrain, TrainingImage
from rtsmap.rasters.terrain import gradients
from tests.mm.labelled import labelled_image


def image_of_surface(elevation: np.ndarray) -> TrainingImage:
    shape = elevation.shape
    everywhere = np.ones(shape, np.bool_)
    right, up = gradients(elevation.astype(np.float32), everywhere, (4.0, 4.0))
    terrain = Terrain(np.stack([right, up]).astype(np.float32), elevation.astype(np.float32), everywhere)
    return TrainingImage(
        "s", "s", np.zeros((3, *shape), np.uint8), everywhere, np.zeros(shape, np.int16), terrain
    )


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("mirror", [False, True])
def test_gradients_of_the_turned_surface_are_the_turned_gradients(quarter_turns, mirror):
    rows, cols = np.mgrid[0:24, 0:30]
    elevation = 0.3 * rows + 0.05 * cols**2 + np.sin(rows / 3.0) * cols
    turned = turn(image_of_surface(elevation), quarter_turns, mirror)
    again = image_of_surface(turned.terrain.relative_elevation)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(turned.terrain.gradient[inner], again.terrain.gradient[inner], atol=1e-4)


def test_four_turns_and_two_mirrors_change_nothing():
    image = labelled_image()
    same = image
    for _ in range(4):
        same = turn(same, 1, mirror=False)
    same = turn(turn(same, 0, mirror=True), 0, mirror=True)
    np.testing.assert_array_equal(same.optical, image.optical)
    np.testing.assert_array_equal(same.terrain.gradient, image.terrain.gradient)
    np.testing.assert_array_equal(same.labels, image.labels)


def slope_with_two_bowls():
    """A plane, the same with two hollows of which one lies at the border, and their labels."""
    rows, cols = np.mgrid[0:60, 0:80].astype(float)
    plane = 0.4 * rows - 0.7 * cols
    depth, labels = np.zeros(plane.shape), np.zeros(plane.shape, np.int16)
    for number, (row, col) in enumerate([(30, 20), (8, 60)], start=1):
        away = np.hypot(rows - row, cols - col)
        depth += np.where(away < 11, 6 * (1 - away / 11), 0)
        labels[away < 10] = number
    return plane, replace(image_of_surface(plane - depth), labels=labels)


def test_an_older_elevation_model_shows_the_slope_of_before():
    plane, image = slope_with_two_bowls()
    everything = without_slumps(image.terrain, image.labels, 1.0, 4.0, np.random.default_rng(0))
    np.testing.assert_allclose(everything.relative_elevation, plane, atol=1e-3)
    np.testing.assert_allclose(everything.gradient, image_of_surface(plane).terrain.gradient, atol=1e-3)
    same = without_slumps(image.terrain, image.labels, 0.0, 4.0, np.random.default_rng(0))
    np.testing.assert_array_equal(same.relative_elevation, image.terrain.relative_elevation)
    np.testing.assert_array_equal(same.gradient, image.terrain.gradient)


def test_each_slump_is_younger_than_the_elevation_model_by_chance():
    plane, image = slope_with_two_bowls()
    gone = []
    for seed in range(40):
        older = without_slumps(image.terrain, image.labels, 0.5, 4.0, np.random.default_rng(seed))
        off = np.abs(older.relative_elevation - plane) > 0.5
        gone.append(tuple(not off[image.labels == number].any() for number in (1, 2)))
    assert {pair: gone.count(pair) > 3 for pair in set(gone)} == dict.fromkeys(
        [(False, False), (False, True), (True, False), (True, True)], True
    )


def test_ground_around_voids_is_held_on_to_and_what_has_none_stays():
    plane, image = slope_with_two_bowls()
    valid = np.ones_like(image.terrain.valid)
    valid[:, :30] = False
    valid[25:35, 15:25] = True
    terrain = replace(image.terrain, valid=valid, gradient=None)
    older = without_slumps(terrain, image.labels, 1.0, 4.0, np.random.default_rng(0))
    island = np.s_[25:35, 15:25]
    np.testing.assert_array_equal(older.relative_elevation[island], terrain.relative_elevation[island])
    np.testing.assert_allclose(older.relative_elevation[:, 35:], plane[:, 35:], atol=1e-3)
    assert older.gradient is None


def test_zoom_scales_areas_and_keeps_values():
    image = labelled_image()
    larger = zoom(image, (192, 160))
    for number in (1, 2):
        assert (larger.labels == number).sum() == 4 * (image.labels == number).sum()
    assert larger.optical.mean() == pytest.approx(image.optical.mean(), rel=0.02)
    assert zoom(image, image.labels.shape) is image


@pytest.mark.parametrize("shape", [(48, 60), (20, 25)])
def test_gradients_of_the_zoomed_surface_are_the_zoomed_gradients(shape):
    rows, cols = np.mgrid[0:32, 0:40]
    image = image_of_surface(0.3 * rows + 0.02 * cols**2)
    zoomed = zoom(image, shape)
    again = image_of_surface(zoomed.terrain.relative_elevation)
    inner = (slice(None), slice(3, -3), slice(3, -3))
    np.testing.assert_allclose(zoomed.terrain.gradient[inner], again.terrain.gradient[inner], atol=0.02)


@pytest.mark.parametrize("shape", [(192, 160), (60, 50)])
def test_zooming_mixes_nothing_in_that_is_not_valid(shape):
    image, rng = labelled_image(), np.random.default_rng(0)
    holes = rng.random(image.labels.shape) > 0.3
    terrain = replace(image.terrain, relative_elevation=np.where(holes, 2.0, 9e4), valid=holes)
    optical = np.where(holes, 100, 255).astype(np.uint8)[None].repeat(3, axis=0)
    zoomed = zoom(replace(image, optical=optical, optical_valid=holes, terrain=terrain), shape)
    assert set(zoomed.optical[:, zoomed.optical_valid].ravel()) == {100}
    factor = np.sqrt(np.prod(shape) / holes.size)
    np.testing.assert_allclose(zoomed.terrain.relative_elevation[zoomed.terrain.valid], 2 * factor, rtol=1e-5)


def test_smoothing_terrain_mixes_nothing_in_that_is_not_valid():
    image, rng = labelled_image(), np.random.default_rng(0)
    holes = rng.random(image.labels.shape) > 0.3
    heights = np.where(holes, np.float32(2), np.float32(9e4))
    options = AugmentOptions(dem_smooth_share=1.0, dem_missing_share=0.0, dem_noise_m=0.0)
    smooth = disturb_terrain(Terrain(None, heights, holes), options, 4.0, rng)
    np.testing.assert_allclose(smooth.relative_elevation[holes], 2, rtol=1e-5)


def test_blurring_imagery_mixes_nothing_in_that_is_not_valid():
    rng = np.random.default_rng(0)
    holes = rng.random((40, 50)) > 0.3
    optical = np.where(holes, 100, 255).astype(np.uint8)[None].repeat(3, axis=0)
    none = dict.fromkeys(("gain_sd", "channel_sd", "offset_sd_dn", "gamma_sd", "haze_share", "noise_dn"), 0.0)
    options = AugmentOptions(**none, grey_share=0.0, blur_share=1.0)
    np.testing.assert_allclose(disturb_colour(optical, holes, options, rng)[:, holes], 100, rtol=1e-5)


def test_colours_stay_in_range_and_depend_on_the_generator_only():
    image = labelled_image()
    first, second, other = (
        disturb_colour(image.optical, image.optical_valid, AugmentOptions(), np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 255


def test_missing_terrain_is_invalid_not_zero_data():
    options = AugmentOptions(dem_missing_share=1.0)
    gone = disturb_terrain(labelled_image().terrain, options, 4.0, np.random.default_rng(0))
    assert not gone.valid.any()


def test_terrain_noise_is_one_surface():
    flat = image_of_surface(np.zeros((40, 40))).terrain
    options = AugmentOptions(dem_missing_share=0, dem_smooth_share=0, dem_noise_m=2.0)
    noisy = disturb_terrain(flat, options, 4.0, np.random.default_rng(1))
    z, (right, up) = noisy.relative_elevation, noisy.gradient
    np.testing.assert_allclose(right[:, 1:-1], (z[:, 2:] - z[:, :-2]) / 8, atol=1e-5)
    np.testing.assert_allclose(up[1:-1], (z[:-2] - z[2:]) / 8, atol=1e-5)
