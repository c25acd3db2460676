"""Coverage areas partition the grid and say what the tiles and masks said."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from rtsmap.errors import GridMismatchError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.instances.coverage import (
    FAILED,
    MAPPED,
    NO_DATA,
    NO_PIXELS,
    STATUSES,
    TileCoverage,
    core_cells,
    coverage_areas,
)
from rtsmap.rasters.tiling import TileOptions, plan_tiles

AFFINE = Affine(4.0, 0.0, -2_000_000.0, 0.0, -4.0, 1_000_000.0)


def grid(height, width):
    return GeoBox((height, width), AFFINE, "EPSG:3413")


def painted(areas, geobox):
    """Code of the area that each pixel's centre lies in, by another library; -1 where none does."""
    codes = np.full(geobox.shape, -1)
    for code, area in enumerate(areas):
        inside = rasterize([area.polygon], out_shape=geobox.shape, transform=geobox.affine).astype(bool)
        assert (codes[inside] == -1).all()
        codes[inside] = code
    return codes


@st.composite
def covered_grids(draw):
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    tiles = plan_tiles((height, width), TileOptions(draw(st.integers(8, 40)), draw(st.integers(0, 4))))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    valid = random.random((height, width)) < draw(st.sampled_from([0.0, 0.5, 0.95, 1.0]))
    told = [(str(random.choice(STATUSES)), str(random.choice(["", "a", "b"]))) for _ in tiles]
    return grid(height, width), tiles, told, valid


@settings(max_examples=80, deadline=None)
@given(case=covered_grids())
def test_each_pixel_is_told_as_its_tile_and_its_validity_were(case):
    geobox, tiles, told, valid = case
    coverages = [
        TileCoverage(status, reason, core_cells(valid[tile.read.slices()], tile, stride=1))
        for tile, (status, reason) in zip(tiles, told, strict=True)
    ]
    areas = coverage_areas(tiles, coverages, geobox)
    codes = painted(areas, geobox)
    for tile, (status, reason) in zip(tiles, told, strict=True):
        for (row, col), data in np.ndenumerate(valid[tile.core.slices()]):
            area = areas[codes[tile.core.row0 + row, tile.core.col0 + col]]
            assert (area.status, area.reason) == ((status, reason) if data else (NO_DATA, NO_PIXELS))


@settings(max_examples=60, deadline=None)
@given(case=covered_grids(), stride=st.integers(1, 9))
def test_areas_are_valid_and_sum_to_the_grid(case, stride):
    geobox, tiles, told, valid = case
    coverages = [
        TileCoverage(status, reason, core_cells(valid[tile.read.slices()], tile, stride), stride)
        for tile, (status, reason) in zip(tiles, told, strict=True)
    ]
    areas = coverage_areas(tiles, coverages, geobox)
    whole = geodesic_area_m2(geobox.extent.geom, geobox.crs)
    assert all(area.polygon.is_valid and area.area_m2 > 0 for area in areas)
    assert sum(area.polygon.area for area in areas) == pytest.approx(geobox.shape[0] * geobox.shape[1] * 16)
    assert sum(area.area_m2 for area in areas) == pytest.approx(whole, rel=1e-6)
    assert len({(area.status, area.reason) for area in areas}) == len(areas)


def test_coarse_cells_keep_about_the_area_of_the_mask():
    geobox = grid(512, 512)
    tiles = plan_tiles(geobox.shape, TileOptions(128, 32))
    rows, cols = np.mgrid[:512, :512]
    valid = (rows - 200) ** 2 + (cols - 300) ** 2 > 120**2
    for stride in (2, 4, 8):
        coverages = [
            TileCoverage(MAPPED, "", core_cells(valid[t.read.slices()], t, stride), stride) for t in tiles
        ]
        mapped, gap = coverage_areas(tiles, coverages, geobox)
        assert (mapped.status, gap.status, gap.reason) == (MAPPED, NO_DATA, NO_PIXELS)
        assert gap.polygon.area / 16 == pytest.approx(np.pi * 120**2, rel=0.01)


def test_whole_tiles_dissolve_into_one_rectangle():
    geobox = grid(1000, 1500)
    tiles = plan_tiles(geobox.shape, TileOptions(64, 16))
    (area,) = coverage_areas(tiles, (TileCoverage(MAPPED) for _ in tiles), geobox)
    assert shapely.get_num_coordinates(area.polygon) == 5
    assert shapely.equals(area.polygon, geobox.extent.geom)


def test_statuses_and_reasons_stay_apart_and_in_order():
    geobox = grid(16, 64)
    tiles = plan_tiles(geobox.shape, TileOptions(16, 0))
    told = [(FAILED, "worker died"), (NO_DATA, "too little data"), (MAPPED, ""), (FAILED, "cannot read")]
    areas = coverage_areas(tiles, [TileCoverage(*pair) for pair in told], geobox)
    assert [(a.status, a.reason) for a in areas] == [told[2], told[1], told[3], told[0]]


def test_a_mask_that_does_not_fit_its_core_is_refused():
    (tile,) = plan_tiles((16, 16), TileOptions(16, 0))
    wrong = TileCoverage(MAPPED, "", np.ones((4, 5), dtype=bool), stride=4)
    with pytest.raises(GridMismatchError, match=r"wants \(4, 4\), got \(4, 5\)"):
        coverage_areas([tile], [wrong], grid(16, 16))
    with pytest.raises(ValueError, match="wanted one of"):
        TileCoverage("done")
