"""Bands that a scene does not hold: derived from those it has, or from rasters of their own."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from rtsmap.errors import BandError, GridMismatchError
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.bands import OPTICAL_RGB, SPECTRAL, InputSpec, Modality
from rtsmap.rasters.chips import ChipReader
from rtsmap.rasters.spectral import parse_band_files
from rtsmap.rasters.tiling import Window
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.vectors.geopackage import read_layers
from tests.rasters.files import CORNER, geobox, in_crs, write
from tests.runs.blob_scenes import engine

SHAPE = (60, 80)
ALL = Window(0, 0, *SHAPE)
GRID = geobox(SHAPE)
INDICES = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[1:])))


def four_bands(path, dtype=np.uint16):
    """Blue, green, red, near infrared; without light in one corner, without data in another."""
    planes = np.random.default_rng(3).integers(20, 200, (4, *SHAPE)).astype(dtype)
    planes[1:, :5, :5] = 0
    planes[:, -5:, -5:] = 0
    write(path, planes, 4.0, nodata=0)
    return path, planes.astype(float)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_indices_are_derived_from_values_as_delivered(tmp_path, dtype):
    path, (_, green, red, nir) = four_bands(tmp_path / "s.tif", dtype)
    reader = ChipReader(path, None, INDICES, GRID, {"blue": 1, "green": 2, "red": 3, "nir": 4})
    layer = reader.read_block(ALL)["spectral"]
    known = (red + nir > 0) & (green + nir > 0)
    with np.errstate(invalid="ignore"):
        wanted = [(nir - red) / (nir + red), (green - nir) / (green + nir)]
    assert (layer.valid == known).all()
    for plane, values in zip(layer.pixels, wanted, strict=True):
        assert plane[known] == pytest.approx(values[known], abs=1e-6)
        assert not plane[~known].any()
    assert reader.bands == {"red": 3, "green": 2, "blue": 1, "nir": 4}
    assert len(reader.read_block(ALL)["optical"].pixels) == 3


def test_indices_are_derived_from_what_the_scene_says_that_its_numbers_stand_for(tmp_path):
    path, (_, green, red, nir) = four_bands(tmp_path / "s.tif")
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4,) * 4, (0.0, -4e-3, -3e-3, 2e-3)
    reader = ChipReader(path, None, INDICES, GRID, {"blue": 1, "green": 2, "red": 3, "nir": 4})
    layer = reader.read_block(ALL)["spectral"]
    known = slice(5, -5)
    green, red, nir = (
        (plane[known] * 1e-4 + offset).clip(0)
        for plane, offset in zip((green, red, nir), (-4e-3, -3e-3, 2e-3), strict=True)
    )
    assert layer.valid[known].all()
    assert layer.pixels[0][known] == pytest.approx((nir - red) / (nir + red), abs=1e-5)
    assert layer.pixels[1][known] == pytest.approx((green - nir) / (green + nir), abs=1e-5)


def test_without_near_infrared_there_is_no_index_and_the_message_says_so(tmp_path):
    path = write(tmp_path / "rgb.tif", np.full((3, *SHAPE), 90, np.uint8), 4.0, photometric="RGB")
    with pytest.raises(BandError, match="no band is named nir"):
        ChipReader(path, None, INDICES, GRID)


def test_a_raster_of_its_own_gives_the_band_with_its_validity_and_scale(tmp_path):
    scene = write(tmp_path / "rgb.tif", np.full((3, *SHAPE), 90, np.uint8), 4.0, photometric="RGB")
    values = np.random.default_rng(1).integers(-3000, 9000, SHAPE).astype(np.int16)
    values[:, :7] = -32768
    ndvi = write(tmp_path / "ndvi.tif", values, 4.0, nodata=-32768)
    spec = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[1:2])))
    with pytest.raises(BandError, match=r"-scale 0\.0001"):
        ChipReader(scene, None, spec, GRID, band_files={"ndvi": ndvi})
    with rasterio.open(ndvi, "r+") as dst:
        dst.scales = (0.0001,)
    layer = ChipReader(scene, None, spec, GRID, band_files={"ndvi": ndvi}).read_block(ALL)["spectral"]
    assert (layer.valid == (values != -32768)).all()
    assert layer.pixels[0][layer.valid] == pytest.approx(values[layer.valid] * 1e-4, abs=1e-6)
    # another grid and CRS: a plane is a plane
    other = in_crs(geobox((100, 120), corner=(CORNER[0] - 80, CORNER[1] + 80)), "EPSG:3413", 7.0)
    smooth = np.full(other.shape, 0.25, np.float32)
    far = write(tmp_path / "far.tif", smooth, crs="EPSG:3413", transform=other.affine)
    layer = ChipReader(scene, None, spec, GRID, band_files={"ndvi": far}).read_block(ALL)["spectral"]
    assert layer.valid.all()
    assert layer.pixels == pytest.approx(0.25)


def test_zeros_of_digital_numbers_in_a_raster_of_its_own_are_fill_unless_it_declares_another(tmp_path):
    scene = write(tmp_path / "rgb.tif", np.full((3, *SHAPE), 90, np.uint8), 4.0, photometric="RGB")
    spec = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[:2])))
    numbers = np.random.default_rng(2).integers(1, 200, SHAPE).astype(np.uint8)
    numbers[:, :9] = 0
    index = np.zeros(SHAPE, np.float32)
    for nodata, wanted in ((None, numbers > 0), (255, numbers < 255)):
        nir = write(tmp_path / "nir.tif", numbers, 4.0, nodata=nodata)
        files = {"nir": nir, "ndvi": write(tmp_path / "ndvi.tif", index, 4.0)}
        reader = ChipReader(scene, None, spec, GRID, band_files=files)
        assert (reader.read_block(ALL)["spectral"].valid == wanted).all()
        assert any("pixels of 0 are taken as fill" in note for note in reader.notes) == (nodata is None)


def test_a_raster_around_the_earth_is_not_read_across_its_edge(tmp_path):
    grid = geobox(SHAPE, crs="EPSG:32660", corner=(808_000.0, 7_904_000.0))
    scene, around = tmp_path / "rgb.tif", Affine(0.05, 0, -180, 0, -0.05, 72)
    write(scene, np.full((3, *SHAPE), 90, np.uint8), crs=grid.crs.to_wkt(), transform=grid.affine)
    ndvi = write(tmp_path / "a.tif", np.zeros((40, 7200), np.float32), crs="EPSG:4326", transform=around)
    spec = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[1:2])))
    bands = {"red": 1, "green": 2, "blue": 3}
    east, _ = Transformer.from_crs(4326, grid.crs.proj, always_xy=True).transform(180, 71.2)
    assert ChipReader(scene, None, spec, grid, bands, band_files={"ndvi": ndvi})
    across = geobox(SHAPE, crs=grid.crs, corner=(east - 160, 7_904_000.0))
    with pytest.raises(GridMismatchError, match="both sides of its edge"):
        ChipReader(scene, None, spec, across, bands, band_files={"ndvi": ndvi})


@pytest.mark.parametrize(
    ("given", "says"),
    [(["slope=a.tif"], "cannot be given"), (["ndvi"], "NAME=FILE"), (["ndvi=a", "ndvi=b"], "given twice")],
)
def test_band_files_that_cannot_be_are_refused(given, says):
    with pytest.raises(BandError, match=says):
        parse_band_files(given)
    assert parse_band_files(["NDVI=a=b.tif"]) == {"ndvi": "a=b.tif"}


def test_a_map_by_an_index_finds_what_the_index_shows(tmp_path):
    scene = write(tmp_path / "rgb.tif", np.full((3, *SHAPE), 90, np.uint8), 4.0, photometric="RGB")
    index = np.full(SHAPE, 0.6, np.float32)
    index[20:40, 30:50] = 0.05
    ndvi = write(tmp_path / "ndvi.tif", index, 4.0)
    spec = InputSpec(4.0, (OPTICAL_RGB, Modality("spectral", SPECTRAL.bands[1:2])))
    finder = engine(detector=ThresholdDetector("spectral", 0, -1.0, 0.2), spec=spec)
    options = PredictOptions(simplify_m=0, min_area_m2=0)
    out = tmp_path / "m.gpkg"
    predict(scene, out=out, model=finder, options=options, band_files={"ndvi": ndvi})
    found = read_layers(out)
    assert found.footprints.geometry.area.tolist() == [20 * 20 * 16.0]
    assert "band_ndvi" in found.run_record["plan"]["inputs"]
