from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import example, given
from hypothesis import strategies as st
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.instances.attributes import (
    RIM_M,
    Footprint,
    centroid_lonlat,
    footprint_id,
    geodesic_area_m2,
    geodesic_perimeter_m,
    grid_north_deg,
    instance_terrain,
    make_footprint,
    terrain_attributes,
    terrain_window,
)
from rtsmap.instances.seams import merge_detections
from rtsmap.rasters.tiling import Window
from tests.instances.tiled import ANY_SCORE, detect_on_tiles, polar_grid, whole_grid
from tests.strategies import law

POLAR = CRS("EPSG:3413")
SYSTEMS = {
    "polar": (POLAR, (-2_050_000.0, 410_000.0)),
    "polar, far from its true scale": (POLAR, (1_300_000.0, -3_000_000.0)),
    "Alaska Albers": (CRS("EPSG:3338"), (150_000.0, 2_200_000.0)),
    "UTM": (CRS("EPSG:32606"), (640_000.0, 7_600_000.0)),
    "degrees": (CRS("EPSG:4326"), (-140.0, 69.0)),
    "Web Mercator": (CRS("EPSG:3857"), (-15_000_000.0, 10_700_000.0)),
    "feet": (CRS("EPSG:2225"), (6_000_000.0, 2_000_000.0)),
}


def blob(crs, corner, size_m):
    """A bent polygon with a hole, about `size_m` across."""
    unit = size_m / 40_000 if crs.geographic else size_m / 0.3048 if crs.epsg == 2225 else size_m
    ring = [(0, 0), (1, 0.1), (0.9, 0.6), (0.5, 0.4), (0.3, 1), (0, 0.7)]
    hole = [(0.15, 0.2), (0.3, 0.2), (0.3, 0.4), (0.15, 0.4)]
    place = lambda points: [(corner[0] + x * unit, corner[1] + y * unit) for x, y in points]  # noqa: E731
    return shapely.Polygon(place(ring), [place(hole)])


def flat(polygon, crs, projection):
    """The polygon in a projection centred on it."""
    lon, lat = centroid_lonlat(polygon, crs)
    target = pyproj.CRS.from_proj4(f"+proj={projection} +lat_0={lat} +lon_0={lon} +datum=WGS84")
    to_flat = pyproj.Transformer.from_crs(crs.proj, target, always_xy=True)
    dense = shapely.segmentize(polygon, polygon.length / 4000)
    return shapely.transform(dense, lambda xy: np.column_stack(to_flat.transform(*xy.T)))


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("size_m", [40, 1_000, 60_000])
def test_areas_are_those_of_an_equal_area_projection(name, size_m):
    crs, corner = SYSTEMS[name]
    polygon = blob(crs, corner, size_m)
    assert geodesic_area_m2(polygon, crs) == pytest.approx(flat(polygon, crs, "laea").area, rel=2e-6)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("size_m", [40, 1_000])
def test_perimeters_are_those_of_an_equidistant_projection(name, size_m):
    crs, corner = SYSTEMS[name]
    polygon = blob(crs, corner, size_m)
    assert geodesic_perimeter_m(polygon, crs) == pytest.approx(flat(polygon, crs, "aeqd").length, rel=1e-6)


def test_web_mercator_does_not_inflate_areas():
    crs, corner = SYSTEMS["Web Mercator"]
    polygon = blob(crs, corner, 1_000)
    assert geodesic_area_m2(polygon, crs) < 0.2 * polygon.area


@law(60)
@given(st.floats(-2.5e6, 2.5e6), st.floats(-2.5e6, 2.5e6), st.floats(10, 3000), st.floats(0, math.tau))
@example(-1.0, -1.0, 10.0, 0.0)
def test_areas_and_perimeters_do_not_depend_on_place_or_direction_of_rings(x, y, size_m, turn):
    polygon = shapely.affinity.rotate(blob(POLAR, (x, y), size_m), turn, use_radians=True)
    area, perimeter = geodesic_area_m2(polygon, POLAR), geodesic_perimeter_m(polygon, POLAR)
    # a metre from the pole the slices that GeographicLib adds up are rounded by a tenth of a square metre
    assert area == pytest.approx(flat(polygon, POLAR, "laea").area, rel=1e-5, abs=0.5)
    assert geodesic_area_m2(shapely.reverse(polygon), POLAR) == pytest.approx(area)
    assert geodesic_perimeter_m(shapely.reverse(polygon), POLAR) == pytest.approx(perimeter)


