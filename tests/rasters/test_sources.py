from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from rtsmap.errors import BandError, GridMismatchError, InputError, RtsmapError
from rtsmap.rasters import sources
from rtsmap.rasters.sources import Level
from rtsmap.rasters.tiling import Window
from tests.rasters.files import CORNER, UTM, geobox, in_crs, sentinel_scene, served, write
from tests.shared_data import shared

RNG = np.random.default_rng(5)
SENTINELS = {1: 250, 2: 20, 4: 40, 8: 80, 16: 160}
ODD = {
    "geotiff-test-data_GeogToWGS84GeoKey5.tif": None,
    "geotiff-test-data_utm.tif": None,
    "odc-geo_au-3577.tif": None,
    "odc-geo_au-gcp.tif": "6297 km",
    "rasterio_RGB.byte.gcp.vrt": "ground control points",
    "rasterio_RGB.byte.tif": None,
    "rasterio_RGBA.uint16.tif": None,
    "rasterio_all-nodata.tif": None,
    "rasterio_alpha.tif": None,
    "rasterio_cogeo.tif": None,
    "rasterio_float_nan.tif": "no CRS",
    "rasterio_float_raster_with_nodata.tif": None,
    "rasterio_rgb1.tif": None,
    "rasterio_rgb1_fake_nir_epsg3857.tif": None,
    "rasterio_test_esri_wkt.tif": None,
    "rasterio_world.rgb.tif": "40008 km",
    "rio-tiler_201404_13SED190110_201404_0x1500m_CL_1_mask.tif": None,
    "rio-tiler_cog_dateline.tif": None,
    "rio-tiler_cog_nodata_nan.tif": None,
    "rio-tiler_cog_scale.tif": None,
    "rio-tiler_nocog.tif": None,
}

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rgb(shape, low=1, high=255):
    return RNG.integers(low, high, (3, *shape)).astype(np.uint8)


# --- what a file is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reason"), ODD.items())
def test_odd_files_are_read_or_refused_with_a_sentence(name, reason):
    path = shared(f"odd_rasters/{name}")
    if reason is None:
        info = sources.probe(path)
        grid = sources.run_grid(info, max(3 * info.ground_sample_distance_m, 4.0)).geobox
        pixels, valid = sources.read_onto(info, [1], grid)
        assert pixels.shape == (1, *grid.shape)
        assert not pixels[:, ~valid].any()
        assert np.isfinite(pixels).all()
    else:
        with pytest.raises(InputError, match=reason) as caught:
            sources.run_grid(sources.probe(path), 4.0)
        assert path.name in str(caught.value)


def test_all_odd_files_are_known():
    assert {path.name for path in shared("odd_rasters").iterdir()} == set(ODD)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"crs": None}, "no CRS"),
        ({"crs": "+proj=utm +zone=8 +a=3396190 +b=3376200 +units=m"}, "3,396 km radius, not of Earth"),
        ({"crs": 'LOCAL_CS["somewhere",UNIT["metre",1]]'}, "no known place"),
    ],
)
def test_georeferencing_that_cannot_be_used_is_refused(tmp_path, profile, words):
    path = write(tmp_path / "scene.tif", rgb((8, 8)), **profile)
    with pytest.raises(InputError, match=words):
        sources.probe(path)


def test_a_crs_alone_is_no_place(tmp_path):
    path = write(tmp_path / "scene.tif", rgb((8, 8)))
    with rasterio.open(path) as src:
        profile = {key: value for key, value in src.profile.items() if key != "transform"}
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(tmp_path / "nowhere.tif", "w", **profile) as dst,
    ):
        dst.write(rgb((8, 8)))
    with pytest.raises(InputError, match="where its pixels lie"):
        sources.probe(tmp_path / "nowhere.tif")


