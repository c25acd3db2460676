from __future__ import annotations

import json
import warnings
import zipfile

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from pycocotools import mask as coco_mask
from rasterio.errors import RasterioIOError
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.errors import InputError, PlanMismatchError, RunError, WriteError
from rtsmap.instances.polygons import mask_to_polygon
from rtsmap.mm.packs import read_index
from rtsmap.rasters import opening, reading
from rtsmap.rasters.tiling import Window
from rtsmap.runs import chipping
from rtsmap.runs.chip_packs import PackOptions, pack
from rtsmap.runs.chipping import ChipOptions, cut_scene
from rtsmap.vectors.labels import Polygons, write_polygons
from tests.runs.blob_scenes import BlobScene, blob_labels, write_dem, write_scene

SMALL = ChipOptions(chip_px=64, min_valid_share=0.5)


@pytest.fixture
def scene(tmp_path) -> BlobScene:
    valid = np.ones((150, 200), bool)
    valid[:70, :70] = False
    return write_scene(tmp_path / "scene.tif", blob_labels((150, 200), 3, 12), valid)


def labels_file(path, scene: BlobScene):
    window = Window(0, 0, *scene.labels.shape)
    shapes = tuple(
        mask_to_polygon(scene.labels == label, window, scene.geobox)
        for label in range(1, scene.labels.max() + 1)
    )
    write_polygons(path, Polygons(shapes, scene.geobox.crs))
    return path


def test_chips_hold_the_scene_and_say_where_they_have_data(tmp_path, scene):
    dem = write_dem(tmp_path / "dem.tif", scene.geobox, share=0.5)
    report = cut_scene(scene.path, dem, out=tmp_path / "chips", options=SMALL)
    index = geopandas.read_parquet(tmp_path / "chips" / "chips.parquet")
    assert len(index) == report.chips == 11
    assert report.no_data == 1
    with rasterio.open(scene.path) as whole:
        red, seen = whole.read(1), whole.dataset_mask() > 0
        for row in index.itertuples():
            window = np.s_[row.row : row.row + row.height, row.col : row.col + row.width]
            with rasterio.open(tmp_path / "chips" / row.optical) as chip:
                valid = chip.dataset_mask() > 0
                assert (valid == seen[window]).all()
                assert (chip.read(1)[valid] == red[window][valid]).all()
                assert chip.descriptions == ("red", "green", "blue")
                assert shapely.box(*chip.bounds).equals(row.geometry)
                assert row.optical_valid_share == pytest.approx(valid.mean())
            with rasterio.open(tmp_path / "chips" / row.terrain) as chip:
                slope = chip.read(2)
                known = ~np.isnan(slope)
                assert row.terrain_valid_share == pytest.approx(known.mean())
                assert slope[known] == pytest.approx(np.degrees(np.arctan(0.1)), abs=0.5)
    assert 0 < index["terrain_valid_share"].mean() < 1


def test_chips_without_overlap_hold_every_pixel_once(tmp_path, scene):
    cut_scene(scene.path, out=tmp_path / "chips", options=ChipOptions(chip_px=64, min_valid_share=0))
    index = geopandas.read_parquet(tmp_path / "chips" / "chips.parquet")
    assert "terrain" not in index
    union = index.geometry.union_all()
    # the chip without any imagery is left out even then
    assert index.geometry.area.sum() >= union.area
    assert union.area <= 150 * 200 * 16


