from __future__ import annotations

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, Resampling

from rtsmap.errors import BandError
from rtsmap.rasters import levels, reading, sources
from rtsmap.rasters.levels import Level
from rtsmap.rasters.tiling import Window
from tests.rasters.files import CORNER, UTM, geobox, in_crs, rgb, sentinel_scene, write
from tests.shared_data import shared

RNG = np.random.default_rng(5)
SENTINELS = {1: 250, 2: 20, 4: 40, 8: 80, 16: 160}


few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("resolution_m", "overview"),
    [(0.5, 1), (0.9, 1), (1.0, 2), (1.9, 2), (2.0, 4), (3.9, 4), (4.0, 8), (6.0, 8), (8.0, 16), (20.0, 16)],
)
def test_reading_takes_the_coarsest_overview_that_is_fine_enough(tmp_path, resolution_m, overview):
    path = sentinel_scene(tmp_path / "scene.tif", 1024, 0.5, SENTINELS)
    info = sources.probe(path)
    assert info.overviews == (2, 4, 8, 16)
    pixels, valid = reading.read_onto(info, [1, 2, 3], sources.run_grid(info, resolution_m).geobox)
    assert valid.all()
    assert np.unique(pixels).tolist() == [SENTINELS[overview]]


def test_an_overview_is_also_taken_onto_another_crs(tmp_path):
    path = sentinel_scene(tmp_path / "scene.tif", 1024, 0.5, SENTINELS)
    box = in_crs(geobox((200, 200), 4.0), "EPSG:3413", 4.0)
    pixels, valid = reading.read_onto(path, [1, 2, 3], box)
    assert 0.2 < valid.mean() < 0.8
    np.testing.assert_allclose(pixels[:, valid], 80, atol=1e-3)