def test_files_that_are_no_rasters_are_refused(tmp_path):
    (tmp_path / "notes.tif").write_text("not a picture")
    with pytest.raises(InputError, match="cannot open it as a raster"):
        sources.probe(tmp_path / "notes.tif")
    with pytest.raises(InputError, match="no such file"):
        sources.probe(tmp_path / "absent.tif")


def test_complex_pixels_are_refused(tmp_path):
    path = write(tmp_path / "radar.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(InputError, match="complex"):
        sources.probe(path)


def test_ground_sample_distance_is_on_the_ground_not_in_the_crs():
    info = sources.probe(shared("odd_rasters/rasterio_alpha.tif"))
    assert info.geobox.resolution.x == pytest.approx(4.0, abs=1e-3)
    scale = info.crs.proj
    lon, lat = info.crs.transformer_to_crs(sources.CRS("EPSG:4326"))(*info.geobox.extent.centroid.coords[0])
    from pyproj import Proj

    factors = Proj(scale).get_factors(lon, lat)
    wanted = 4.0 / np.sqrt(factors.meridional_scale * factors.parallel_scale)
    assert info.ground_sample_distance_m == pytest.approx(wanted, rel=1e-3)


# --- bands ---------------------------------------------------------------------------------------------


def test_bands_are_found_by_description_before_order(tmp_path):
    path = write(tmp_path / "bgrn.tif", np.zeros((4, 8, 8), np.uint8))
    with rasterio.open(path, "r+") as dst:
        dst.descriptions = ("Blue", "green", "RED ", "nir")
    info = sources.probe(path)
    assert sources.optical_bands(info, ["red", "green", "blue"]) == {"red": 3, "green": 2, "blue": 1}
    assert sources.optical_bands(info, ["nir"]) == {"nir": 4}
    assert sources.optical_note(info) is None


def test_bands_are_found_by_colour(tmp_path):
    path = write(tmp_path / "bgr.tif", rgb((8, 8)))
    with rasterio.open(path, "r+") as dst:
        dst.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert sources.optical_bands(sources.probe(path), ["red", "blue"]) == {"red": 3, "blue": 1}


def test_three_nameless_bands_are_taken_as_rgb_and_it_is_said(tmp_path):
    info = sources.probe(write(tmp_path / "three.tif", rgb((8, 8)), photometric="MINISBLACK"))
    assert sources.optical_bands(info, ["red", "green", "blue"]) == {"red": 1, "green": 2, "blue": 3}
    assert "taken as red, green, blue" in sources.optical_note(info)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8, 8), np.uint8), "--bands red=3,green=2,blue=1 where"),
        (np.zeros((4, 8, 8), np.uint16), "--bands red=3,green=2,blue=1 where"),
        (np.zeros((8, 8, 8), np.uint16), "--bands red=5,green=3,blue=2 where"),
        (np.zeros((6, 8, 8), np.int16), "--bands red=R"),
        (np.zeros((1, 8, 8), np.uint16), "panchromatic.*wanted colour imagery"),
        (np.zeros((2, 8, 8), np.uint8), "colour imagery"),
    ],
)
def test_uncertain_bands_are_refused_with_advice(tmp_path, array, words):
    info = sources.probe(write(tmp_path / "x.tif", array, photometric="MINISBLACK"))
    with pytest.raises(BandError, match=words):
        sources.optical_bands(info, ["red", "green", "blue"])


def test_given_bands_win_and_are_checked(tmp_path):
    info = sources.probe(write(tmp_path / "x.tif", np.zeros((4, 8, 8), np.uint8), photometric="MINISBLACK"))
    given_bands = {"red": 4, "green": 2, "blue": 1}
    assert sources.optical_bands(info, ["red", "blue"], given_bands) == {"red": 4, "blue": 1}
    with pytest.raises(BandError, match=r"1\.\.4"):
        sources.optical_bands(info, ["red"], {"red": 5})