def test_annotations_have_the_area_of_the_labels_that_chips_show(tmp_path, scene):
    labels = labels_file(tmp_path / "labels.gpkg", scene)
    report = cut_scene(scene.path, out=tmp_path / "chips", labels=labels, options=SMALL)
    document = json.loads((tmp_path / "chips" / "annotations.json").read_text())
    assert len(document["annotations"]) == report.annotations > 0
    assert len(document["images"]) == report.chips
    index = geopandas.read_parquet(tmp_path / "chips" / "chips.parquet").set_index("chip")
    for image in document["images"]:
        row = index.loc[image["id"]]
        assert image["file_name"] == row["optical"]
        window = np.s_[row["row"] : row["row"] + row["height"], row["col"] : row["col"] + row["width"]]
        drawn = np.zeros((image["height"], image["width"]), bool)
        for annotation in document["annotations"]:
            if annotation["image_id"] == image["id"]:
                runs = coco_mask.frPyObjects(annotation["segmentation"], *drawn.shape)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools on numpy 2
                    parts = coco_mask.decode(runs if isinstance(runs, list) else [runs])
                drawn |= parts.any(axis=2)
        assert np.count_nonzero(drawn != (scene.labels[window] > 0)) <= 0.02 * drawn.size


def test_ground_that_is_not_wanted_is_neither_slump_nor_background(tmp_path, scene):
    labels = labels_file(tmp_path / "labels.gpkg", scene)
    left, bottom, right, top = scene.geobox.extent.geom.bounds
    west = shapely.box(left, bottom, (left + right) / 2, top)
    hole = shapely.box(left + 320, bottom, left + 400, bottom + 200)
    for name, shape in (("west", west), ("hole", hole)):
        write_polygons(tmp_path / f"{name}.gpkg", Polygons((shape,), scene.geobox.crs))
    chosen = {"aoi": tmp_path / "west.gpkg", "exclude": tmp_path / "hole.gpkg"}
    report = cut_scene(scene.path, out=tmp_path / "chips", labels=labels, options=SMALL, **chosen)
    document = json.loads((tmp_path / "chips" / "annotations.json").read_text())
    assert report.annotations == sum(not one["iscrowd"] for one in document["annotations"]) > 0
    assert len({one["id"] for one in document["annotations"]}) == len(document["annotations"])
    pack([tmp_path / "chips"], tmp_path / "chips.pack", PackOptions())
    index = geopandas.read_parquet(tmp_path / "chips" / "chips.parquet")
    xs, ys = np.meshgrid(*(np.arange(n) + 0.5 for n in (200, 150)))
    x, y = scene.geobox.affine * (xs, ys)
    wanted = shapely.contains_xy(west.difference(hole), x, y)
    ignored = 0
    for image, row in zip(read_index(tmp_path / "chips.pack"), index.itertuples(), strict=True):
        window = np.s_[row.row : row.row + row.height, row.col : row.col + row.width]
        here = image.read(Window(0, 0, *image.shape)).labels
        np.testing.assert_array_equal(here[here <= 0] == -1, ~wanted[window][here <= 0])
        ignored += (here == -1).sum()
    assert ignored > 200


def test_an_interrupted_cut_goes_on_and_a_finished_one_is_kept(tmp_path, scene, monkeypatch):
    out = tmp_path / "chips"
    real, written = chipping.write_geotiff, []

    def failing(path, *args, **kwargs):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        real(path, *args, **kwargs)

    monkeypatch.setattr(chipping, "SHARD_TILES", 1)
    monkeypatch.setattr(chipping, "write_geotiff", failing)
    with pytest.raises(KeyboardInterrupt):
        cut_scene(scene.path, out=out, options=SMALL)
    assert not (out / "chips.parquet").exists()
    with pytest.raises(PlanMismatchError, match="chip_px"):
        cut_scene(scene.path, out=out, options=ChipOptions(chip_px=32))
    first = list(written)
    written.clear()
    monkeypatch.setattr(
        chipping, "write_geotiff", lambda path, *a, **k: (written.append(path), real(path, *a, **k))
    )
    report = cut_scene(scene.path, out=out, options=SMALL)
    assert report.chips == 11
    assert len(set(first) & set(written)) <= 3
    with pytest.raises(InputError, match="--overwrite"):
        cut_scene(scene.path, out=out, options=SMALL)
    other = cut_scene(scene.path, out=out, options=ChipOptions(chip_px=96), overwrite=True)
    files = sorted(p.name for p in (out / "optical").iterdir())
    assert len(files) == other.chips


