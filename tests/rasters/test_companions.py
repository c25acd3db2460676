"""ArcticDEM's companions: filled ground is no elevation, dates come to footprints, overviews mosaics."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.levels import Level
from rtsmap.rasters.mosaic import open_elevation
from rtsmap.rasters.reading import read_level, read_native
from rtsmap.rasters.tiling import Window
from rtsmap.runs.footprints import dem_date
from tests.rasters.files import in_crs

CRS = "EPSG:3413"
SIDE = 512
LEFT, TOP = -2_300_000.0, -300_000.0
GRID = GeoBox((250, 500), Affine(4, 0, LEFT + 8, 0, -4, TOP - 8), CRS)


def write(path, array, left=0.0, nodata=None, overviews=()):
    profile = {
        "driver": "GTiff", "count": 1, "height": array.shape[0], "width": array.shape[1], "crs": CRS,
        "dtype": array.dtype, "transform": Affine(2, 0, LEFT + left, 0, -2, TOP), "nodata": nodata,
        "tiled": True, "blockxsize": 128, "blockysize": 128,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(array, 1)
    if overviews:
        with rasterio.open(path, "r+") as dst:
            dst.build_overviews(list(overviews), Resampling.nearest)
    return path


def days(date: str) -> int:
    return (dt.date.fromisoformat(date) - dt.date(2000, 1, 1)).days


@pytest.fixture
def tiles(tmp_path):
    """Two tiles that overlap by 12 columns; the first is partly filled, the second has no companions."""
    random = np.random.default_rng(1)
    west, east = (random.normal(100, 3, (SIDE, SIDE)).astype(np.float32) for _ in range(2))
    measured = np.ones((SIDE, SIDE), np.uint8)
    measured[100:200, 100:200] = 0
    measured[:, 504:] = 0
    first, last = (np.full((SIDE, SIDE), days(date), np.int16) for date in ("2013-04-05", "2018-09-01"))
    first[300:, 300:] = last[300:, 300:] = days("2016-02-29")
    first[:, :20] = last[:, :20] = 0
    write(tmp_path / "44_74_1_1_2m_v4.1_dem.tif", west, nodata=-9999.0, overviews=(2, 4))
    write(tmp_path / "44_74_1_1_2m_v4.1_datamask.tif", measured, nodata=0, overviews=(2, 4))
    write(tmp_path / "44_74_1_1_2m_v4.1_mindate.tif", first, nodata=0)
    write(tmp_path / "44_74_1_1_2m_v4.1_maxdate.tif", last, nodata=0)
    write(tmp_path / "44_74_1_2_2m_v4.1_dem.tif", east, left=1000.0, nodata=-9999.0, overviews=(2, 4))
    return tmp_path, west, east, measured


@pytest.mark.parametrize("level", [Level(), Level(0), Level(1)])
def test_filled_ground_is_no_elevation_and_the_next_tile_steps_in(tiles, level):
    folder, west, east, measured = tiles
    model = open_elevation(str(folder / "*.tif"), GRID)
    assert len(model.tiles) == 2
    assert model.info.overviews == (2, 4)
    factor = 1 if level.overview is None else model.info.overviews[level.overview]
    shape = (SIDE // factor, (SIDE + 500) // factor)
    patch = read_level(model.info, [1], level, Window(0, 0, *shape))
    start = 500 // factor
    wanted = np.zeros(shape, np.float32)
    wanted[:, start:] = east[::factor, ::factor]
    valid = np.zeros(shape, bool)
    valid[:, start:] = True
    real = measured[::factor, ::factor] > 0
    wanted[:, : real.shape[1]][real] = west[::factor, ::factor][real]
    valid[:, : real.shape[1]] |= real
    assert (patch.valid == valid).all()
    assert (patch.pixels[0] == np.where(valid, wanted, 0)).all()


def test_one_masked_tile_alone_is_read_by_its_mask(tiles):
    folder, west, _, measured = tiles
    model = open_elevation(folder / "44_74_1_1_2m_v4.1_dem.tif", GRID)
    patch = read_native(model.info, [1])
    assert (patch.valid == (measured > 0)).all()
    assert (patch.pixels[0][measured > 0] == west[measured > 0]).all()
    assert "datamask" in model.fingerprint()


def test_a_mask_of_other_pixels_is_not_used_and_said(tiles, tmp_path):
    folder, *_ = tiles
    write(folder / "44_74_1_2_2m_v4.1_datamask.tif", np.zeros((64, 64), np.uint8), left=1000.0)
    model = open_elevation(folder / "44_74_1_2_2m_v4.1_dem.tif", GRID)
    assert read_native(model.info, [1]).valid.all()
    assert any("not those of" in note for note in model.notes)


def test_dates_are_those_of_the_companions(tiles):
    folder, *_ = tiles
    model = open_elevation(str(folder / "*_dem.tif"), GRID)
    heights = ElevationReader(model, GRID).heights(Window(0, 0, *GRID.shape))
    inside = np.zeros(GRID.shape, bool)
    inside[20:40, 60:90] = True
    assert dem_date(heights.first_day, heights.last_day, inside) == "2013-04-05/2018-09-01"
    inside[:] = False
    inside[200:210, 200:210] = True
    assert dem_date(heights.first_day, heights.last_day, inside) == "2016-02-29"
    inside[:] = False
    inside[:, 300:] = True
    assert dem_date(heights.first_day, heights.last_day, inside) is None
    # filled ground has no date either
    assert not heights.first_day[55:90, 55:90].any()


def test_strips_date_the_ground_that_they_cover(tiles):
    folder, west, *_ = tiles
    names = [f"SETSM_s2s041_WV02_{day}_A_B_2m_seg1_dem.tif" for day in ("20120304", "20190701")]
    paths = [write(folder / name, west, left=i * 1000.0, nodata=-9999.0) for i, name in enumerate(names)]
    reader = ElevationReader(open_elevation(paths, GRID), GRID)
    for window, wanted in (
        (Window(10, 10, 30, 30), "2012-03-04"),
        (Window(10, 300, 30, 400), "2019-07-01"),
        (Window(10, 200, 30, 300), "2012-03-04/2019-07-01"),
    ):
        heights = reader.heights(window)
        assert dem_date(heights.first_day, heights.last_day, heights.valid) == wanted


def test_heights_are_the_same_in_every_window(tiles):
    folder, *_ = tiles
    for crs in (CRS, "EPSG:32607"):
        grid = GRID if crs == CRS else in_crs(GRID, crs, 4.0)
        reader = ElevationReader(open_elevation(str(folder / "*_dem.tif"), GRID), grid)
        whole = Window(0, 0, *grid.shape)
        heights = reader.heights(whole)
        for asked in (Window(0, 0, 20, 30), Window(100, 200, 249, 411)):
            window = asked.intersection(whole)
            part, here = reader.heights(window), window.slices(whole)
            for field in ("elevation", "valid", "first_day", "last_day"):
                assert (getattr(part, field) == getattr(heights, field)[here]).all(), field
