"""The raster of probabilities: what tiles saw, nothing where nothing was seen, a COG, whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.errors import InputError, RunError
from rtsmap.instances.detections import Detection
from rtsmap.rasters.bands import OPTICAL_RGB, InputSpec
from rtsmap.rasters.cog import write_cog
from rtsmap.rasters.tiling import Window
from rtsmap.runs import mapping, probability
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.spreading import merge_run
from rtsmap.vectors.geopackage import read_layers
from rtsmap.vectors.labels import Polygons, write_polygons
from tests.runs.blob_scenes import SLUMP, blob_labels, engine, grid, write_scene

SHAPE = (190, 230)
QUICK = PredictOptions(shard_tiles=2, second_look=False)
OPTICAL = InputSpec(4.0, (OPTICAL_RGB,))


@pytest.fixture
def scene(tmp_path):
    valid = np.ones(SHAPE, bool)
    valid[:70, :100] = valid[150:, 200:] = False
    return write_scene(tmp_path / "scene.tif", blob_labels(SHAPE, 3, 14), valid)


def read(path):
    with rasterio.open(path) as src:
        assert np.isnan(src.nodata)
        return src.read(1)


def mapped(gpkg, geobox):
    """The ground that the map says was mapped, as pixels."""
    coverage = read_layers(gpkg).coverage
    shapes = coverage.geometry[coverage["status"] == "mapped"]
    if not len(shapes):
        return np.zeros(geobox.shape, bool)
    return rasterize(shapes, out_shape=geobox.shape, transform=geobox.affine).astype(bool)


@pytest.mark.parametrize(("chip_px", "overlap_px"), [(64, 16), (48, 24), (512, 0)])
def test_it_is_the_score_on_slumps_0_elsewhere_and_nothing_where_nothing_was_seen(
    scene, tmp_path, monkeypatch, chip_px, overlap_px
):
    monkeypatch.setattr(probability, "blocks_of", lambda shape: blocks(shape, 50))
    predict(
        scene.path,
        out=tmp_path / "m.gpkg",
        model=engine(chip_px, overlap_px, spec=OPTICAL),
        options=QUICK,
        probability=tmp_path / "p.tif",
    )
    values = read(tmp_path / "p.tif")
    seen = ~np.isnan(values)
    np.testing.assert_array_equal(seen, mapped(tmp_path / "m.gpkg", scene.geobox))
    with rasterio.open(scene.path) as src:
        there = src.read_masks(1) > 0
    slump = (scene.labels > 0) & seen & there
    assert slump.sum() > 1000
    # the detector's score is 0.5 at its threshold of red, 1 at its end
    score = 0.5 + (SLUMP + scene.labels[slump] % 40 - 160) / (255 - 160) / 2
    np.testing.assert_allclose(values[slump], score, rtol=1e-5)
    assert (values[(scene.labels == 0) & seen] == 0).all()


def blocks(shape, side):
    for row in range(0, shape[0], side):
        for col in range(0, shape[1], side):
            yield Window(row, col, min(row + side, shape[0]), min(col + side, shape[1]))


class Certain:
    """Says of every chip that its right three quarters are slump; sees nothing on tile 1."""

    def detect(self, chips):
        return [self._one(chip.tile) for chip in chips]

    def _one(self, tile):
        if tile.index == 1:
            return []
        read = tile.read
        window = Window(read.row0, read.col0 + read.width // 4, read.row1, read.col1)
        mask = np.full(window.shape, 204, np.uint8)
        weak = Detection(0.1, window, np.full(window.shape, 255, np.uint8), tile.index)
        return [Detection(0.2 + tile.index / 10, window, mask, tile.index), weak]


def test_tiles_speak_in_proportion_to_the_distance_from_their_edge(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", np.zeros((32, 112), int))
    predict(
        scene.path,
        out=tmp_path / "m.gpkg",
        model=engine(64, 16, Certain(), OPTICAL),
        options=QUICK,
        probability=tmp_path / "p.tif",
    )
    row = read(tmp_path / "p.tif")[5]
    # tile 0 reads columns 0..63, tile 1, which saw nothing, 48..111
    np.testing.assert_array_equal(row[:16], 0)
    np.testing.assert_allclose(row[16:48], 0.2 * 0.8, rtol=1e-6)
    columns = np.arange(48, 64) + 0.5
    own, other = 64 - columns, columns - 48
    np.testing.assert_allclose(row[48:64], 0.16 * own / (own + other), rtol=1e-5)
    np.testing.assert_array_equal(row[64:], 0)


def test_failed_tiles_and_unwanted_ground_are_no_data(scene, tmp_path):
    class Falls(Certain):
        def detect(self, chips):
            if any(chip.tile.index == 8 for chip in chips):
                raise RuntimeError("no")
            return super().detect(chips)

    left, _, right, top = scene.geobox.extent.geom.bounds
    area = shapely.Polygon([(left, top), (right, top), (right, top - 300), (left, top - 700)])
    write_polygons(tmp_path / "aoi.gpkg", Polygons((area,), scene.geobox.crs))
    report = predict(
        scene.path,
        out=tmp_path / "m.gpkg",
        model=engine(64, 16, Falls(), OPTICAL),
        options=QUICK,
        aoi=[tmp_path / "aoi.gpkg"],
        probability=tmp_path / "p.tif",
    )
    assert report.failed
    seen = ~np.isnan(read(tmp_path / "p.tif"))
    np.testing.assert_array_equal(seen, mapped(tmp_path / "m.gpkg", scene.geobox))
    assert 0 < seen.sum() < seen.size / 2


def test_a_run_that_is_there_gives_the_same_whatever_the_thresholds(scene, tmp_path):
    seer = engine(64, 16, spec=OPTICAL)
    predict(
        scene.path,
        out=tmp_path / "m.gpkg",
        model=seer,
        options=QUICK,
        run_dir=tmp_path / "run",
        probability=tmp_path / "p.tif",
    )
    merge_run(
        tmp_path / "run",
        tmp_path / "again.gpkg",
        model=seer,
        changes={"min_score": 0.99, "second_look": False},
        probability=tmp_path / "again.tif",
    )
    assert (tmp_path / "again.tif").read_bytes() == (tmp_path / "p.tif").read_bytes()
    next((tmp_path / "run").glob("shard-*.arrow")).unlink()
    with pytest.raises(RunError, match="not computed"):
        merge_run(tmp_path / "run", tmp_path / "x.gpkg", model=seer, probability=tmp_path / "x.tif")
    assert not (tmp_path / "x.tif").exists()


def test_nothing_is_replaced_or_computed_for_an_output_that_cannot_be(scene, tmp_path):
    (tmp_path / "p.tif").write_bytes(b"mine")
    for name, said in (("p.tif", "--overwrite"), ("p.png", "GeoTIFF"), ("no/p.tif", "no folder")):
        with pytest.raises(InputError, match=said):
            predict(
                scene.path,
                out=tmp_path / "m.gpkg",
                model=engine(64, 16, spec=OPTICAL),
                options=QUICK,
                probability=tmp_path / name,
            )
    assert (tmp_path / "p.tif").read_bytes() == b"mine"
    assert not (tmp_path / "m.rtsrun").exists()


def test_of_many_scenes_it_is_refused_with_the_way_to_get_it(scene, monkeypatch):
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine(64, 16, spec=OPTICAL))
    folder = str(scene.path.parent)
    done = CliRunner().invoke(app, ["predict", folder, "-o", f"{folder}/m.gpkg", "--probability", "p.tif"])
    assert done.exit_code == 1
    assert "rtsmap merge RUN/SCENE" in done.stderr


def test_a_cog_has_its_overviews_first_and_leaves_gaps_out_of_them(tmp_path):
    shape = (1300, 1100)
    values = np.full(shape, 0.5, np.float32)
    values[:, 600:] = np.nan
    geobox = grid(shape)
    pieces = ((window, values[window.slices()]) for window in blocks(shape, 512))
    write_cog(tmp_path / "a.tif", pieces, geobox, band_name="x")
    with rasterio.open(tmp_path / "a.tif") as src:
        assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert src.overviews(1)
        assert src.block_shapes == [(512, 512)]
        np.testing.assert_array_equal(src.read(1), values)
        small = src.read(1, out_shape=(shape[0] // 4, shape[1] // 4))
    assert set(np.unique(small[~np.isnan(small)])) == {np.float32(0.5)}
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