def test_a_mosaic_passes_on_the_overviews_of_its_sources(tmp_path):
    parts, bands = "ab", []
    for name in parts:
        sentinel_scene(tmp_path / f"{name}.tif", 512, 0.5, SENTINELS)
    for band, color in enumerate(("Red", "Green", "Blue"), 1):
        simple = [
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="512" ySize="512"/>'
            f'<DstRect xOff="{512 * i}" yOff="0" xSize="512" ySize="512"/></SimpleSource>'
            for i, name in enumerate(parts)
        ]
        interp = f"<ColorInterp>{color}</ColorInterp>"
        bands.append(
            f'<VRTRasterBand dataType="Byte" band="{band}">{interp}{"".join(simple)}</VRTRasterBand>'
        )
    (tmp_path / "all.vrt").write_text(
        '<VRTDataset rasterXSize="1024" rasterYSize="512"><SRS>EPSG:32608</SRS>'
        "<GeoTransform>500000,0.5,0,7700000,0,-0.5</GeoTransform>" + "".join(bands) + "</VRTDataset>"
    )
    with rasterio.Env(VRT_VIRTUAL_OVERVIEWS=True), rasterio.open(tmp_path / "all.vrt", "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    info = sources.probe(tmp_path / "all.vrt")
    pixels, valid = reading.read_onto(info, [1, 2, 3], sources.run_grid(info, 4.0).geobox)
    assert valid.all()
    assert np.unique(pixels).tolist() == [80]


def test_uneven_overviews_keep_their_place(tmp_path):
    """1001 pixels give overviews of 501, 251 and 126: each is a little finer than its factor says."""
    ramp = np.broadcast_to(np.arange(1001) * 50 + 500, (1, 1001, 1001)).astype(np.uint16)
    path = write(tmp_path / "ramp.tif", ramp, 0.5)
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    info = sources.probe(path)
    grid = sources.run_grid(info, 4.0).geobox
    pixels, valid = reading.read_onto(info, [1], grid)
    assert tuple(grid.shape) == (126, 126)
    assert valid.all()
    wanted = (np.arange(125) * 8 + 3.5) * 50 + 500
    # Half a pixel of the scene; shrinking by exactly 8 would be wrong by seven at the far end.
    np.testing.assert_allclose(pixels[0, 60, :125], wanted, atol=25)


@pytest.mark.parametrize("resolution_m", [4.0, 3.3, 2.0, 0.7])
def test_without_overviews_the_mean_of_all_pixels_is_read(tmp_path, resolution_m):
    """Against GDAL's own averaging in one go."""
    scene = rgb((400, 560))
    path = write(tmp_path / "scene.tif", scene, 0.5, photometric="RGB")
    info = sources.probe(path)
    grid = sources.run_grid(info, resolution_m).geobox
    pixels, valid = reading.read_onto(info, [1, 2, 3], grid)
    wanted = np.zeros_like(pixels)
    rasterio.warp.reproject(
        scene.astype(np.float32),
        wanted,
        src_transform=info.geobox.affine,
        src_crs=UTM,
        dst_transform=grid.affine,
        dst_crs=UTM,
        resampling=Resampling.average,
    )
    assert valid.all()
    if resolution_m == 3.3:
        # Three by three pixels are averaged before GDAL averages again, which smooths noise slightly.
        assert np.abs(pixels - wanted).mean() < 0.35 * wanted.std()
    else:
        np.testing.assert_allclose(pixels, wanted, atol=1e-3)


def test_reading_in_strips_changes_nothing(tmp_path, monkeypatch):
    path = write(tmp_path / "scene.tif", rgb((300, 300), low=0, high=3), 0.5, photometric="RGB")
    grid = sources.run_grid(sources.probe(path), 2.0).geobox
    whole = reading.read_onto(path, [1, 2, 3], grid)
    monkeypatch.setattr(reading, "_WARP_PX", 500)
    monkeypatch.setattr(reading, "_STRIP_PX", 5000)
    for got, wanted in zip(reading.read_onto(path, [1, 2, 3], grid), whole, strict=True):
        np.testing.assert_array_equal(got, wanted)


@few
@given(st.data())
def test_means_are_of_valid_pixels_only(tmp_path, data):
    """Whatever lies under nodata never shows: against means taken by hand."""
    factor = data.draw(st.integers(1, 5))
    rows, cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scene = rng.integers(1, 255, (3, rows * factor, cols * factor)).astype(np.uint8)
    holes = rng.random(scene.shape[1:]) < data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    how = data.draw(st.sampled_from(["nodata", "mask", "alpha", "zeros"]))
    path = _with_holes(tmp_path / "scene.tif", scene, holes, how)
    pixels, valid = reading.read_onto(path, [1, 2, 3], geobox((rows, cols), factor))

    def blocks(a):
        return a.reshape(*a.shape[:-2], rows, factor, cols, factor).sum((-3, -1))

    count = blocks((~holes).astype(float))
    wanted = blocks(np.where(holes, 0.0, scene)) / np.maximum(count, 1)
    np.testing.assert_array_equal(valid, count >= factor**2 / 2)
    np.testing.assert_allclose(pixels, np.where(valid, wanted, 0), atol=1e-3)


def _with_holes(path, scene, holes, how):
    if how == "nodata":
        return write(path, np.where(holes, 255, scene).astype(np.uint8), nodata=255, photometric="RGB")
    if how == "mask":
        return write(path, scene, mask=~holes, photometric="RGB")
    if how == "alpha":
        alpha = np.where(holes, 0, 255).astype(np.uint8)
        return write(path, np.concatenate([scene, alpha[None]]), photometric="RGB", alpha="YES")
    return write(path, np.where(holes, 0, scene).astype(np.uint8), photometric="RGB")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_zeros_in_one_band_are_data(tmp_path, dtype):
    scene = rgb((4, 4)).astype(dtype)
    scene[0, 1, 1] = 0
    scene[:, 2, 2] = 0
    for profile in ({}, {"nodata": 0}):
        path = write(tmp_path / "scene.tif", scene, photometric="RGB", **profile)
        pixels, valid = reading.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
        assert valid[1, 1]
        assert pixels[0, 1, 1] == 0
        assert np.argwhere(~valid).tolist() == [[2, 2]]


@pytest.mark.parametrize(("dtype", "opaque"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
@pytest.mark.parametrize("colors", [3, 4])
def test_what_is_transparent_is_no_data_whatever_the_bands(tmp_path, dtype, opaque, colors):
    """GDAL itself takes alpha for a mask only in rasters of 2 or 4 bands of 8 or 16 bit."""
    scene = np.full((colors + 1, 4, 4), 7, dtype)
    scene[-1] = opaque
    scene[-1, 2, 2] = 0
    path = write(tmp_path / "scene.tif", scene, photometric="RGB", alpha="YES")
    with rasterio.open(path, "r+") as dst:
        names = ["red", "green", "blue", "undefined"][:colors]
        dst.colorinterp = [*(ColorInterp[name] for name in names), ColorInterp.alpha]
    _, valid = reading.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
    assert np.argwhere(~valid).tolist() == [[2, 2]]
    assert "alpha" in sources.probe(path).notes[0]
    with rasterio.open(path, "r+") as dst:
        dst.nodata = 9
    assert reading.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))[1].all()


@pytest.mark.parametrize(("nodata", "lost"), [(-9999, [[1, 1], [2, 2]]), (255, [[2, 2]])])
def test_negative_nodata_in_one_band_is_no_data(tmp_path, nodata, lost):
    scene = rgb((4, 4)).astype(np.int16)
    scene[0, 1, 1] = nodata
    scene[:, 2, 2] = nodata
    path = write(tmp_path / "scene.tif", scene, photometric="RGB", nodata=nodata)
    _, valid = reading.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
    assert np.argwhere(~valid).tolist() == lost
    where = "in any band" if nodata < 0 else "in every band"
    assert where in sources.probe(path).notes[0]


def test_zeros_of_an_elevation_model_are_data(tmp_path):
    path = write(tmp_path / "dem.tif", np.zeros((6, 6), np.int16))
    assert reading.read_onto(path, [1], geobox((6, 6), 1.0))[1].all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -9999.0, -3.4028234663852886e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_no_numbers_or_declared_nodata_are_not_data(tmp_path, value, dtype):
    dem = np.full((6, 6), 10.0, dtype)
    dem[2, 3] = value
    nodata = {"nodata": value} if np.isfinite(value) else {}
    path = write(tmp_path / "dem.tif", dem, **nodata)
    pixels, valid = reading.read_onto(path, [1], geobox((6, 6), 1.0))
    assert np.argwhere(~valid).tolist() == [[2, 3]]
    assert set(np.unique(pixels)) == {0.0, 10.0}


@few
@given(seed=st.integers(0, 2**32), resolution_m=st.floats(0.3, 3.0), shift=st.floats(0, 1))
def test_nothing_is_interpolated_across_nodata(tmp_path, seed, resolution_m, shift):
    """Elevations of 100..200 beside nodata of -9999: every valid pixel stays within 100..200."""
    rng = np.random.default_rng(seed)
    dem = rng.uniform(100, 200, (20, 20)).astype(np.float32)
    dem[rng.random(dem.shape) < 0.4] = -9999
    path = write(tmp_path / "dem.tif", dem, nodata=-9999)
    box = geobox((12, 12), resolution_m, corner=(CORNER[0] + shift, CORNER[1] - shift))
    pixels, valid = reading.read_onto(path, [1], box)
    assert ((pixels[0][valid] > 99.99) & (pixels[0][valid] < 200.01)).all()
    assert (pixels[0][~valid] == 0).all()


def test_fill_bled_into_overviews_is_widened_away(tmp_path):
    """Overviews built without nodata mix fill into the pixels beside it; none of those may remain."""
    scene = np.full((3, 640, 640), 200, np.uint8)
    scene[:, :, :203] = 0
    path = write(tmp_path / "scene.tif", scene, 0.5, photometric="RGB", tiled=True)
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    with rasterio.open(path, overview_level=2) as overview:
        assert len(np.unique(overview.read(1))) == 3
    for resolution_m in (4.0, 5.0):
        pixels, valid = reading.read_onto(path, [1, 2, 3], geobox((80, 80), resolution_m))
        inside = np.zeros(valid.shape, bool)
        inside[: int(320 // resolution_m), : int(320 // resolution_m)] = True
        assert np.unique(pixels[:, valid & inside]).tolist() == [200]
        lost = (~valid & inside).sum(axis=1)[0] * resolution_m - 101.5
        assert 0 <= lost <= 2 * resolution_m


@pytest.mark.parametrize("within", [True, False])
def test_overviews_without_the_mask_are_not_read(tmp_path, within):
    """GDAL calls all of such an overview valid; gdaladdo makes some beside a mask in a file of its own."""
    mask = np.ones((640, 640), bool)
    mask[:, :320] = False
    path = write(tmp_path / "scene.tif", rgb((640, 640)), photometric="RGB", tiled=True)
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=within), rasterio.open(path, "r+") as dst:
        dst.write_mask(mask)
    info = sources.probe(path)
    assert info.overviews == ()
    assert "without the mask" in info.notes[-1]
    assert np.array_equal(reading.read_onto(info, [1, 2, 3], geobox((160, 160)))[1], mask[::4, ::4])
    masked = write(tmp_path / "masked.tif", rgb((640, 640)), mask=mask, photometric="RGB", tiled=True)
    with rasterio.open(masked, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    info = sources.probe(masked)
    assert info.overviews == (2, 4, 8)
    assert np.array_equal(reading.read_onto(info, [1, 2, 3], geobox((160, 160)))[1], mask[::4, ::4])


def test_a_mask_of_a_real_scene_is_honoured():
    path = shared("odd_rasters/rasterio_cogeo.tif")
    info = sources.probe(path)
    with rasterio.open(path) as src:
        share = (src.dataset_mask() > 0).mean()
    grid = sources.run_grid(info, 4.0).geobox
    _, valid = reading.read_onto(info, [1, 2, 3], grid)
    area_m2 = valid.sum() * 16
    wanted_m2 = share * info.geobox.shape[0] * info.geobox.shape[1] * info.ground_sample_distance_m**2
    assert area_m2 == pytest.approx(wanted_m2, rel=0.02)


@pytest.mark.parametrize(
    ("scene", "resolution_m"),
    [
        ("rmnp/rmnp-rgb.tif", 150.0),
        ("kootenay/kootenayOrtho_rgb.tif", 2.0),
        ("everest/LE71400412000304SGS00_RGB.tif", 30.0),
        ("neon/SJER_052.tif", 1.0),
    ],
)
def test_real_scenes_keep_their_valid_area_and_mean(scene, resolution_m):
    info = sources.probe(shared(f"scenes/{scene}"))
    patch = reading.read_native(info, [1, 2, 3])
    grid = sources.run_grid(info, resolution_m).geobox
    pixels, valid = reading.read_onto(info, [1, 2, 3], grid)
    native_m2 = patch.valid.sum() * info.ground_sample_distance_m**2
    assert valid.sum() * resolution_m**2 == pytest.approx(native_m2, rel=0.02)
    for plane, native in zip(pixels, patch.pixels, strict=True):
        assert plane[valid].mean() == pytest.approx(native[patch.valid].mean(), abs=1.0)


def test_blocks_of_the_grid_equal_the_whole(tmp_path):
    scene = rgb((700, 900), low=0, high=4)
    path = write(tmp_path / "scene.tif", scene, 0.5, photometric="RGB")
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2], Resampling.average)
    info = sources.probe(path)
    for grid in (sources.run_grid(info, 1.7).geobox, in_crs(geobox((500, 500), 1.2), "EPSG:3413", 1.2)):
        level, resampling = levels.level_for(info, grid), reading.natural_resampling(info, grid)
        whole = Window(0, 0, *grid.shape)
        options = {"resampling": resampling, "level": level}
        pixels, valid = reading.read_window(info, [1, 2, 3], grid, whole, **options)
        for _ in range(12):
            rows, cols = (sorted(RNG.choice(size + 1, 2, replace=False)) for size in grid.shape)
            window = Window(int(rows[0]), int(cols[0]), int(rows[1]), int(cols[1]))
            part, part_valid = reading.read_window(info, [1, 2, 3], grid, window, **options)
            down, across = window.slices()
            np.testing.assert_array_equal(part_valid, valid[down, across])
            np.testing.assert_allclose(part, pixels[:, down, across], atol=1e-4)


def test_a_grid_beside_the_raster_gets_nothing(tmp_path):
    path = write(tmp_path / "scene.tif", rgb((8, 8)), photometric="RGB")
    for crs in (UTM, "EPSG:3413"):
        pixels, valid = reading.read_onto(path, [1, 2, 3], geobox((5, 7), crs=crs, corner=(0.0, 0.0)))
        assert pixels.shape == (3, 5, 7)
        assert not valid.any()
        assert not pixels.any()


def test_wrong_band_numbers_are_refused(tmp_path):
    path = write(tmp_path / "scene.tif", rgb((8, 8)), photometric="RGB")
    for bands in ([0], [4], []):
        with pytest.raises(BandError, match=r"1\.\.3"):
            reading.read_onto(path, bands, geobox((4, 4)))


def test_level_grids_cover_the_raster(tmp_path):
    info = sources.probe(write(tmp_path / "scene.tif", rgb((101, 57)), photometric="RGB"))
    for boxcar in (1, 2, 7, 200):
        grid = levels.level_geobox(info, Level(None, boxcar))
        assert grid.shape[0] * boxcar >= 101
        assert (grid.shape[1] - 1) * boxcar < 57
        patch = reading.read_level(info, [1, 2, 3], Level(None, boxcar), Window(0, 0, *grid.shape))
        assert patch.valid.all()
