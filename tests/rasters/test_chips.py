from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer

from rtsmap.errors import BandError, GridMismatchError
from rtsmap.rasters import elevation as elevation_module
from rtsmap.rasters import grids, levels, reading, relief_cells, sources, terrain
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, Band, InputSpec, Modality
from rtsmap.rasters.chips import ChipReader, cut_chip
from rtsmap.rasters.elevation import ElevationReader
from rtsmap.rasters.tiling import TileOptions, Window, plan_tiles
from tests.rasters.files import geobox, in_crs, write
from tests.shared_data import shared

RNG = np.random.default_rng(23)
SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
CRSS = {"EPSG:3413": 2.0, "EPSG:32608": 5.0, "EPSG:4326": None, "EPSG:32609": 10.0}


def dem_grid(grid, crs, resolution=None):
    """A grid over the run's grid and some way around it; degrees get pixels that are not square."""
    if crs != "EPSG:4326":
        return in_crs(grid.pad(60), crs, resolution)
    box = in_crs(grid.pad(60), crs, 1e-4)
    left, bottom, right, top = box.boundingbox.bbox
    shape = (round((top - bottom) / 5e-5), round((right - left) / 1.2e-4))
    return GeoBox(shape, Affine(1.2e-4, 0, left, 0, -5e-5, top), crs)


def surface(box, function):
    """Values of a function of UTM x and y at the pixel centres of a grid in any CRS."""
    rows, cols = np.indices(box.shape) + 0.5
    xs = box.affine.a * cols + box.affine.c
    ys = box.affine.e * rows + box.affine.f
    xs, ys = Transformer.from_crs(box.crs.to_wkt(), 32608, always_xy=True).transform(xs, ys)
    return function(xs - 500_000, ys - 7_700_000)


def write_dem(path, box, elevation, **profile):
    return write(path, elevation.astype(np.float32), crs=box.crs.to_wkt(), transform=box.affine, **profile)


# --- terrain from another grid -------------------------------------------------------------------------


@pytest.mark.parametrize("crs", CRSS)
def test_a_tilted_plane_keeps_slope_and_shading_whatever_the_crs_of_the_dem(tmp_path, crs):
    """Against the slope on the ground, by geodesic distances, of the plane in the run's own grid."""
    grid = geobox((110, 130), 4.0)
    box = dem_grid(grid, crs, CRSS[crs])
    dem = write_dem(tmp_path / "dem.tif", box, surface(box, lambda x, y: 300 + 0.3 * x + 0.1 * y))
    relief = ElevationReader(dem, grid).relief(Window(0, 0, 110, 130))
    assert relief.valid.all()
    lonlat = Transformer.from_crs(32608, 4326, always_xy=True).transform
    east_m = Geod(ellps="WGS84").inv(*lonlat(500_000, 7_700_000), *lonlat(500_100, 7_700_000))[2] / 100
    dx, dy = 0.3 / east_m, 0.1 / east_m
    slope = terrain.slope_degrees(dx, dy)
    shade = terrain.shaded_relief(dx, dy)
    np.testing.assert_allclose(relief.bands["slope"], slope, rtol=2e-3)
    np.testing.assert_allclose(relief.bands["shaded_relief"], shade, rtol=2e-3)
    np.testing.assert_allclose(relief.bands["relative_elevation"], 0, atol=0.05)


@pytest.mark.parametrize("crs", CRSS)
def test_hills_keep_their_place_and_form(tmp_path, crs):
    def hills(x, y):
        return 400 + 12 * np.sin(x / 60) * np.cos(y / 75)

    grid = geobox((130, 130), 4.0)
    box = dem_grid(grid, crs, CRSS[crs])
    reader = ElevationReader(write_dem(tmp_path / "dem.tif", box, surface(box, hills)), grid)
    window = Window(0, 0, 130, 130)
    elevation, valid = reader.elevation(window)
    assert valid.all()
    np.testing.assert_allclose(elevation, surface(grid, hills), atol=0.12)
    step = 0.01
    dx = surface(grid, lambda x, y: (hills(x + step, y) - hills(x - step, y)) / (2 * step))
    dy = surface(grid, lambda x, y: (hills(x, y + step) - hills(x, y - step)) / (2 * step))
    relief = reader.relief(window)
    assert np.abs(relief.bands["slope"] - terrain.slope_degrees(dx, dy)).max() < 0.5
    assert np.abs(relief.bands["shaded_relief"] - terrain.shaded_relief(dx, dy)).max() < 5
    fine = surface(grid.pad(60), hills)
    wanted, _ = terrain.relative_elevation(fine, np.ones(fine.shape, bool), (4.0, 4.0))
    assert np.abs(relief.bands["relative_elevation"] - wanted[60:-60, 60:-60]).max() < 0.3


