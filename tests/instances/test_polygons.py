from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio import features
from scipy import ndimage

from rtsmap.errors import GridMismatchError
from rtsmap.instances.polygons import MAX_AREA_CHANGE, mask_to_polygon, metres_per_unit, simplify
from rtsmap.rasters.tiling import Window
from tests.instances.tiled import polar_grid
from tests.strategies import blobs, law

PLACE = (113, 57)
GRID = polar_grid((400, 500))
ODD_GRID = GeoBox((400, 500), Affine(0.3, 0, 500_000.1, 0, -0.7, 7_600_000.3), "EPSG:32606")


def placed(mask):
    return Window(*PLACE, PLACE[0] + mask.shape[0], PLACE[1] + mask.shape[1])


def burnt(polygon, mask, grid):
    """What rasterio makes of the polygon, on the window of the mask."""
    transform = grid.affine * Affine.translation(PLACE[1], PLACE[0])
    return features.rasterize([polygon], mask.shape, transform=transform, dtype=np.uint8).astype(bool)


def pixel_area(grid):
    return abs(grid.affine.a * grid.affine.e)


@law(150)
@given(blobs().filter(np.any), st.sampled_from([GRID, ODD_GRID]))
def test_a_polygon_covers_exactly_the_pixels_of_its_mask(mask, grid):
    polygon = mask_to_polygon(mask, placed(mask), grid)
    assert polygon.is_valid
    assert (burnt(polygon, mask, grid) == mask).all()
    assert polygon.area == pytest.approx(np.count_nonzero(mask) * pixel_area(grid), rel=1e-9)


@law(150)
@given(blobs().filter(np.any))
def test_one_piece_for_each_component_and_one_ring_for_each_hole(mask):
    polygon = mask_to_polygon(mask, placed(mask), GRID)
    background = ~np.pad(mask, 1)
    _, holes_and_outside = ndimage.label(background, np.ones((3, 3)))
    pieces = shapely.get_parts(polygon)
    assert len(pieces) == ndimage.label(mask)[1]
    # rings of holes that touch at corners may be drawn as one or as several
    assert sum(len(p.interiors) for p in pieces) >= holes_and_outside - 1


@law(150)
@given(blobs().filter(np.any), st.floats(0, 60), st.sampled_from([GRID, ODD_GRID]))
def test_simplified_polygons_are_valid_and_as_large(mask, tolerance_m, grid):
    exact = mask_to_polygon(mask, placed(mask), grid)
    simpler = mask_to_polygon(mask, placed(mask), grid, tolerance_m)
    assert simpler.is_valid
    assert not simpler.is_empty
    assert simpler.area == pytest.approx(exact.area, rel=MAX_AREA_CHANGE * 1.001)
    assert shapely.get_num_coordinates(simpler) <= shapely.get_num_coordinates(exact)
    assert simpler.hausdorff_distance(exact) <= tolerance_m + 1e-6


def disc(radius, side):
    rows, cols = np.ogrid[:side, :side]
    return (rows - side / 2) ** 2 + (cols - side / 2) ** 2 < radius**2


def test_simplifying_takes_the_steps_off_a_round_slump():
    mask = disc(30, 70)
    exact, simpler = (mask_to_polygon(mask, placed(mask), GRID, metres) for metres in (0, 4))
    assert shapely.get_num_coordinates(simpler) < shapely.get_num_coordinates(exact) / 3


def test_the_tolerance_is_in_metres_whatever_the_unit():
    mask = disc(30, 70)
    feet = "EPSG:2225"  # California zone 1, US survey feet
    metre_px, foot_px = 4.0, 4.0 / 0.3048006096
    in_metres = mask_to_polygon(mask, placed(mask), polar_grid((400, 500), metre_px), 6)
    grid = GeoBox((400, 500), Affine(foot_px, 0, 6_000_000, 0, -foot_px, 2_000_000), feet)
    in_feet = mask_to_polygon(mask, placed(mask), grid, 6)
    corners = int(shapely.get_num_coordinates(in_metres))
    assert shapely.get_num_coordinates(in_feet) == pytest.approx(corners, rel=0.1)


def test_units_of_other_systems():
    assert metres_per_unit(GRID.crs) == 1
    degrees = GeoBox((10, 10), Affine(1e-4, 0, -140, 0, -1e-4, 69), "EPSG:4326")
    assert metres_per_unit(degrees.crs) == pytest.approx(111_320, rel=0.01)


def test_a_hole_is_a_hole():
    mask = disc(30, 70) & ~disc(10, 70)
    polygon = mask_to_polygon(mask, placed(mask), GRID, 4)
    assert len(polygon.interiors) == 1
    assert not polygon.contains(polygon.centroid)


def test_pieces_that_meet_at_a_corner_make_a_valid_multipolygon():
    polygon = mask_to_polygon(np.eye(3, dtype=bool), Window(0, 0, 3, 3), GRID, 8)
    assert polygon.geom_type == "MultiPolygon"
    assert polygon.is_valid
    assert len(polygon.geoms) == 3


def specks():
    mask = np.zeros((30, 40), bool)
    mask[5:25, 5:25] = True
    mask[10:12, 10:12] = False  # a hole of 4
    mask[14:19, 14:19] = False  # a hole of 25
    mask[2, 30:33] = True  # a piece of 3
    mask[20:25, 30:35] = True  # a piece of 25
    return mask


@pytest.mark.parametrize(
    ("smallest", "pieces", "holes"), [(1, 3, 2), (4, 2, 2), (5, 2, 1), (25, 2, 1), (26, 1, 0)]
)
def test_specks_can_be_left_out(smallest, pieces, holes):
    polygon = mask_to_polygon(specks(), placed(specks()), GRID, min_speck_px=smallest)
    parts = shapely.get_parts(polygon)
    assert (len(parts), sum(len(p.interiors) for p in parts)) == (pieces, holes)


@law(60)
@given(blobs().filter(np.any), st.integers(1, 60))
def test_without_specks_it_is_valid_and_never_empty(mask, smallest):
    polygon = mask_to_polygon(mask, placed(mask), GRID, 4, smallest)
    assert polygon.is_valid
    assert polygon.area > 0


def test_what_cannot_be_simplified_stays():
    exact = mask_to_polygon(np.ones((1, 1), bool), Window(0, 0, 1, 1), GRID)
    assert simplify(exact, 100).equals(exact)


@pytest.mark.parametrize("mask", [np.zeros((3, 3), bool), np.ones((3, 4), bool)])
def test_masks_without_pixels_or_of_another_shape_are_refused(mask):
    with pytest.raises(GridMismatchError, match="wanted equal shapes"):
        mask_to_polygon(mask, Window(0, 0, 3, 3), GRID)
