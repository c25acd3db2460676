from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Proj, Transformer
from rasterio.warp import transform as rasterio_transform

from rtsmap.errors import InputError
from rtsmap.rasters import grids
from rtsmap.rasters.tiling import Window
from tests.rasters.files import geobox, in_crs

SIZES = st.integers(1, 600)


def degrees_box(lon, lat, size=200, step=1e-4):
    return GeoBox((size, size), Affine(step, 0, lon, 0, -step, lat), "EPSG:4326")


@given(height=SIZES, width=SIZES, gsd=st.floats(0.1, 30), resolution=st.floats(0.5, 40))
def test_the_run_grid_drops_no_row_or_column_and_adds_less_than_one(height, width, gsd, resolution):
    native = geobox((height, width), gsd)
    grid = grids.run_grid(native, resolution)
    assert grid.note is None
    box, whole = grid.geobox.boundingbox, native.boundingbox
    assert (box.left, box.top) == (whole.left, whole.top)
    assert 0 <= box.right - whole.right + 1e-5 * resolution < resolution * 1.0001
    assert 0 <= whole.bottom - box.bottom + 1e-5 * resolution < resolution * 1.0001


def test_a_metric_crs_with_a_small_scale_error_is_kept():
    """EPSG:3413 is 3.9 % off at 60 N and passes."""
    x, y = Transformer.from_crs(4326, 3413, always_xy=True).transform(-140.0, 60.0)
    native = geobox((100, 100), 2.0, crs="EPSG:3413", corner=(x, y))
    assert Proj("EPSG:3413").get_factors(-140, 60).meridional_scale == pytest.approx(1.039, abs=1e-3)
    assert grids.run_grid(native, 4.0) == grids.RunGrid(geobox((50, 50), 4.0, "EPSG:3413", (x, y)), None)


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "wanted", "words"),
    [
        ("EPSG:3857", -134.0, 69.0, 32608, "times too long"),
        ("EPSG:3413", -140.0, 50.0, 32607, "times too long"),
        ("EPSG:4326", 100.0, 72.0, 32647, "in degrees"),
        ("EPSG:4326", -70.0, -50.0, 32719, "in degrees"),
        ("EPSG:4326", 179.99, 65.0, 32660, "in degrees"),
        ("EPSG:4326", -40.0, 85.5, 3413, "in degrees"),
        ("EPSG:4326", 10.0, -86.0, 3031, "in degrees"),
        ("EPSG:2225", -122.0, 40.0, 32610, "0.3048 m"),
    ],
)
def test_other_scenes_get_a_local_metric_crs(crs, lon, lat, wanted, words):
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    step = 1e-5 if crs == "EPSG:4326" else 2.0
    native = GeoBox((300, 300), Affine(step, 0, x, 0, -step, y), crs)
    grid = grids.run_grid(native, 4.0)
    assert grid.geobox.crs.epsg == wanted
    assert words in grid.note
    factors = Proj(f"EPSG:{wanted}").get_factors(lon, lat)
    assert factors.meridional_scale == pytest.approx(1, abs=0.05)
    corners_y, corners_x = [0, 0, 300, 300], [0, 300, 0, 300]
    rows, cols = grids.to_pixels(native, grid.geobox, corners_y, corners_x)
    assert rows.min() >= 0
    assert cols.min() >= 0
    assert rows.max() <= grid.geobox.shape[0]
    assert cols.max() <= grid.geobox.shape[1]
    assert grid.geobox.shape[0] - rows.max() < 1.01


@pytest.mark.parametrize("middle", [180.0, -180.0])
def test_a_raster_across_the_antimeridian_is_found_on_both_sides_of_it(middle):
    native = GeoBox((100, 300), Affine(1e-3, 0, middle - 0.15, 0, -1e-3, 70), "EPSG:4326")
    grid = grids.run_grid(native, 10.0).geobox
    rows, cols = np.array([10.0, 50.0, 90.0]), np.array([1.0, 150.5, 299.0])
    there = grids.to_pixels(native, grid, rows, cols)
    back = grids.to_pixels(grid, native, *there)
    np.testing.assert_allclose(back, [rows, cols], atol=1e-5)
    assert grids.covering_window(grid, native, 0).shape == native.shape