def test_a_dem_much_finer_than_the_grid_is_averaged_first(tmp_path):
    """Noise of 2 m between pixels of 0.5 m would be slopes of 70 degrees; at 4 m it is averaged away."""
    grid = geobox((60, 60), 4.0)
    box = geobox((900, 900), 0.5, corner=(499_900.0, 7_700_100.0))
    rough = 100 + RNG.normal(0, 2, box.shape)
    reader = ElevationReader(write_dem(tmp_path / "dem.tif", box, rough), grid)
    relief = reader.relief(Window(0, 0, 60, 60))
    assert relief.valid.all()
    assert np.median(relief.bands["slope"]) < 5
    np.testing.assert_allclose(reader.elevation(Window(0, 0, 60, 60))[0].std(), 2 / 8, rtol=0.15)


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:32608", "EPSG:32607", "EPSG:3571"])
def test_a_dem_of_2_m_is_the_same_case_under_4_m_in_every_crs(tmp_path, crs):
    grid = geobox((40, 40), 4.0)
    box = dem_grid(grid, crs, 2.0)
    reader = ElevationReader(write_dem(tmp_path / "dem.tif", box, np.ones(box.shape)), grid)
    assert reader._level == levels.Level(None, 2)


# --- voids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["declared", "undeclared", "nan"])
def test_voids_are_not_terrain_and_do_not_disturb_their_surroundings(tmp_path, how):
    value = np.nan if how == "nan" else -9999.0
    grid = geobox((150, 150), 4.0)
    box = dem_grid(grid, "EPSG:3413", 8.0)
    elevation = surface(box, lambda x, y: 300 + 0.3 * x + 0.1 * y)
    hole = surface(box, lambda x, y: (np.abs(x - 300) < 60) & (np.abs(y + 250) < 60))
    elevation[hole] = value
    profile = {"nodata": -9999.0} if how == "declared" else {}
    reader = ElevationReader(write_dem(tmp_path / "dem.tif", box, elevation, **profile), grid)
    relief = reader.relief(Window(0, 0, 150, 150))
    wanted = surface(grid, lambda x, y: (np.abs(x - 300) < 60) & (np.abs(y + 250) < 60))
    assert not relief.valid[wanted].mean() > 0.2
    near = surface(grid, lambda x, y: (np.abs(x - 300) < 72) & (np.abs(y + 250) < 72))
    assert relief.valid[~near].all()
    slope = relief.bands["slope"]
    np.testing.assert_allclose(slope[relief.valid], np.median(slope[relief.valid]), rtol=5e-3)
    assert all((band[~relief.valid] == 0).all() for band in relief.bands.values())
    assert any("taken as voids" in note for note in reader.notes) == (how == "undeclared")


@pytest.mark.parametrize("value", [-9999.0, 32767.0])
def test_specks_of_undeclared_voids_are_left_out_of_averages(tmp_path, value):
    grid = geobox((60, 60), 4.0)
    box = geobox((480, 480), 0.5)
    elevation = np.full(box.shape, 300.0)
    # six of the 64 pixels that become one: their mean would pass for the bottom of a deep hole
    elevation[160:162, 200:203] = value
    reader = ElevationReader(write_dem(tmp_path / "dem.tif", box, elevation), grid)
    heights, valid = reader.elevation(Window(0, 0, 60, 60))
    assert valid.all()
    np.testing.assert_allclose(heights, 300.0, rtol=1e-5)
    assert any("taken as voids" in note for note in reader.notes)


