"""What mappers hold, from the files to the map: elevation models in tiles, other bands, other depths."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

import rtsmap
from rtsmap import models
from rtsmap.cli.main import app
from rtsmap.errors import PlanMismatchError
from rtsmap.rasters.sources import write_geotiff
from rtsmap.rasters.tiling import Window
from rtsmap.runs import mapping
from rtsmap.runs.chipping import ChipOptions, cut_scene
from rtsmap.runs.mapping import predict
from rtsmap.vectors.geopackage import read_layers
from tests.runs.blob_scenes import SPEC, BlobScene, blob_labels, engine, grid, write_scene
from tests.runs.map_content import content, rows


@pytest.fixture
def scene(tmp_path) -> BlobScene:
    return write_scene(tmp_path / "scene.tif", blob_labels((150, 210), 3, 25))


def write_dems(folder: Path) -> tuple[Path, list[Path]]:
    """One elevation model around the scene, whole and in six tiles that overlap by 20 pixels."""
    box = grid((250, 310), left=511_800.0, top=7_704_200.0)
    down, right = np.indices(box.shape)
    hills = (100 + 0.4 * right + 6 * np.sin(down / 9) * np.cos(right / 7)).astype(np.float32)
    hills[60:90, 100:130] = -9999
    write_geotiff(folder / "whole.tif", hills, box, nodata=-9999.0)
    tiles = []
    for row in (0, 125):
        for col in (0, 100, 200):
            window = Window(max(row - 10, 0), max(col - 10, 0), row + 135, col + 120)
            window = window.intersection(Window(0, 0, *box.shape))
            tiles.append(folder / f"{row}_{col}_dem.tif")
            write_geotiff(tiles[-1], hills[window.slices()], box[window.slices()], nodata=-9999.0)
    return folder / "whole.tif", tiles


def test_a_map_from_tiles_is_that_from_one_file(tmp_path, scene):
    whole, tiles = write_dems(tmp_path)
    predict(scene.path, whole, out=tmp_path / "one.gpkg", model=engine())
    predict(scene.path, tiles, out=tmp_path / "six.gpkg", model=engine())
    one, six = content(tmp_path / "one.gpkg"), content(tmp_path / "six.gpkg")
    assert one["footprints"] == six["footprints"]
    assert one["coverage"] == six["coverage"]
    assert list(six["record"]["plan"]["inputs"]["dem"]) == [f"tile_{i}" for i in range(1, 7)]
    assert read_layers(tmp_path / "six.gpkg").footprints["slope_deg"].notna().any()


def test_order_and_place_of_tiles_do_not_count_but_their_pixels_do(tmp_path, scene):
    _, tiles = write_dems(tmp_path)
    out = tmp_path / "m.gpkg"
    predict(scene.path, tiles, out=out, model=engine())
    (tmp_path / "moved").mkdir()
    moved = [tile.rename(tmp_path / "moved" / tile.name) for tile in tiles]
    again = predict(scene.path, moved[::-1], out=out, model=engine(), overwrite=True)
    assert again.shards_computed == 0
    with rasterio.open(moved[4], "r+") as dst:
        dst.write(dst.read(1) + 1, 1)
    with pytest.raises(PlanMismatchError, match=r"inputs\.dem\.tile_5\.s"):
        predict(scene.path, moved, out=out, model=engine(), overwrite=True)
    with pytest.raises(PlanMismatchError, match=r"inputs\.dem\.tile_6\..* now absent"):
        predict(scene.path, moved[:4] + moved[5:], out=out, model=engine(), overwrite=True)


def test_python_and_the_commands_take_several_files_and_patterns(tmp_path, scene, monkeypatch, capsys):
    whole, tiles = write_dems(tmp_path)
    monkeypatch.setattr(mapping, "engine_of", lambda *_: engine())
    wanted = rtsmap.predict(scene.path, dem=whole, model=engine())
    from_list = rtsmap.predict(scene.path, dem=tiles, model=engine())
    assert rows(from_list) == rows(wanted)
    pattern = str(tmp_path / "*_dem.tif")
    done = CliRunner().invoke(
        app, ["predict", str(scene.path), "--dem", pattern, "-o", str(tmp_path / "m.gpkg")]
    )
    assert done.exit_code == 0, done.stderr
    assert "the DEM is 6 files" in " ".join(done.stderr.split())
    assert rows(read_layers(tmp_path / "m.gpkg").footprints) == rows(wanted)


def test_chips_from_tiles_are_those_from_one_file(tmp_path, scene):
    whole, tiles = write_dems(tmp_path)
    small = ChipOptions(chip_px=64)
    cut_scene(scene.path, whole, out=tmp_path / "one", options=small)
    several = [option for tile in tiles for option in ("--dem", str(tile))]
    arguments = ["tile", str(scene.path), *several, "--out", str(tmp_path / "six"), "--chip-px", "64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    index = geopandas.read_parquet(tmp_path / "one" / "chips.parquet")
    assert len(index) > 4
    for name in index["terrain"]:
        with rasterio.open(tmp_path / "one" / name) as one, rasterio.open(tmp_path / "six" / name) as six:
            np.testing.assert_array_equal(six.read(), one.read())


class _Card:
    name, spec, chip_px, overlap_px = "test", SPEC, 64, 16


def test_info_looks_at_tiles_together(tmp_path, scene, monkeypatch):
    _, tiles = write_dems(tmp_path)
    monkeypatch.setattr(models, "find_bundle", lambda name: name)
    monkeypatch.setattr(models, "read_card", lambda _: _Card)
    half = [tile for tile in tiles if not tile.name.startswith("125")]
    several = [option for tile in half for option in ("--dem", str(tile))]
    done = CliRunner().invoke(app, ["info", str(scene.path), *several])
    assert done.exit_code == 0, done.stderr
    assert "and 2 more" in done.stdout
    assert "57.0% of the scene" in done.stdout
