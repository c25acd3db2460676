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
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import write_geotiff
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
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
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


# --- bands and depth -----------------------------------------------------------------------------------


def deliver(path: Path, scene: BlobScene, bands: dict[str, int], count: int, gain: float) -> Path:
    """The ground of a blob scene with blobs as bright as in it, in other bands and 16 bit."""
    rng = np.random.default_rng(1)
    texture = rng.normal(0, 6, scene.labels.shape)
    tones = {"red": np.where(scene.labels > 0, 200, 90), "green": 100, "blue": 80}
    planes = rng.integers(1, 1000, (count, *scene.labels.shape)).astype(np.uint16)
    for name, index in bands.items():
        planes[index - 1] = np.rint(gain * (tones[name] + texture) + 200)
    write_geotiff(path, planes, scene.geobox, block_px=64)
    return path


def test_deliveries_of_one_ground_give_one_map(tmp_path, scene):
    four = deliver(tmp_path / "bgrn.tif", scene, {"red": 3, "green": 2, "blue": 1}, 4, 30.0)
    eight = deliver(tmp_path / "wv.tif", scene, {"red": 5, "green": 3, "blue": 2}, 8, 7.0)
    finder = engine(detector=ThresholdDetector(low=100, high=255))
    first = rtsmap.predict(four, model=finder, bands={"red": 3, "green": 2, "blue": 1}, min_area_m2=0)
    other = rtsmap.predict(eight, model=finder, bands={"red": 5, "green": 3, "blue": 2}, min_area_m2=0)
    assert len(first) == len(other) == scene.labels.max()
    assert np.allclose(np.sort(first.area_m2), np.sort(other.area_m2))


def test_bands_and_scale_are_recorded_and_another_choice_is_refused(tmp_path, scene, monkeypatch):
    path = deliver(tmp_path / "wv.tif", scene, {"red": 5, "green": 3, "blue": 2}, 8, 7.0)
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    command = ["predict", str(path), "-o", str(tmp_path / "m.gpkg"), "--overwrite"]
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, "--bands", "red=5,green=3,blue=2"])
        assert done.exit_code == 0, done.stderr
    assert "not computed again" in done.stderr
    assert "percentiles 1 and 99 set the 8-bit scale" in " ".join(done.stderr.split())
    options = read_layers(tmp_path / "m.gpkg").run_record["plan"]["options"]
    assert options["bands"] == {"red": 5, "green": 3, "blue": 2}
    assert options["radiometry"]["red"]["low"] == pytest.approx(7.0 * 90 + 200 - 7 * 14, rel=0.05)
    other = CliRunner().invoke(app, [*command, "--bands", "red=7,green=3,blue=2"])
    assert other.exit_code == 1
    assert "options.bands.red was 5, now 7" in " ".join(other.stderr.split())


def test_ambiguous_and_panchromatic_deliveries_are_refused_with_the_way_out(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    for count, words in ((1, "panchromatic"), (4, "--bands red=3,green=2,blue=1"), (8, "red=5,green=3")):
        path = deliver(tmp_path / f"{count}.tif", scene, {}, count, 1.0)
        for command in (["predict", "-o", str(tmp_path / "m.gpkg")], ["tile", "-o", str(tmp_path / "c")]):
            done = CliRunner().invoke(app, [command[0], str(path), *command[1:]])
            assert done.exit_code == 1
            assert words in " ".join(done.stderr.split())
    wrong = CliRunner().invoke(app, ["predict", str(path), "--bands", "red=9,green=3,blue=2"])
    assert "within 1..8" in " ".join(wrong.stderr.split())


def test_chips_of_any_depth_are_8_bit(tmp_path, scene):
    path = deliver(tmp_path / "wv.tif", scene, {"red": 5, "green": 3, "blue": 2}, 8, 7.0)
    arguments = ["tile", str(path), "--bands", "red=5,green=3,blue=2", "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(app, [*arguments, "--chip-px", "64"])
    assert done.exit_code == 0, done.stderr
    chips = sorted((tmp_path / "c" / "optical").glob("*.tif"))
    assert len(chips) == 12
    means = []
    for chip in chips:
        with rasterio.open(chip) as src:
            assert src.dtypes == ("uint8",) * 3
            means.append(src.read().mean(axis=(1, 2)))
    assert np.mean(means, axis=0) == pytest.approx([92, 96, 78], abs=30)


def test_timings_name_the_stages(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    whole, _ = write_dems(tmp_path)
    command = ["predict", str(scene.path), "--dem", str(whole), "-o", str(tmp_path / "m.gpkg"), "--timings"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    told = {line[:14].strip(): line.split() for line in done.stderr.splitlines()}
    for stage in ("planning", "reading", "warping", "terrain", "network", "writing", "merging", "footprints"):
        assert stage in told
    assert float(told["all"][1]) > 0


def test_footprints_say_which_scene_and_when_and_that_computes_nothing_again(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    path = tmp_path / "WV02_20130426224306_1030010020A45200_13APR26224306-M1BS-500069507110_01_P004.tif"
    path.write_bytes(scene.path.read_bytes())
    out = tmp_path / "m.gpkg"
    done = CliRunner().invoke(app, ["predict", str(path), "-o", str(out)])
    assert done.exit_code == 0, done.stderr
    found = read_layers(out)
    assert set(found.footprints["scene_id"]) == {"1030010020A45200"}
    assert set(found.footprints["acquired"]) == {"2013-04-26T22:43:06Z"}
    assert found.run_record["acquisition"]["acquired_from"] == "file name, PGC"
    command = [
        "predict",
        str(path),
        "-o",
        str(out),
        "--overwrite",
        "--date",
        "2013-05-01",
        "--scene-id",
        "mine",
    ]
    done = CliRunner().invoke(app, command)
    assert "not computed again" in done.stderr
    found = read_layers(out)
    assert set(found.footprints["scene_id"]) == {"mine"}
    assert set(found.footprints["acquired"]) == {"2013-05-01"}
    wrong = CliRunner().invoke(app, [*command[:-3], "May 2013"])
    assert wrong.exit_code == 1
    assert "2020-07-05" in wrong.stderr


def test_a_file_of_a_band_that_the_model_does_not_want_is_told(tmp_path, scene):
    values = np.full(scene.geobox.shape, 0.5, np.float32)
    write_geotiff(tmp_path / "ndvi.tif", values, scene.geobox, nodata=-9999.0)
    told = predict(
        scene.path, out=tmp_path / "m.gpkg", model=engine(), band_files={"ndvi": tmp_path / "ndvi.tif"}
    )
    assert f"{tmp_path / 'ndvi.tif'}: is not looked at, for the model wants no ndvi" in told.notes