def test_web_mercator_beyond_180_degrees_is_refused():
    edge = np.pi * 6378137
    box = partial(GeoBox, (300, 300), crs="EPSG:3857")
    within = grids.run_grid(box(affine=Affine(10, 0, edge - 3000, 0, -10, 1.1e7)), 4.0)
    assert within.geobox.crs.epsg == 32660
    with pytest.raises(InputError, match="beyond 180 degrees in EPSG:3857"):
        grids.run_grid(box(affine=Affine(10, 0, edge - 1500, 0, -10, 1.1e7)), 4.0)


def test_a_wide_scene_gets_a_projection_of_its_own():
    grid = grids.run_grid(degrees_box(60, 70, size=200, step=0.1), 1000.0)
    assert "Azimuthal" in grid.geobox.crs.proj.coordinate_operation.method_name
    with pytest.raises(InputError, match="cut it into regions"):
        grids.run_grid(degrees_box(-170, 80, size=340, step=1.0), 1000.0)


def test_ground_pixels_agree_with_projection_factors():
    box = geobox((100, 100), 10.0, crs="EPSG:3413", corner=(-2_000_000, 800_000))
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(-2_000_000 + 500, 800_000 - 500)
    factors = Proj("EPSG:3413").get_factors(lon, lat)
    for size_m in grids.ground_pixel_m(box):
        assert size_m == pytest.approx(10.0 / factors.meridional_scale, rel=1e-5)


@settings(deadline=None)
@given(
    row=st.floats(0, 500),
    col=st.floats(0, 500),
    crs=st.sampled_from(["EPSG:3413", "EPSG:4326", "EPSG:32609"]),
)
def test_pixels_are_mapped_as_rasterio_maps_them(row, col, crs):
    target = geobox((500, 500), 4.0)
    source = in_crs(target, crs, 1e-4 if crs == "EPSG:4326" else 7.0)
    x, y = target.affine.a * col + target.affine.c, target.affine.e * row + target.affine.f
    (source_x,), (source_y,) = rasterio_transform("EPSG:32608", crs, [x], [y])
    rows, cols = grids.to_pixels(target, source, row, col)
    assert float(cols) == pytest.approx((source_x - source.affine.c) / source.affine.a, abs=1e-4)
    assert float(rows) == pytest.approx((source_y - source.affine.f) / source.affine.e, abs=1e-4)


@pytest.mark.parametrize("crs", ["EPSG:32608", "EPSG:3413", "EPSG:4326", "EPSG:3857"])
def test_a_covering_window_holds_every_pixel_under_the_target(crs):
    target = geobox((700, 900), 4.0)
    source = in_crs(target, crs, 2e-4 if crs == "EPSG:4326" else 11.0).pad(60)
    window = grids.covering_window(target, source, 0)
    mesh = np.meshgrid(np.linspace(0, 700, 150), np.linspace(0, 900, 150), indexing="ij")
    rows, cols = grids.to_pixels(target, source, *mesh)
    assert window.row0 <= rows.min()
    assert window.row1 >= rows.max()
    assert window.col0 <= cols.min()
    assert window.col1 >= cols.max()
    assert window.height <= rows.max() - rows.min() + 4
    assert window.width <= cols.max() - cols.min() + 4


@given(
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_cells_cover_a_window_once_and_do_not_depend_on_it(height, width, corners):
    grid = geobox((height, width), 4.0)
    rows = sorted(int(c * height) for c in corners[:2])
    cols = sorted(int(c * width) for c in corners[2:])
    window = Window(rows[0], cols[0], rows[1], cols[1])
    every = set(grids.cells(grid, Window(0, 0, height, width)))
    seen = np.zeros((height, width), int)
    for cell in grids.cells(grid, window):
        assert cell in every
        seen[cell.slices()] += 1
    assert (seen[window.slices()] == 1).all()
    assert seen.max(initial=0) <= 1


def test_shrink_ratio_is_that_of_the_shorter_side():
    native = GeoBox((400, 400), Affine(1.0, 0, 0, 0, -2.0, 0), "EPSG:32608")
    assert grids.shrink_ratio(geobox((10, 10), 8.0), native) == pytest.approx(4.0)


def test_pixels_without_extent_are_refused():
    with pytest.raises(InputError, match="have no extent on the ground"):
        grids.run_grid(GeoBox((10, 10), Affine(1e-30, 0, 500_000, 0, -1e-30, 7_000_000), "EPSG:32608"), 4.0)


def test_metres_are_told_without_exponents():
    told = {metres: grids.told_m(metres) for metres in (0.1, 4.0, 30.012, 999.4, 2000.0, 123_456.7)}
    assert list(told.values()) == ["0.1", "4", "30", "999", "2,000", "123,457"]