# --- overviews -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution_m", "overview"),
    [(0.5, 1), (0.9, 1), (1.0, 2), (1.9, 2), (2.0, 4), (3.9, 4), (4.0, 8), (6.0, 8), (8.0, 16), (20.0, 16)],
)
def test_reading_takes_the_coarsest_overview_that_is_fine_enough(tmp_path, resolution_m, overview):
    path = sentinel_scene(tmp_path / "scene.tif", 1024, 0.5, SENTINELS)
    info = sources.probe(path)
    assert info.overviews == (2, 4, 8, 16)
    pixels, valid = sources.read_onto(info, [1, 2, 3], sources.run_grid(info, resolution_m).geobox)
    assert valid.all()
    assert np.unique(pixels).tolist() == [SENTINELS[overview]]


def test_an_overview_is_also_taken_onto_another_crs(tmp_path):
    path = sentinel_scene(tmp_path / "scene.tif", 1024, 0.5, SENTINELS)
    box = in_crs(geobox((200, 200), 4.0), "EPSG:3413", 4.0)
    pixels, valid = sources.read_onto(path, [1, 2, 3], box)
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
    pixels, valid = sources.read_onto(info, [1, 2, 3], sources.run_grid(info, 4.0).geobox)
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
    pixels, valid = sources.read_onto(info, [1], grid)
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
    pixels, valid = sources.read_onto(info, [1, 2, 3], grid)
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
    whole = sources.read_onto(path, [1, 2, 3], grid)
    monkeypatch.setattr(sources, "_WARP_PX", 500)
    monkeypatch.setattr(sources, "_STRIP_PX", 5000)
    for got, wanted in zip(sources.read_onto(path, [1, 2, 3], grid), whole, strict=True):
        np.testing.assert_array_equal(got, wanted)


# --- validity ------------------------------------------------------------------------------------------


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
    pixels, valid = sources.read_onto(path, [1, 2, 3], geobox((rows, cols), factor))

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
        pixels, valid = sources.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
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
    _, valid = sources.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
    assert np.argwhere(~valid).tolist() == [[2, 2]]
    assert "alpha" in sources.probe(path).notes[0]
    with rasterio.open(path, "r+") as dst:
        dst.nodata = 9
    assert sources.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))[1].all()


@pytest.mark.parametrize(("nodata", "lost"), [(-9999, [[1, 1], [2, 2]]), (255, [[2, 2]])])
def test_negative_nodata_in_one_band_is_no_data(tmp_path, nodata, lost):
    scene = rgb((4, 4)).astype(np.int16)
    scene[0, 1, 1] = nodata
    scene[:, 2, 2] = nodata
    path = write(tmp_path / "scene.tif", scene, photometric="RGB", nodata=nodata)
    _, valid = sources.read_onto(path, [1, 2, 3], geobox((4, 4), 1.0))
    assert np.argwhere(~valid).tolist() == lost
    where = "in any band" if nodata < 0 else "in every band"
    assert where in sources.probe(path).notes[0]


def test_zeros_of_an_elevation_model_are_data(tmp_path):
    path = write(tmp_path / "dem.tif", np.zeros((6, 6), np.int16))
    assert sources.read_onto(path, [1], geobox((6, 6), 1.0))[1].all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -9999.0, -3.4028234663852886e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_that_are_no_numbers_or_declared_nodata_are_not_data(tmp_path, value, dtype):
    dem = np.full((6, 6), 10.0, dtype)
    dem[2, 3] = value
    nodata = {"nodata": value} if np.isfinite(value) else {}
    path = write(tmp_path / "dem.tif", dem, **nodata)
    pixels, valid = sources.read_onto(path, [1], geobox((6, 6), 1.0))
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
    pixels, valid = sources.read_onto(path, [1], box)
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
        pixels, valid = sources.read_onto(path, [1, 2, 3], geobox((80, 80), resolution_m))
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
    assert np.array_equal(sources.read_onto(info, [1, 2, 3], geobox((160, 160)))[1], mask[::4, ::4])
    masked = write(tmp_path / "masked.tif", rgb((640, 640)), mask=mask, photometric="RGB", tiled=True)
    with rasterio.open(masked, "r+") as dst:
        dst.build_overviews([2, 4, 8], Resampling.average)
    info = sources.probe(masked)
    assert info.overviews == (2, 4, 8)
    assert np.array_equal(sources.read_onto(info, [1, 2, 3], geobox((160, 160)))[1], mask[::4, ::4])