def test_pieces_and_holes_add_up():
    first, second = blob(POLAR, (-2e6, 4e5), 500), blob(POLAR, (-2.1e6, 4e5), 700)
    both = shapely.MultiPolygon([first, second])
    filled, hole = shapely.Polygon(first.exterior), shapely.Polygon(first.interiors[0])
    assert geodesic_area_m2(both, POLAR) == pytest.approx(
        geodesic_area_m2(first, POLAR) + geodesic_area_m2(second, POLAR)
    )
    assert geodesic_area_m2(first, POLAR) == pytest.approx(
        geodesic_area_m2(filled, POLAR) - geodesic_area_m2(hole, POLAR)
    )
    assert geodesic_perimeter_m(both, POLAR) == pytest.approx(
        geodesic_perimeter_m(first, POLAR) + geodesic_perimeter_m(second, POLAR)
    )
    assert geodesic_perimeter_m(first, POLAR) == pytest.approx(
        geodesic_perimeter_m(filled, POLAR) + geodesic_perimeter_m(hole, POLAR)
    )


def test_a_slump_on_the_date_line_and_one_at_the_pole():
    meridian = 225.0  # 180 degrees east, seen from the polar grid's -45
    x, y = 2e6 * math.sin(math.radians(meridian)), -2e6 * math.cos(math.radians(meridian))
    for corner in ((x - 500, y - 500), (-400.0, -300.0)):
        polygon = blob(POLAR, corner, 1_000)
        assert geodesic_area_m2(polygon, POLAR) == pytest.approx(flat(polygon, POLAR, "laea").area, rel=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_centroids_in_degrees(name):
    crs, corner = SYSTEMS[name]
    polygon = blob(crs, corner, 500)
    lon, lat = centroid_lonlat(polygon, crs)
    back = pyproj.Transformer.from_crs("EPSG:4326", crs.proj, always_xy=True).transform(lon, lat)
    assert back == pytest.approx((polygon.centroid.x, polygon.centroid.y))
    assert -180 <= lon <= 180


class TestGridNorth:
    @law(60)
    @given(st.floats(-2.5e6, 2.5e6), st.floats(-2.5e6, 2.5e6))
    def test_on_a_polar_grid_true_north_is_towards_the_pole(self, x, y):
        if math.hypot(x, y) < 1e5:
            return
        grid = GeoBox((100, 100), Affine(4, 0, x, 0, -4, y), POLAR)
        expected = -math.degrees(math.atan2(-(x + 200), -(y - 200))) % 360
        difference = (grid_north_deg(grid, 50, 50) - expected + 180) % 360 - 180
        assert difference == pytest.approx(0, abs=1e-3)

    @pytest.mark.parametrize("easting", [300_000, 500_000, 700_000])
    def test_on_utm_it_is_the_convergence(self, easting):
        grid = GeoBox((10, 10), Affine(4, 0, easting, 0, -4, 7_600_000), "EPSG:32606")
        projection = pyproj.Proj("EPSG:32606")
        lon, lat = projection(easting + 20, 7_600_000 - 20, inverse=True)
        expected = projection.get_factors(lon, lat).meridian_convergence
        difference = (grid_north_deg(grid, 5, 5) - expected + 180) % 360 - 180
        assert difference == pytest.approx(0, abs=1e-3)


class TestTerrain:
    SIZE = (60, 80)
    PIXEL = (4.0, 5.0)

    def plane(self, slope_deg, downhill_deg):
        """A plane that falls towards `downhill_deg`, clockwise from the top of the grid."""
        rows, cols = np.mgrid[: self.SIZE[0], : self.SIZE[1]]
        east, north = cols * self.PIXEL[1], -rows * self.PIXEL[0]
        angle = math.radians(downhill_deg)
        along = east * math.sin(angle) + north * math.cos(angle)
        return (500 - math.tan(math.radians(slope_deg)) * along).astype(np.float32)

    def mask(self):
        mask = np.zeros(self.SIZE, bool)
        mask[20:40, 25:60] = True
        return mask

    def attributes(self, elevation, valid=None, mask=None, north=0.0):
        everywhere = np.ones(self.SIZE, bool)
        return terrain_attributes(
            elevation,
            everywhere if valid is None else valid,
            self.mask() if mask is None else mask,
            self.PIXEL,
            north,
        )

    @law(60)
    @given(st.floats(1, 50), st.floats(0, 359.9), st.floats(0, 359.9))
    def test_slope_and_aspect_of_a_plane(self, slope_deg, downhill_deg, north):
        terrain = self.attributes(self.plane(slope_deg, downhill_deg), north=north)
        assert terrain.slope_deg == pytest.approx(slope_deg, abs=0.05)
        difference = (terrain.aspect_deg - downhill_deg - north + 180) % 360 - 180
        assert difference == pytest.approx(0, abs=0.2)
        assert 0 <= terrain.aspect_deg < 360

    def test_the_range_is_that_of_the_pixels_of_the_mask(self):
        elevation = np.full(self.SIZE, 900, np.float32)
        elevation[self.mask()] = np.linspace(100, 130, self.mask().sum())
        terrain = self.attributes(elevation)
        assert (terrain.elevation_min_m, terrain.elevation_max_m) == (100, 130)

    def test_a_hollow_has_negative_relief(self):
        elevation = np.full(self.SIZE, 100, np.float32)
        elevation[self.mask()] = 96.5
        assert self.attributes(elevation).relief_m == pytest.approx(-3.5)

    def test_relief_looks_no_further_than_the_rim(self):
        elevation = np.full(self.SIZE, 100, np.float32)
        rim = int(RIM_M // 4) + 1
        elevation[: 20 - rim] = 5000
        elevation[40 + rim :] = 5000
        elevation[:, : 25 - rim] = 5000
        elevation[:, 60 + rim :] = 5000
        assert self.attributes(elevation).relief_m == pytest.approx(0)

    def test_level_ground_has_no_aspect(self):
        terrain = self.attributes(np.full(self.SIZE, 42, np.float32))
        assert (terrain.slope_deg, terrain.aspect_deg) == (0, None)

    def test_voids_are_left_out(self):
        elevation = self.plane(10, 180)
        valid = np.ones(self.SIZE, bool)
        valid[20:30] = False
        elevation[~valid] = -9999
        terrain = self.attributes(elevation, valid)
        assert terrain.elevation_min_m > 400
        assert terrain.slope_deg == pytest.approx(10, abs=0.05)
        assert terrain.valid_share == 0.5

    def test_without_elevation_there_are_no_figures(self):
        nowhere = np.zeros(self.SIZE, bool)
        assert self.attributes(self.plane(10, 0), nowhere) is None

    def test_a_single_known_pixel_has_no_slope_and_no_rim(self):
        valid = np.zeros(self.SIZE, bool)
        valid[30, 40] = True
        terrain = self.attributes(self.plane(10, 0), valid)
        assert terrain.elevation_min_m == terrain.elevation_max_m
        assert (terrain.slope_deg, terrain.aspect_deg, terrain.relief_m) == (None, None, None)

    def test_arrays_of_different_shapes_are_refused(self):
        with pytest.raises(GridMismatchError, match="disagree"):
            self.attributes(np.zeros((3, 3)))


def a_slump(shape=(120, 150)):
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    mask = (rows - 60) ** 2 / 900 + (cols - 70) ** 2 / 1600 < 1
    tile = whole_grid(shape)
    (slump,) = merge_detections(detect_on_tiles(mask, [tile]), [tile], ANY_SCORE)
    return slump


GRID = polar_grid((120, 150))


class TestFootprint:
    def test_it_says_what_the_instance_says(self):
        slump = replace(a_slump(), n_parts=3, seam_unconfirmed=True)
        footprint = make_footprint(slump, GRID, scene_fingerprint="abc", valid_share=0.75)
        assert footprint.score == slump.score
        assert (footprint.n_parts, footprint.seam_unconfirmed) == (3, True)
        assert (footprint.modalities, footprint.valid_share) == (("optical",), 0.75)
        assert footprint.crs == GRID.crs
        assert footprint.elevation_range_m is None
        assert footprint.aspect_deg is None

    def test_area_perimeter_and_place_are_those_of_its_polygon(self):
        footprint = make_footprint(a_slump(), GRID, scene_fingerprint="abc", simplify_m=5)
        flat_polygon = flat(footprint.polygon, GRID.crs, "laea")
        assert footprint.area_m2 == pytest.approx(flat_polygon.area, rel=1e-6)
        assert footprint.perimeter_m == pytest.approx(flat_polygon.length, rel=1e-6)
        assert (footprint.centroid_lon, footprint.centroid_lat) == centroid_lonlat(
            footprint.polygon, GRID.crs
        )

    def test_the_area_is_that_of_the_pixels(self):
        slump = a_slump()
        footprint = make_footprint(slump, GRID, scene_fingerprint="abc")
        lon, lat = footprint.centroid_lon, footprint.centroid_lat
        scale = pyproj.Proj("EPSG:3413").get_factors(lon, lat).areal_scale
        assert footprint.area_m2 == pytest.approx(slump.area_px * 16 / scale, rel=1e-4)

    def test_terrain_of_an_instance(self):
        slump = a_slump()
        window = terrain_window(slump.window, GRID)
        rows = np.arange(window.row0, window.row1)[:, None] * np.ones(window.width)
        elevation = (1000 - 0.1 * 4 * rows).astype(np.float32)  # falls by 10 % towards the bottom
        terrain = instance_terrain(slump, GRID, window, elevation, np.ones(window.shape, bool))
        footprint = make_footprint(slump, GRID, scene_fingerprint="abc", terrain=terrain)
        height = slump.window.height - 1
        assert footprint.elevation_range_m == pytest.approx(0.4 * height, abs=1e-3)
        scale = pyproj.Proj("EPSG:3413").get_factors(footprint.centroid_lon, footprint.centroid_lat)
        true_slope = math.degrees(math.atan(0.1 * scale.meridional_scale))
        assert footprint.slope_deg == pytest.approx(true_slope, rel=1e-3)
        middle = (slump.window.row0 + slump.window.row1) / 2, (slump.window.col0 + slump.window.col1) / 2
        assert footprint.aspect_deg == pytest.approx((180 + grid_north_deg(GRID, *middle)) % 360, abs=0.1)
        assert footprint.relief_m == pytest.approx(0, abs=0.5)

    def test_terrain_is_seen_with_its_rim_but_not_beyond_the_grid(self):
        window = terrain_window(a_slump().window, GRID)
        assert Window(0, 0, 120, 150).contains(window)
        assert a_slump().window.row0 - window.row0 >= RIM_M / 4
        assert terrain_window(Window(0, 0, 5, 5), GRID).row0 == 0

    def test_it_travels_between_processes(self):
        footprint = make_footprint(a_slump(), GRID, scene_fingerprint="abc")
        assert pickle.loads(pickle.dumps(footprint)) == footprint  # noqa: S301

    @pytest.mark.parametrize(
        "change",
        [
            {"polygon": shapely.Polygon()},
            {"polygon": shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])},
            {"polygon": shapely.Point(0, 0)},
            {"score": 1.5},
            {"valid_share": -0.1},
            {"area_m2": 0.0},
            {"area_m2": float("nan")},
        ],
    )
    def test_it_refuses_what_no_slump_can_be(self, change):
        fine = make_footprint(a_slump(), GRID, scene_fingerprint="abc")
        assert isinstance(fine, Footprint)
        with pytest.raises(InputError, match=f"footprint {fine.id}"):
            replace(fine, **change)


class TestIds:
    def test_the_same_slump_has_the_same_id(self):
        first, second = (
            make_footprint(a_slump(), GRID, scene_fingerprint="abc", simplify_m=m) for m in (0, 8)
        )
        assert first.id == second.id

    def test_anything_else_has_another(self):
        moved = GeoBox(GRID.shape, Affine(4, 0, -2_000_004, 0, -4, 400_000), GRID.crs)
        elsewhere = GeoBox(GRID.shape, GRID.affine, "EPSG:3995")
        ids = {
            footprint_id("abc", GRID, (5, 7)),
            footprint_id("abd", GRID, (5, 7)),
            footprint_id("abc", GRID, (7, 5)),
            footprint_id("abc", moved, (5, 7)),
            footprint_id("abc", elsewhere, (5, 7)),
            footprint_id("abc", GRID, (5, 7), rank=1),
        }
        assert len(ids) == 6

    def test_it_does_not_depend_on_the_extent_of_the_grid(self):
        larger = GeoBox((999, 999), GRID.affine, GRID.crs)
        assert footprint_id("abc", GRID, (5, 7)) == footprint_id("abc", larger, (5, 7))