def test_half_a_dem_gives_half_the_terrain(tmp_path):
    scene = write(
        tmp_path / "scene.tif", RNG.integers(1, 255, (3, 100, 120)).astype(np.uint8), 4.0, photometric="RGB"
    )
    box = geobox((100, 60), 4.0)
    dem = write_dem(tmp_path / "dem.tif", box, np.arange(6000.0).reshape(100, 60) / 100)
    layers = ChipReader(scene, dem, SPEC, geobox((100, 120))).read_block(Window(0, 0, 100, 120))
    assert layers["optical"].valid.all()
    assert layers["terrain"].valid[:, :60].all()
    assert not layers["terrain"].valid[:, 60:].any()
    assert not layers["terrain"].pixels[:, :, 60:].any()


def test_no_dem_or_one_elsewhere_gives_no_terrain_and_says_so(tmp_path):
    scene = write(
        tmp_path / "scene.tif", RNG.integers(1, 255, (3, 30, 30)).astype(np.uint8), 4.0, photometric="RGB"
    )
    far = write_dem(tmp_path / "far.tif", geobox((9, 9), corner=(0.0, 0.0)), np.ones((9, 9)))
    for dem in (None, far):
        reader = ChipReader(scene, dem, SPEC, geobox((30, 30)))
        terrain_layer = reader.read_block(Window(0, 0, 30, 30))["terrain"]
        assert terrain_layer.pixels.shape == (3, 30, 30)
        assert not terrain_layer.valid.any()
        elevation, valid = reader.elevation(Window(0, 0, 30, 30))
        assert elevation.shape == (30, 30)
        assert not valid.any()
        assert any("does not overlap" in note for note in reader.notes) == (dem is far)


def test_units_and_scale_of_heights_are_applied(tmp_path):
    box = geobox((40, 40))
    path = write(tmp_path / "dem.tif", np.full((40, 40), 1000, np.int16), transform=box.affine)
    with rasterio.open(path, "r+") as dst:
        dst.scales, dst.offsets, dst.units = (0.5,), (10.0,), ("ft",)
    reader = ElevationReader(path, box)
    np.testing.assert_allclose(reader.elevation(Window(0, 0, 40, 40))[0], 510 * 0.3048, rtol=1e-6)
    assert any("converted to metres" in note for note in reader.notes)


def test_colours_are_no_elevation(tmp_path):
    path = write(tmp_path / "rgb.tif", np.ones((3, 9, 9), np.uint8), photometric="RGB")
    with pytest.raises(BandError, match="one band"):
        ElevationReader(path, geobox((9, 9)))