def test_a_mask_of_a_real_scene_is_honoured():
    path = shared("odd_rasters/rasterio_cogeo.tif")
    info = sources.probe(path)
    with rasterio.open(path) as src:
        share = (src.dataset_mask() > 0).mean()
    grid = sources.run_grid(info, 4.0).geobox
    _, valid = sources.read_onto(info, [1, 2, 3], grid)
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
    patch = sources.read_native(info, [1, 2, 3])
    grid = sources.run_grid(info, resolution_m).geobox
    pixels, valid = sources.read_onto(info, [1, 2, 3], grid)
    native_m2 = patch.valid.sum() * info.ground_sample_distance_m**2
    assert valid.sum() * resolution_m**2 == pytest.approx(native_m2, rel=0.02)
    for plane, native in zip(pixels, patch.pixels, strict=True):
        assert plane[valid].mean() == pytest.approx(native[patch.valid].mean(), abs=1.0)


# --- grids of reading ----------------------------------------------------------------------------------


def test_blocks_of_the_grid_equal_the_whole(tmp_path):
    scene = rgb((700, 900), low=0, high=4)
    path = write(tmp_path / "scene.tif", scene, 0.5, photometric="RGB")
    with rasterio.open(path, "r+") as dst:
        dst.build_overviews([2], Resampling.average)
    info = sources.probe(path)
    for grid in (sources.run_grid(info, 1.7).geobox, in_crs(geobox((500, 500), 1.2), "EPSG:3413", 1.2)):
        level, resampling = sources.level_for(info, grid), sources.natural_resampling(info, grid)
        whole = Window(0, 0, *grid.shape)
        options = {"resampling": resampling, "level": level}
        pixels, valid = sources.read_window(info, [1, 2, 3], grid, whole, **options)
        for _ in range(12):
            rows, cols = (sorted(RNG.choice(size + 1, 2, replace=False)) for size in grid.shape)
            window = Window(int(rows[0]), int(cols[0]), int(rows[1]), int(cols[1]))
            part, part_valid = sources.read_window(info, [1, 2, 3], grid, window, **options)
            down, across = window.slices()
            np.testing.assert_array_equal(part_valid, valid[down, across])
            np.testing.assert_allclose(part, pixels[:, down, across], atol=1e-4)


def test_a_grid_beside_the_raster_gets_nothing(tmp_path):
    path = write(tmp_path / "scene.tif", rgb((8, 8)), photometric="RGB")
    for crs in (UTM, "EPSG:3413"):
        pixels, valid = sources.read_onto(path, [1, 2, 3], geobox((5, 7), crs=crs, corner=(0.0, 0.0)))
        assert pixels.shape == (3, 5, 7)
        assert not valid.any()
        assert not pixels.any()


def test_wrong_band_numbers_are_refused(tmp_path):
    path = write(tmp_path / "scene.tif", rgb((8, 8)), photometric="RGB")
    for bands in ([0], [4], []):
        with pytest.raises(BandError, match=r"1\.\.3"):
            sources.read_onto(path, bands, geobox((4, 4)))


def test_level_grids_cover_the_raster(tmp_path):
    info = sources.probe(write(tmp_path / "scene.tif", rgb((101, 57)), photometric="RGB"))
    for boxcar in (1, 2, 7, 200):
        grid = sources.level_geobox(info, Level(None, boxcar))
        assert grid.shape[0] * boxcar >= 101
        assert (grid.shape[1] - 1) * boxcar < 57
        patch = sources.read_level(info, [1, 2, 3], Level(None, boxcar), Window(0, 0, *grid.shape))
        assert patch.valid.all()