def test_tiles_that_failed_are_tried_again_and_only_these(tmp_path, scene, monkeypatch):
    out, real = tmp_path / "chips", reading._read_pixels
    command = ["tile", str(scene.path), "--out", str(out), "--chip-px", "64"]
    monkeypatch.setattr(chipping, "SHARD_TILES", 1)
    monkeypatch.setattr(opening, "LOCAL_PAUSES_S", ())

    def failing(src, info, bands, window):
        if window.col1 == 200:
            raise RasterioIOError("the disk had a bad moment")
        return real(src, info, bands, window)

    with monkeypatch.context() as patched:
        patched.setattr(reading, "_read_pixels", failing)
        for _ in "ab":
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 3, done.stderr
            assert "8 chips" in done.stderr
            assert "run the same command again" in done.stderr
    good = {path: path.stat().st_mtime_ns for path in (out / "optical").iterdir()}
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert len(geopandas.read_parquet(out / "chips.parquet")) == len(list((out / "optical").iterdir())) == 11
    assert {path: path.stat().st_mtime_ns for path in good} == good
    assert "finished chips already" in CliRunner().invoke(app, command).stderr


def test_chips_that_are_the_scene_are_not_removed(tmp_path, scene):
    out = tmp_path / "chips"
    cut_scene(scene.path, out=out, options=SMALL)
    chip = out / "optical" / "000005.tif"
    with pytest.raises(InputError, match=r"000005\.tif is read to make the output"):
        cut_scene(chip, out=out, options=SMALL, overwrite=True)
    assert len(list((out / "optical").iterdir())) == 11


def test_chips_without_room_stop_the_cut_and_put_right_it_goes_on(tmp_path, scene, monkeypatch):
    def full(path, *_, **__):
        raise WriteError(f"{path}: cannot be written (no room)")

    with monkeypatch.context() as patched:
        patched.setattr(chipping, "write_geotiff", full)
        with pytest.raises(RunError, match=r"\.tif: cannot be written"):
            cut_scene(scene.path, out=tmp_path / "chips", options=SMALL)
    assert cut_scene(scene.path, out=tmp_path / "chips", options=SMALL).chips == 11


def test_a_folder_with_other_things_is_left_alone(tmp_path, scene):
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / "thesis.docx").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not empty"):
            cut_scene(scene.path, out=tmp_path / "chips", options=SMALL, overwrite=overwrite)
    assert (tmp_path / "chips" / "thesis.docx").read_text() == "years"


def test_the_command(tmp_path, scene):
    labels = labels_file(tmp_path / "labels.gpkg", scene)
    arguments = ["tile", str(scene.path), "--out", str(tmp_path / "c"), "--labels", str(labels)]
    done = CliRunner().invoke(app, [*arguments, "--chip-px", "64"])
    assert done.exit_code == 0, done.stderr
    assert "11 chips" in done.stderr
    again = CliRunner().invoke(app, [*arguments, "--chip-px", "64"])
    assert again.exit_code == 1
    assert CliRunner().invoke(app, [*arguments, "--resolution-m", "0"]).exit_code == 2


def test_the_command_takes_scenes_in_archives(tmp_path, scene):
    """A path with // in it must arrive as it is."""
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(scene.path, "s.tif")
    inside = f"/vsizip/{tmp_path}/s.zip/s.tif"
    done = CliRunner().invoke(app, ["tile", inside, "--out", str(tmp_path / "c"), "--chip-px", "64"])
    assert done.exit_code == 0, done.stderr
    assert "11 chips" in done.stderr
    told = CliRunner().invoke(app, ["info", inside])
    assert told.exit_code == 0, told.stderr
    assert "EPSG:32608" in told.stdout