# --- blocks --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_cells(monkeypatch, request):
    """Many cells in the small grids of `inputs`."""
    if "inputs" in request.fixturenames:
        monkeypatch.setattr(grids, "CELL_PX", 64)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A scene of 0.9 m without overviews and DEMs in several CRS with holes, over 225 x 259 pixels."""
    folder = tmp_path_factory.mktemp("inputs")
    scene = RNG.integers(0, 4, (3, 1000, 1150)).astype(np.uint8)
    scene[:, 200:400, 200:500] = 0
    write(folder / "scene.tif", scene, 0.9, photometric="RGB")
    grid = sources.run_grid(sources.probe(folder / "scene.tif"), 4.0).geobox
    for name, (crs, resolution) in enumerate(CRSS.items()):
        box = dem_grid(grid, crs, resolution)
        elevation = surface(box, lambda x, y: 500 + 20 * np.sin(x / 90) * np.cos(y / 80))
        elevation += RNG.normal(0, 0.3, elevation.shape)
        elevation[RNG.random(elevation.shape) < 0.25] = -9999
        write_dem(folder / f"dem{name}.tif", box, elevation, nodata=-9999)
    return folder, grid


@pytest.mark.parametrize("dem", range(4))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_block_equals_the_whole(inputs, dem, data, monkeypatch):
    folder, grid = inputs
    reader = ChipReader(folder / "scene.tif", folder / f"dem{dem}.tif", SPEC, grid)
    whole = _whole(reader, dem, grid)
    rows = sorted(data.draw(st.lists(st.integers(0, grid.shape[0]), min_size=2, max_size=2, unique=True)))
    cols = sorted(data.draw(st.lists(st.integers(0, grid.shape[1]), min_size=2, max_size=2, unique=True)))
    window = Window(rows[0], cols[0], rows[1], cols[1])
    with monkeypatch.context() as patch:
        patch.setattr(elevation_module, "_PIECE_PX", data.draw(st.sampled_from([20_000, 6_000_000])))
        part = reader.read_block(window)
    down, across = window.slices()
    for name, layer in part.items():
        np.testing.assert_array_equal(layer.valid, whole[name].valid[down, across])
        np.testing.assert_allclose(layer.pixels, whole[name].pixels[:, down, across], atol=1e-4)


@pytest.mark.parametrize("dem", range(4))
def test_with_cells_blocks_agree_to_the_last_bit_and_with_the_whole(inputs, dem, monkeypatch):
    monkeypatch.setattr(relief_cells, "CELL_PX", 64)
    folder, grid = inputs
    dem_path = folder / f"dem{dem}.tif"
    whole = _whole(ChipReader(folder / "scene.tif", dem_path, SPEC, grid), dem, grid)
    many, few = (ChipReader(folder / "scene.tif", dem_path, SPEC, grid, kept_cells=n) for n in (64, 1))
    for tile in plan_tiles(grid.shape, TileOptions(120, 40)):
        kept, anew = (reader.read_block(tile.read)["terrain"] for reader in (many, few))
        np.testing.assert_array_equal(kept.pixels, anew.pixels)
        np.testing.assert_array_equal(kept.valid, anew.valid)
        rows, cols = tile.read.slices()
        np.testing.assert_array_equal(kept.valid, whole["terrain"].valid[rows, cols])
        np.testing.assert_allclose(kept.pixels, whole["terrain"].pixels[:, rows, cols], atol=1e-4)


_WHOLES = {}


def _whole(reader, dem, grid):
    if dem not in _WHOLES:
        layers = reader.read_block(Window(0, 0, *grid.shape))
        assert 0.5 < layers["optical"].valid.mean() < 1
        assert 0.3 < layers["terrain"].valid.mean() < 1
        _WHOLES[dem] = layers
    return _WHOLES[dem]


def test_threads_may_share_a_reader(inputs):
    folder, grid = inputs
    reader = ChipReader(folder / "scene.tif", folder / "dem0.tif", SPEC, grid)
    windows = [tile.read for tile in plan_tiles(grid.shape, TileOptions(120, 40))]
    alone = [reader.read_block(window) for window in windows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(reader.read_block, windows * 2))
    for got, wanted in zip(together, alone * 2, strict=True):
        for name, layer in wanted.items():
            np.testing.assert_array_equal(got[name].pixels, layer.pixels)
            np.testing.assert_array_equal(got[name].valid, layer.valid)


def test_a_reader_can_be_sent_to_another_process(inputs):
    folder, grid = inputs
    reader = ChipReader(folder / "scene.tif", folder / "dem0.tif", SPEC, grid)
    again = pickle.loads(pickle.dumps(reader))  # noqa: S301
    window = Window(10, 20, 60, 90)
    np.testing.assert_array_equal(
        again.read_block(window)["terrain"].pixels, reader.read_block(window)["terrain"].pixels
    )


def test_chips_are_cut_from_blocks(inputs):
    folder, grid = inputs
    reader = ChipReader(folder / "scene.tif", folder / "dem1.tif", SPEC, grid)
    block = Window(30, 20, 200, 240)
    layers = reader.read_block(block)
    tiles = [t for t in plan_tiles(grid.shape, TileOptions(64, 16)) if block.contains(t.read)]
    assert tiles
    for tile in tiles:
        chip = cut_chip(layers, block, tile, grid)
        alone = reader.read_block(tile.read)
        for name, layer in chip.layers.items():
            np.testing.assert_array_equal(layer.valid, alone[name].valid)
            np.testing.assert_allclose(layer.pixels, alone[name].pixels, atol=1e-4)
        corner = chip.geobox.affine
        assert (corner.c, corner.f) == (
            grid.affine.c + 4.0 * tile.read.col0,
            grid.affine.f - 4.0 * tile.read.row0,
        )
    outside = next(t for t in plan_tiles(grid.shape, TileOptions(64, 16)) if not block.contains(t.read))
    with pytest.raises(GridMismatchError, match="beyond the block"):
        cut_chip(layers, block, outside, grid)


def test_bands_come_in_the_order_of_the_spec(inputs):
    folder, grid = inputs
    band = {b.name: b for m in SPEC.modalities for b in m.bands}
    turned = InputSpec(
        4.0,
        (
            Modality("relief", (band["slope"], band["relative_elevation"])),
            Modality("colour", (band["blue"], band["red"])),
        ),
    )
    window = Window(0, 0, 50, 50)
    usual = ChipReader(folder / "scene.tif", folder / "dem1.tif", SPEC, grid).read_block(window)
    got = ChipReader(folder / "scene.tif", folder / "dem1.tif", turned, grid).read_block(window)
    assert list(got) == ["relief", "colour"]
    np.testing.assert_array_equal(got["relief"].pixels, usual["terrain"].pixels[[1, 0]])
    assert got["colour"].pixels.shape == (2, 50, 50)


def test_a_band_that_is_derived_is_not_read_silently(inputs):
    folder, grid = inputs
    spec = InputSpec(4.0, (Modality("spectral", (Band("ndvi", 0, 1, -1, 1),)),))
    with pytest.raises(BandError, match="ndvi"):
        ChipReader(folder / "scene.tif", None, spec, grid)


# --- real files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "dem", "resolution_m", "share"),
    [
        ("rmnp/rmnp-rgb.tif", "rmnp/rmnp-dem.tif", 60.0, (0.38, 0.42)),
        ("kootenay/kootenayOrtho_rgb.tif", "kootenay/kootenayCHM.tif", 2.0, (0.8, 0.95)),
        ("neon/SJER_052.tif", "neon/SJER_052_CHM.tif", 1.0, (0.9, 1.0)),
    ],
)
def test_real_pairs_have_terrain_where_the_dem_has_data(scene, dem, resolution_m, share):
    scene, dem = shared(f"scenes/{scene}"), shared(f"scenes/{dem}")
    grid = sources.run_grid(sources.probe(scene), resolution_m).geobox
    reader = ChipReader(scene, dem, InputSpec(resolution_m, SPEC.modalities), grid)
    layers = reader.read_block(Window(0, 0, *grid.shape))
    assert share[0] <= layers["terrain"].valid.mean() <= share[1]
    assert layers["optical"].valid.mean() > 0.9
    slope = layers["terrain"].pixels[1]
    assert 0 <= slope.min() <= slope.max() < 90
    assert all(np.isfinite(layer.pixels).all() for layer in layers.values())


@pytest.mark.parametrize(
    "dem",
    [
        "arctic_dems/vestfold.tif",
        "arctic_dems/dem_Columbia.tif",
        "arctic_dems/dem_SouthGlacier.tif",
        "exploradores/AST_L1A_00303182012144228_Z.tif",
    ],
)
def test_real_dems_on_a_grid_of_another_crs(dem):
    """Median slope on a UTM or polar grid agrees with that on the file's own pixels."""
    info = sources.probe(shared(f"scenes/{dem}"))
    patch = reading.read_native(info, [1])
    gsd = info.ground_sample_distance_m
    dx, dy = terrain.gradients(patch.pixels[0], patch.valid, (gsd, gsd))
    wanted = np.nanmedian(terrain.slope_degrees(dx, dy))
    epsg = 3031 if "vestfold" not in dem and "exploradores" in dem else 3413
    if "vestfold" in dem:
        epsg = 32640
    grid = in_crs(info.geobox, f"EPSG:{epsg}", gsd * 1.01)
    relief = ElevationReader(info.path, grid).relief(Window(0, 0, *grid.shape))
    assert np.median(relief.bands["slope"][relief.valid]) == pytest.approx(wanted, rel=0.06)