# --- fingerprints --------------------------------------------------------------------------------------


def test_a_fingerprint_survives_copying_and_notices_change(tmp_path):
    scene = rgb((300, 300))
    path = write(tmp_path / "scene.tif", scene, photometric="RGB")
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "renamed.tif"
    shutil.copy(path, copy)
    assert sources.fingerprint(path) == sources.fingerprint(copy)
    (tmp_path / "scene.tif.aux.xml").write_text("<PAMDataset/>")
    assert sources.fingerprint(path) == sources.fingerprint(copy)
    scene[1, 150, 150] ^= 1
    write(copy, scene, photometric="RGB")
    assert sources.fingerprint(path) != sources.fingerprint(copy)


def test_a_fingerprint_of_a_mosaic_is_of_its_sources(tmp_path):
    def mosaic(folder, value):
        folder.mkdir()
        write(folder / "part.tif", np.full((1, 40, 40), value, np.uint8))
        text = (
            '<VRTDataset rasterXSize="40" rasterYSize="40"><SRS>EPSG:32608</SRS>'
            "<GeoTransform>500000,1,0,7700000,0,-1</GeoTransform>"
            '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
            f'<SourceFilename relativeToVRT="0">{folder}/part.tif</SourceFilename>'
            "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
        )
        (folder / "all.vrt").write_text(text)
        return sources.fingerprint(folder / "all.vrt")

    same, moved, other = mosaic(tmp_path / "a", 7), mosaic(tmp_path / "b", 7), mosaic(tmp_path / "c", 8)
    assert same == moved
    assert same != other


def virtual(path, source):
    path.write_text(
        '<VRTDataset rasterXSize="600" rasterYSize="600"><SRS>EPSG:32608</SRS>'
        "<GeoTransform>500000,1,0,7700000,0,-1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{source}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


@pytest.mark.parametrize("where", ["zip", "virtual in virtual", "virtual over zip", "part", "server"])
def test_a_fingerprint_notices_change_wherever_the_content_lies(tmp_path, where):
    def print_of(folder, scene):
        folder.mkdir()
        path, archive = write(folder / "a.tif", scene, nodata=0), folder / "a.zip"
        with ZipFile(archive, "w", ZIP_DEFLATED) as file:
            # archives hold times, which copies of an archive share
            file.writestr(ZipInfo("a.tif"), path.read_bytes())
        inside = f"/vsizip/{archive}/a.tif"
        if where == "server":
            with served(folder) as address:
                return sources.fingerprint(f"{address}/a.tif")
        if where == "virtual in virtual":
            return sources.fingerprint(virtual(folder / "b.vrt", virtual(folder / "a.vrt", path)))
        if where == "virtual over zip":
            return sources.fingerprint(virtual(folder / "a.vrt", inside))
        return sources.fingerprint({"zip": inside, "part": f"GTIFF_DIR:1:{path}"}[where])

    scene = RNG.integers(1, 255, (1, 600, 600)).astype(np.uint8)
    other = scene.copy()
    other[:, :200] ^= 1
    same, copied = print_of(tmp_path / "a", scene), print_of(tmp_path / "b", scene)
    assert same == copied
    assert same != print_of(tmp_path / "c", other)


def test_parts_of_a_file_have_fingerprints_of_their_own(tmp_path):
    path = tmp_path / "two.gpkg"
    for table in "ab":
        scene = RNG.integers(1, 255, (4, 300, 300)).astype(np.uint8)
        write(path, scene, driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET=table == "b")
    first, second = (sources.fingerprint(f"GPKG:{path}:{table}") for table in "ab")
    assert first["sizes_bytes"] == second["sizes_bytes"]
    assert first["sha256_of_samples"] != second["sha256_of_samples"]


# --- writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_is_written_is_read_again(tmp_path, dtype):
    array = RNG.integers(0, 200, (3, 50, 70)).astype(dtype)
    valid = RNG.random((50, 70)) > 0.2
    box = geobox((50, 70), 2.0)
    path = tmp_path / "out.tif"
    sources.write_geotiff(path, array, box, valid=valid, band_names=("red", "green", "blue"))
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), array)
        np.testing.assert_array_equal(src.dataset_mask() > 0, valid)
        assert src.descriptions == ("red", "green", "blue")
        assert [color.name for color in src.colorinterp] == ["red", "green", "blue"]
        assert (src.transform, src.crs.to_epsg()) == (box.affine, 32608)
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_blocks_written_one_by_one_make_the_same_file(tmp_path):
    array, box = RNG.integers(0, 200, (1, 90, 70)).astype(np.int16), geobox((90, 70), 2.0)
    blocks = [(Window(a, 0, b, 70), array[:, a:b]) for a, b in pairwise([0, 16, 48, 64, 90])]
    sources.write_geotiff_blocks(tmp_path / "a.tif", blocks, box, count=1, dtype="int16", nodata=-9999)
    with rasterio.open(tmp_path / "a.tif") as src:
        np.testing.assert_array_equal(src.read(), array)
        assert src.nodata == -9999


