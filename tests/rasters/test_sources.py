from __future__ import annotations

import numpy as np
import pytest
import rasterio
from odc.geo.crs import CRS
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from rtsmap.errors import BandError, InputError
from rtsmap.rasters import reading, sources
from tests.rasters.files import rgb, write
from tests.shared_data import shared

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


@pytest.mark.parametrize(("name", "reason"), ODD.items())
def test_odd_files_are_read_or_refused_with_a_sentence(name, reason):
    path = shared(f"odd_rasters/{name}")
    if reason is None:
        info = sources.probe(path)
        grid = sources.run_grid(info, max(3 * info.ground_sample_distance_m, 4.0)).geobox
        pixels, valid = reading.read_onto(info, [1], grid)
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
    lon, lat = info.crs.transformer_to_crs(CRS("EPSG:4326"))(*info.geobox.extent.centroid.coords[0])
    from pyproj import Proj

    factors = Proj(scale).get_factors(lon, lat)
    wanted = 4.0 / np.sqrt(factors.meridional_scale * factors.parallel_scale)
    assert info.ground_sample_distance_m == pytest.approx(wanted, rel=1e-3)


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


@pytest.mark.parametrize(("resolution_m", "wanted_m"), [(0.5, 4.0), (4.0, 4.0), (11.0, 4.0), (30.0, 30.0)])
def test_only_moderately_coarse_scenes_are_enlarged(tmp_path, resolution_m, wanted_m):
    path = write(tmp_path / "s.tif", np.full((3, 64, 64), 90, np.uint8), resolution_m, photometric="RGB")
    grid = sources.run_grid(sources.probe(path), 4.0)
    assert abs(grid.geobox.resolution.x) == pytest.approx(wanted_m, rel=0.01)
    assert (grid.note is not None) == (wanted_m != 4.0)


def test_an_elevation_model_in_the_place_of_a_scene_is_told_where_it_belongs(tmp_path):
    told = {}
    for dtype in ("float32", "int16", "uint16", "uint8"):
        info = sources.probe(write(tmp_path / f"{dtype}.tif", np.ones((1, 8, 8), dtype)))
        with pytest.raises(BandError, match="only band is: unnamed") as caught:
            sources.optical_bands(info, ("red", "green", "blue"))
        told[dtype] = "give it with --dem" in str(caught.value)
    assert told == {"float32": True, "int16": True, "uint16": False, "uint8": False}


def test_a_folder_is_told_from_a_damaged_file(tmp_path):
    with pytest.raises(InputError, match=r"is a folder, .*name its files, .*\*\.tif"):
        sources.probe(tmp_path)


def test_a_picture_without_a_place_needs_more_than_a_crs(tmp_path):
    Image.fromarray(np.ones((8, 8, 3), np.uint8)).save(tmp_path / "photo.jpg")
    with pytest.raises(InputError, match=r"neither a CRS nor coordinates.*-a_ullr"):
        sources.probe(tmp_path / "photo.jpg")
