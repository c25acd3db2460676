from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from rtsmap.rasters import terrain

RNG = np.random.default_rng(11)
SLOPES = st.floats(-3, 3)
PIXELS = st.tuples(st.floats(0.3, 50), st.floats(0.3, 50))


def plane(shape, per_x, per_y, pixel_size_m, base=500.0):
    rows, cols = np.indices(shape)
    return base + per_x * cols * pixel_size_m[1] - per_y * rows * pixel_size_m[0]


@given(per_x=SLOPES, per_y=SLOPES, pixel=PIXELS, holes=st.floats(0, 0.8), seed=st.integers(0, 999))
def test_a_plane_has_its_exact_gradient_wherever_one_is_known(per_x, per_y, pixel, holes, seed):
    valid = np.random.default_rng(seed).random((12, 14)) >= holes
    z = np.where(valid, plane(valid.shape, per_x, per_y, pixel), -9999)
    dx, dy = terrain.gradients(z, valid, pixel)
    np.testing.assert_allclose(dx[np.isfinite(dx)], per_x, atol=1e-7)
    np.testing.assert_allclose(dy[np.isfinite(dy)], per_y, atol=1e-7)
    assert not np.isfinite(dx[~valid]).any()
    if valid.all():
        assert np.isfinite(dx).all()
        assert np.isfinite(dy).all()


def test_inside_it_is_the_published_kernel_of_horn():
    z = RNG.normal(size=(20, 20)) * 10
    dx, dy = terrain.gradients(z, np.ones(z.shape, bool), (2.0, 5.0))
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(dx[inner], correlate(z, kernel)[inner] / (8 * 5.0))
    np.testing.assert_allclose(dy[inner], correlate(z, -kernel.T)[inner] / (8 * 2.0))


def test_a_lonely_pixel_has_no_gradient():
    valid = np.zeros((5, 5), bool)
    valid[2, 2] = True
    dx, dy = terrain.gradients(np.ones((5, 5)), valid, (1.0, 1.0))
    assert np.isnan(dx).all()
    assert np.isnan(dy).all()


def test_a_cone_falls_the_same_everywhere_and_away_from_its_top():
    rows, cols = np.indices((101, 101)) - 50.0
    distance = np.hypot(rows, cols)
    dx, dy = terrain.gradients(-0.5 * 3 * distance, distance >= 0, (3.0, 3.0))
    flank = (distance > 5) & (np.abs(rows) < 49) & (np.abs(cols) < 49)
    slope = terrain.slope_degrees(dx, dy)
    np.testing.assert_allclose(slope[flank], np.degrees(np.arctan(0.5)), atol=0.35)
    downhill = np.arctan2(-dx, -dy)[flank]
    outwards = np.arctan2(cols, -rows)[flank]
    assert np.abs(np.angle(np.exp(1j * (downhill - outwards)))).max() < 0.02


@pytest.mark.parametrize(("slope", "wanted"), [(0.0, 0.0), (1.0, 45.0), (np.tan(np.radians(30)), 30.0)])
def test_slope_in_degrees(slope, wanted):
    assert terrain.slope_degrees(0.0, slope) == pytest.approx(wanted, abs=1e-5)


def test_flat_ground_is_shaded_180():
    assert terrain.shaded_relief(0.0, 0.0) == pytest.approx(255 * np.sqrt(0.5))


@given(azimuth=st.floats(0, 360), altitude=st.floats(5, 85), facing=st.floats(0, 360), tilt=st.floats(0, 80))
def test_shading_is_the_angle_between_sun_and_surface(azimuth, altitude, facing, tilt):
    """Against vectors: the light is the normal's component towards the sun."""
    a, h, f, t = np.radians([azimuth, altitude, facing, tilt])
    sun = np.array([np.sin(a) * np.cos(h), np.cos(a) * np.cos(h), np.sin(h)])
    normal = np.array([np.sin(f) * np.sin(t), np.cos(f) * np.sin(t), np.cos(t)])
    dx, dy = -normal[0] / normal[2], -normal[1] / normal[2]
    shade = terrain.shaded_relief(dx, dy, azimuth, altitude)
    assert shade == pytest.approx(255 * max(0.0, float(sun @ normal)), abs=1e-3)


def test_a_slope_that_faces_north_west_is_bright():
    assert terrain.shaded_relief(0.5, -0.5) > 240
    assert terrain.shaded_relief(-0.5, 0.5) < 120


@settings(deadline=None)
@given(pixel=st.tuples(st.floats(2, 40), st.floats(2, 40)), holes=st.floats(0, 0.9), seed=st.integers(0, 999))
def test_relative_elevation_is_height_over_the_mean_of_a_disc(pixel, holes, seed):
    """Against a direct sum over every pair of pixels."""
    rng = np.random.default_rng(seed)
    z, valid = rng.normal(1000, 30, (11, 13)), rng.random((11, 13)) >= holes
    z[~valid] = -9999
    got, got_valid = terrain.relative_elevation(z, valid, pixel, radius_m=60)
    np.testing.assert_array_equal(got_valid, valid)
    y, x = (a * s for a, s in zip(np.indices(z.shape), pixel, strict=True))
    for row, col in np.argwhere(valid):
        near = valid & ((y - y[row, col]) ** 2 + (x - x[row, col]) ** 2 <= 3600 * (1 + 1e-9))
        assert got[row, col] == pytest.approx(z[row, col] - z[near].mean(), abs=1e-3)
    assert not got[~valid].any()


def test_relative_elevation_does_not_know_the_datum():
    z = RNG.normal(0, 5, (40, 40))
    valid = np.ones(z.shape, bool)
    low, _ = terrain.relative_elevation(z, valid, (10, 10))
    high, _ = terrain.relative_elevation(z + 4321.5, valid, (10, 10))
    np.testing.assert_allclose(low, high, atol=1e-4)


def test_relative_elevation_of_a_plane_is_zero_inside():
    z = plane((80, 80), 0.2, -0.1, (5.0, 5.0))
    got, _ = terrain.relative_elevation(z, np.ones(z.shape, bool), (5.0, 5.0))
    np.testing.assert_allclose(got[20:-20, 20:-20], 0, atol=1e-3)


def test_no_valid_pixel_gives_no_terrain():
    nothing = np.zeros((6, 6), bool)
    values, valid = terrain.relative_elevation(np.full((6, 6), np.nan), nothing, (1, 1))
    assert not values.any()
    assert not valid.any()


def test_the_disc_is_round_on_the_ground():
    spike = np.zeros((61, 61))
    spike[30, 30] = 1.0
    valid = np.ones(spike.shape, bool)
    got, _ = terrain.relative_elevation(spike, valid, (10.0, 20.0), radius_m=100)
    touched = got < -1e-9
    assert np.flatnonzero(touched.any(axis=1)).tolist() == list(range(20, 41))
    assert np.flatnonzero(touched.any(axis=0)).tolist() == list(range(25, 36))