def test_overviews_are_written(tmp_path):
    sources.write_geotiff(tmp_path / "a.tif", rgb((600, 500)), geobox((600, 500)), overviews=True)
    assert sources.probe(tmp_path / "a.tif").overviews == (2, 4)


def test_a_file_that_fails_midway_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "a.tif"
    box = geobox((32, 32))
    sources.write_geotiff(path, np.ones((1, 32, 32), np.uint8), box)

    def blocks():
        yield Window(0, 0, 16, 32), np.full((1, 16, 32), 9, np.uint8)
        raise RtsmapError("disk full")

    with pytest.raises(RtsmapError):
        sources.write_geotiff_blocks(path, blocks(), box, count=1, dtype="uint8")
    with rasterio.open(path) as src:
        assert (src.read() == 1).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="limits of files are those of POSIX")
@pytest.mark.parametrize("kind", ["masked", "with overviews", "cog"])
def test_without_room_a_file_is_there_whole_or_not_at_all(tmp_path, kind):
    program = [sys.executable, "-m", "tests.rasters.full_disk", kind, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused = re.findall(r"(\d+)\.tif: cannot be written", done.stdout)
    assert len(refused) == len(done.stdout.splitlines())
    there = {path.stem for path in tmp_path.iterdir()}
    assert len(refused) >= 15
    assert len(there) >= 2
    assert not there & set(refused)
    wanted = content(tmp_path / "whole.tif")
    for name in there:
        assert content(tmp_path / f"{name}.tif") == wanted


def content(path):
    with rasterio.open(path) as src:
        levels = range(len(src.overviews(1)))
        found = [src.read().tobytes(), src.read_masks(1).tobytes()]
    for level in levels:
        with rasterio.open(path, overview_level=level) as src:
            found.append(src.read().tobytes())
    return found


def test_an_array_must_fit_its_grid(tmp_path):
    with pytest.raises(GridMismatchError):
        sources.write_geotiff(tmp_path / "a.tif", np.ones((3, 4), np.uint8), geobox((4, 3)))


@pytest.mark.parametrize(("resolution_m", "wanted_m"), [(0.5, 4.0), (4.0, 4.0), (11.0, 4.0), (30.0, 30.0)])
def test_only_moderately_coarse_scenes_are_enlarged(tmp_path, resolution_m, wanted_m):
    path = write(tmp_path / "s.tif", np.full((3, 64, 64), 90, np.uint8), resolution_m, photometric="RGB")
    grid = sources.run_grid(sources.probe(path), 4.0)
    assert abs(grid.geobox.resolution.x) == pytest.approx(wanted_m, rel=0.01)
    assert (grid.note is not None) == (wanted_m != 4.0)
