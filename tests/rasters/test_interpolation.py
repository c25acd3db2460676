"""Interpolation between grids, against GDAL's warper and against itself with other windows."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject, transform_bounds

from rtsmap.rasters import grids
from rtsmap.rasters.interpolation import interpolate, places
from rtsmap.rasters.tiling import Window

GRID = GeoBox((200, 260), Affine(4.0, 0, 500_000, 0, -4.0, 7_700_000), "EPSG:32608")


def around(grid, crs, pixel):
    """A grid of another CRS under all of `grid`."""
    box = grid.boundingbox
    left, bottom, right, top = transform_bounds(
        grid.crs.to_wkt(), crs, *(box.left, box.bottom, box.right, box.top)
    )
    shape = (int((top - bottom) / pixel) + 20, int((right - left) / pixel) + 20)
    return GeoBox(shape, Affine(pixel, 0, left - 9 * pixel, 0, -pixel, top + 9 * pixel), crs)


@pytest.mark.parametrize(
    ("crs", "pixel"), [("EPSG:3413", 5.0), ("EPSG:32608", 3.3), ("EPSG:4326", 6e-5), ("EPSG:32607", 11.0)]
)
def test_values_are_those_of_gdal(crs, pixel):
    source = around(GRID, crs, pixel)
    planes = np.random.default_rng(1).normal(size=(2, *source.shape)).astype(np.float32)
    everywhere = Window(0, 0, *source.shape)
    window = Window(13, 20, 190, 251)
    found, share = interpolate(planes, source, everywhere, GRID, window)
    assert (share == 1).all()
    target = grids.window_geobox(GRID, window)
    wanted = np.zeros_like(found)
    given_to_gdal = {"src_crs": source.crs.to_wkt(), "dst_crs": target.crs.to_wkt(), "XSCALE": 1, "YSCALE": 1}
    reproject(
        planes,
        wanted,
        src_transform=source.affine,
        dst_transform=target.affine,
        resampling=Resampling.bilinear,
        tolerance=0.0,
        **given_to_gdal,
    )
    # of noise with a standard deviation of 1, in which GDAL is off by up to a hundredth of a pixel
    np.testing.assert_allclose(found, wanted, atol=0.05)
    every = np.arange(13, 190) + 0.5, np.arange(20, 251) + 0.5
    exact = grids.to_pixels(GRID, source, *np.meshgrid(*every, indexing="ij"))
    for place, wanted_place in zip(places(GRID, window, source), exact, strict=True):
        np.testing.assert_allclose(place, wanted_place, rtol=0, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_pixel_is_the_same_to_the_last_bit_in_every_window(data):
    source = around(GRID, "EPSG:3413", 5.0)
    planes = np.random.default_rng(2).normal(300, 90, size=(1, *source.shape)).astype(np.float32)
    whole, _ = interpolate(planes, source, Window(0, 0, *source.shape), GRID, Window(0, 0, *GRID.shape))
    row0, col0 = data.draw(st.integers(0, 190)), data.draw(st.integers(0, 250))
    row1 = data.draw(st.integers(row0 + 1, 200))
    window = Window(row0, col0, row1, data.draw(st.integers(col0 + 1, 260)))
    near = grids.covering_window(grids.window_geobox(GRID, window), source, 3)
    rows, cols = near.slices()
    part, _ = interpolate(planes[:, rows, cols], source, near, GRID, window)
    rows, cols = window.slices()
    np.testing.assert_array_equal(part, whole[:, rows, cols])


def test_beyond_the_source_there_is_nothing_and_at_its_edge_a_share():
    source = GeoBox((10, 10), Affine(4.0, 0, 500_100, 0, -4.0, 7_699_900), GRID.crs)
    shifted = GeoBox((10, 10), Affine(4.0, 0, 500_101, 0, -4.0, 7_699_900), GRID.crs)
    ones = np.ones((1, 10, 10), np.float32)
    for place, first in ((source, 25), (shifted, 25)):
        values, share = interpolate(ones, place, Window(0, 0, 10, 10), GRID, Window(0, 0, 60, 60))
        assert share.max() == 1
        assert (values[0] == share).all()
        assert not values[0, :first].any()
        assert not values[0, :, first + 11 :].any()
    # a quarter of a pixel to the left of the first centre
    assert share[28, 25] == 0 or 0 < share[28, 25] < 1
    assert share[28, 26] == 1


def test_across_the_antimeridian_every_pixel_is_computed():
    grid = GeoBox((40, 80), Affine(4000.0, 0, 440_000, 0, -4000.0, 7_500_000), "EPSG:32601")
    degrees = GeoBox((100, 360), Affine(1.0, 0, -180, 0, -0.5, 90), "EPSG:4326")
    window = Window(0, 0, 40, 80)
    every = np.arange(40) + 0.5, np.arange(80) + 0.5
    wanted = grids.to_pixels(grid, degrees, *np.meshgrid(*every, indexing="ij"))
    for found, exact in zip(places(grid, window, degrees), wanted, strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-6)
