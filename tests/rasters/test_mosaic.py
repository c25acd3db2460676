from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from rtsmap.errors import BandError, GridMismatchError, InputError, ReadError
from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.mosaic import open_elevation
from rtsmap.rasters.tiling import Window
from tests.rasters.files import geobox, in_crs, served, write

RNG = np.random.default_rng(5)
VOID = -9999.0
POLAR = "EPSG:3413"
GRID = geobox((90, 100), 4.0)
WHOLE = Window(0, 0, 90, 100)
BANDS = ("relative_elevation", "slope", "shaded_relief")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Rough ground of 2 m in EPSG:3413 with voids, around GRID: (one big file, elevation, its geobox)."""
    box = in_crs(GRID.pad(50), POLAR, 2.0)
    rows, cols = np.indices(box.shape)
    elevation = 200 + 15 * np.sin(rows / 31) * np.cos(cols / 43) + RNG.normal(0, 0.2, box.shape)
    elevation[RNG.random(box.shape) < 0.02] = VOID
    elevation[200:230, 240:260] = VOID
    path = tmp_path_factory.mktemp("ground") / "big.tif"
    return cut(path, (box, elevation), Window(0, 0, *box.shape)), (box, elevation)


def cut(path, ground, window, nodata=VOID, void=VOID, **profile):
    """Write a window of the ground as a tile."""
    box, elevation = ground
    part = elevation[window.slices()].astype(np.float32)
    part[part == VOID] = void
    where = box[window.slices()]
    return write(path, part, crs=POLAR, transform=where.affine, nodata=nodata, **profile)


def tiles_of(folder, ground, rows, cols, overlap_px):
    """Tiles between the given cuts, each wider than its cell by half the overlap on every side."""
    height, width = ground[0].shape
    half = overlap_px // 2
    names = []
    for r0, r1 in zip([0, *rows], [*rows, height], strict=True):
        for c0, c1 in zip([0, *cols], [*cols, width], strict=True):
            window = Window(max(r0 - half, 0), max(c0 - half, 0), r1 + half, c1 + half)
            window = window.intersection(Window(0, 0, height, width))
            names.append(cut(Path(folder) / f"{r0}_{c0}_dem.tif", ground, window))
    return names


def read(dem, window=WHOLE):
    reader = ElevationReader(dem, GRID)
    relief = reader.relief(window)
    elevation, valid = reader.elevation(window)
    planes = [np.where(valid, elevation, 0), *(relief.bands[name] for name in BANDS)]
    return np.stack(planes), np.stack([valid, relief.valid])


@pytest.fixture(scope="module")
def single(ground):
    planes, valid = read(ground[0])
    assert 0.9 < valid.mean() < 1
    return planes, valid


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_tiles_are_one_file_in_any_order(tmp_path_factory, ground, single, data):
    """Elevation and terrain, joints included, wherever the joints are and whatever overlaps."""
    height, width = ground[1][0].shape
    rows = sorted(data.draw(st.sets(st.integers(20, height - 20), max_size=2)))
    cols = sorted(data.draw(st.sets(st.integers(20, width - 20), max_size=2)))
    folder = tmp_path_factory.mktemp("tiles")
    names = tiles_of(folder, ground[1], rows, cols, data.draw(st.sampled_from([0, 2, 50])))
    planes, valid = read(data.draw(st.permutations(names)))
    np.testing.assert_array_equal(valid, single[1])
    np.testing.assert_array_equal(planes, single[0])


def test_a_pattern_names_tiles_and_not_their_companions(tmp_path, ground, single):
    names = tiles_of(tmp_path, ground[1], [150], [170], 50)
    for name in names:
        shutil.copy(name, str(name).replace("_dem", "_mindate"))
    planes, _ = read(tmp_path / "*.tif")
    np.testing.assert_array_equal(planes, single[0])
    model = open_elevation(str(tmp_path / "*.tif"), GRID)
    assert any(note.startswith("4 companions") for note in model.notes)
    assert sorted(model.paths) == sorted(str(name) for name in names)
    twice = open_elevation([*names, str(tmp_path / "*_dem.tif")], GRID)
    assert twice.paths == model.paths
    with pytest.raises(InputError, match="no file matches"):
        open_elevation(str(tmp_path / "*.img"), GRID)


def test_only_tiles_that_meet_the_window_are_opened(tmp_path):
    grid = geobox((50, 600), 4.0, POLAR)
    ground = geobox((300, 1400), 2.0, POLAR, corner=(499_800.0, 7_700_200.0)), RNG.normal(100, 1, (300, 1400))
    names = tiles_of(tmp_path, ground, [], [500, 900], 50)
    reader = ElevationReader(names, grid)
    window = Window(0, 0, 50, 60)
    first = reader.relief(window)
    for name in names[1:]:
        name.unlink()
    again = reader.relief(window)
    assert again.valid.all()
    for band in BANDS:
        np.testing.assert_array_equal(again.bands[band], first.bands[band])
    with pytest.raises(ReadError):
        reader.relief(Window(0, 0, 50, 300))


def test_tiles_on_both_sides_of_the_antimeridian_lie_side_by_side(tmp_path):
    rows, cols = np.indices((120, 240))
    elevation = (cols + rows / 2).astype(np.float32)
    for name, left, part in (("w", 179.9, slice(0, 120)), ("e", -180.0, slice(120, 240))):
        affine = Affine(1 / 1200, 0, left, 0, -1 / 1200, 71.05)
        write(tmp_path / f"{name}.tif", elevation[:, part], crs="EPSG:4326", transform=affine)
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, 71)
    grid = geobox((64, 64), 30.0, "EPSG:32660", (x - 960, y + 960))
    reader = ElevationReader(str(tmp_path / "?.tif"), grid)
    assert tuple(reader._info.geobox.shape) == (120, 240)
    found, valid = reader.elevation(Window(0, 0, 64, 64))
    assert valid.all()
    assert (np.diff(found, axis=1) > 0.5).all()
    assert (np.diff(found, axis=1) < 1.5).all()


def around_the_earth(folder, left, parts=1, beyond_px=0):
    """Heights in degrees all around the Earth, in pieces side by side; they rise eastwards across 180."""
    width, size = 36_000 + beyond_px, 0.01
    lons = left + size * (np.arange(width) + 0.5)
    elevation = np.where(abs(abs(lons) - 180) < 1, 100 * np.mod(lons, 360) - 17_900, VOID)
    plane = np.broadcast_to(elevation.astype(np.float32), (100, width))
    for number, cols in enumerate(np.array_split(np.arange(width), parts)):
        affine = Affine(size, 0, left + size * cols[0], 0, -size, 71.5)
        write(folder / f"{number}.tif", plane[:, cols], crs="EPSG:4326", transform=affine, nodata=VOID)
    return str(folder / "?.tif")


@pytest.mark.parametrize(("left", "parts", "beyond_px"), [(-180, 1, 0), (-180, 3, 0), (-180.005, 1, 1)])
@pytest.mark.parametrize("middle", [180, 179.99, -179.97])
def test_both_ends_of_a_raster_around_the_earth_are_read(tmp_path, left, parts, beyond_px, middle):
    x, y = Transformer.from_crs(4326, POLAR, always_xy=True).transform(middle, 71)
    grid, whole = geobox((64, 64), 30.0, POLAR, (x - 960, y + 960)), Window(0, 0, 64, 64)
    reader = ElevationReader(around_the_earth(tmp_path, left, parts, beyond_px), grid)
    assert reader._source_window(whole, 5).width < 100
    found, valid = reader.elevation(whole)
    assert valid.all()
    assert reader.relief(whole).valid.all()
    lons, _ = _lons_lats(grid)
    np.testing.assert_allclose(found, 100 * np.mod(lons, 360) - 17_900, atol=0.1)


def _lons_lats(grid):
    rows, cols = np.indices(grid.shape) + 0.5
    return Transformer.from_crs(grid.crs.proj, 4326, always_xy=True).transform(*(grid.affine * (cols, rows)))


def test_ends_whose_pixels_do_not_meet_are_refused(tmp_path):
    x, y = Transformer.from_crs(4326, POLAR, always_xy=True).transform(180, 71)
    affine = Affine(0.0143, 0, -180, 0, -0.0143, 71.5)
    dem = write(tmp_path / "d.tif", np.ones((80, 25_174), np.float32), crs="EPSG:4326", transform=affine)
    with pytest.raises(GridMismatchError, match=r"25174\.83 of them go around the Earth"):
        open_elevation(dem, geobox((64, 64), 30.0, POLAR, (x - 960, y + 960)))
    far = geobox((64, 64), 30.0, POLAR, (-x, y))
    assert open_elevation(dem, far).info.path == str(dem)


def test_tiles_away_from_the_scene_are_left_out(tmp_path, ground, single):
    names = tiles_of(tmp_path, ground[1], [150], [], 50)
    far = write(tmp_path / "far_dem.tif", np.ones((9, 9), np.float32), 2.0, crs=POLAR, corner=(0.0, 0.0))
    model = open_elevation([far, *names], GRID)
    assert len(model.tiles) == 2
    assert any(note.startswith("1 of 3 DEM files") for note in model.notes)
    np.testing.assert_array_equal(read(model)[0], single[0])
    alone = open_elevation([far, far], GRID)
    assert alone.paths == str(far)
    assert any("does not overlap" in note for note in ElevationReader(alone, GRID).notes)


@pytest.mark.parametrize("how", ["declared", "other value", "undeclared", "mask", "nan"])
def test_a_void_is_filled_by_the_neighbour_and_the_north_western_tile_wins(tmp_path, ground, how):
    box = ground[1][0]
    flat = np.full(box.shape, 100.0)
    flat[150:180, 150:180] = VOID
    height, width = box.shape
    void = {"other value": 0.0, "nan": np.nan}.get(how, VOID)
    nodata = None if how in {"undeclared", "mask"} else void
    mask = (flat != VOID)[:250] if how == "mask" else None
    top = cut(tmp_path / "z.tif", (box, flat), Window(0, 0, 250, width), nodata, void, mask=mask)
    low = cut(tmp_path / "a.tif", (box, np.full(box.shape, 140.0)), Window(100, 0, height, width))
    model = open_elevation([low, top], GRID)
    with rasterio.open(model.info.dataset) as mosaic:
        pixels = mosaic.read(1)
    wanted = np.where(np.arange(height) < 250, 100.0, 140.0)[:, None] * np.ones(width)
    wanted[150:180, 150:180] = 140
    np.testing.assert_array_equal(pixels, wanted)
    assert ElevationReader(model, GRID).elevation(WHOLE)[1].all()


def test_nothing_is_invented_between_tiles_that_do_not_touch(tmp_path, ground):
    height, width = ground[1][0].shape
    gap = Window(0, 180, height, 220)
    names = [
        cut(tmp_path / "a.tif", ground[1], Window(0, 0, height, gap.col0)),
        cut(tmp_path / "b.tif", ground[1], Window(0, gap.col1, height, width)),
    ]
    box, elevation = ground[1]
    holed = elevation.copy()
    holed[gap.slices()] = VOID
    big = cut(tmp_path / "c.tif", (box, holed), Window(0, 0, height, width))
    for several, one in zip(read(names), read(big), strict=True):
        np.testing.assert_array_equal(several, one)


def test_what_cannot_be_one_raster_is_refused_in_a_sentence(tmp_path, ground):
    first = cut(tmp_path / "a.tif", ground[1], Window(0, 0, 200, 200))
    flat = np.ones((50, 50), np.float32)
    corner = ground[1][0].affine
    near = (corner.c, corner.f)
    others = {
        r"EPSG:3413.*EPSG:32608|EPSG:32608.*EPSG:3413": write(tmp_path / "utm.tif", flat, 2.0),
        "give files of one resolution": write(tmp_path / "10.tif", flat, 10.0, crs=POLAR, corner=near),
        r"off by .* 0\.50 columns": write(
            tmp_path / "off.tif", flat, 2.0, crs=POLAR, corner=(near[0] + 1, near[1])
        ),
    }
    for words, other in others.items():
        for order in ([first, other], [other, first]):
            with pytest.raises(GridMismatchError, match=words.replace("0.50", r"-?0\.50")):
                open_elevation(order, GRID)
    feet = cut(tmp_path / "feet.tif", ground[1], Window(100, 0, 200, 200))
    with rasterio.open(feet, "r+") as dst:
        dst.units = ("ft",)
    with pytest.raises(BandError, match="unit"):
        open_elevation([first, feet], GRID)
    with pytest.raises(BandError, match="one band"):
        open_elevation([first, write(tmp_path / "rgb.tif", np.ones((3, 9, 9), np.uint8))], GRID)


def test_scale_and_unit_of_tiles_are_kept(tmp_path):
    names = []
    for col in (0, 200):
        box = geobox((450, 200), 2.0, corner=(499_900.0 + 2 * col, 7_700_100.0))
        name = write(tmp_path / f"{col}.tif", np.full(box.shape, 1000, np.int16), transform=box.affine)
        with rasterio.open(name, "r+") as dst:
            dst.scales, dst.offsets, dst.units = (0.5,), (10.0,), ("ft",)
        names.append(name)
    elevation, valid = ElevationReader(names, geobox((60, 60))).elevation(Window(0, 0, 60, 60))
    assert valid.all()
    np.testing.assert_allclose(elevation, 510 * 0.3048, rtol=1e-6)


def test_the_fingerprint_is_of_all_tiles_and_not_of_their_place(tmp_path, ground):
    names = tiles_of(tmp_path, ground[1], [150], [170], 50)
    known = open_elevation(names, GRID).fingerprint()
    assert len(known) == 4
    assert open_elevation(names[0], GRID).fingerprint() == known["tile_1"]
    moved = Path(
        shutil.copytree(tmp_path, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere"))
    )
    assert open_elevation(str(moved / "*_dem.tif"), GRID).fingerprint() == known
    with rasterio.open(moved / names[2].name, "r+") as dst:
        pixels = dst.read(1)
        dst.write(pixels + 1, 1)
    changed = open_elevation(str(moved / "*_dem.tif"), GRID).fingerprint()
    assert {key for key in known if known[key] != changed[key]} == {"tile_3"}


def test_relative_names_stay_right_when_the_folder_changes(tmp_path, ground, single, monkeypatch):
    tiles_of(tmp_path, ground[1], [150], [], 50)
    monkeypatch.chdir(tmp_path)
    reader = ElevationReader("*_dem.tif", GRID)
    os.chdir(tmp_path.parent)
    np.testing.assert_array_equal(reader.relief(WHOLE).bands["slope"], single[0][2])


def test_tiles_may_lie_on_a_server(tmp_path, ground, single):
    names = tiles_of(tmp_path, ground[1], [150], [], 50)
    with served(tmp_path) as address, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        planes, _ = read([f"{address}/{name.name}" for name in names])
    np.testing.assert_array_equal(planes, single[0])
