"""Many scenes: named in every way, mapped together, reconciled where they overlap."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.errors import InputError, OptionsError, RunError
from rtsmap.instances.polygons import mask_to_polygon
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.writing import write_geotiff
from rtsmap.runs import many, mapping, spreading, workers
from rtsmap.runs.in_process import InProcess
from rtsmap.runs.many import MAP, merge_scenes, predict_scenes
from rtsmap.runs.mapping import PredictOptions, predict
from rtsmap.runs.processes import Processes
from rtsmap.runs.scene_lists import SceneItem, is_one_file, read_scenes
from rtsmap.vectors.geopackage import read_layers, read_map, read_run_record, write_layers
from rtsmap.vectors.labels import Polygons, write_polygons
from tests.runs.blob_scenes import GROUND, LEFT, SLUMP, TOP, blob_labels, engine, grid, write_dem, write_scene
from tests.runs.map_content import rows

OPTIONS = PredictOptions(simplify_m=0, min_speck_px=1, min_area_m2=0, shard_tiles=2)
SHIFT_PX = 100


def write_part(path: Path, labels: np.ndarray, col0: int, width: int) -> Path:
    """A scene of some columns of a larger ground."""
    own = labels[:, col0 : col0 + width]
    red = np.where(own > 0, SLUMP + own % 40, GROUND).astype(np.uint8)
    pixels = np.stack([red, np.full_like(red, 100), np.full_like(red, 80)])
    write_geotiff(
        path, pixels, grid(own.shape, 4.0, LEFT + 4.0 * col0, TOP), band_names=("red", "green", "blue")
    )
    return path


@pytest.fixture
def ground(tmp_path) -> tuple[np.ndarray, Path]:
    """Labels of a ground, and a folder of two scenes of it that overlap by 50 columns: in 2020 and 2021."""
    labels = blob_labels((120, 250), 7, 25, radius=14)
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_part(folder / "west.tif", labels, 0, 150)
    write_part(folder / "east.tif", labels, 100, 150)
    return labels, folder


@dataclass(frozen=True, slots=True)
class FailingOn:
    """Fails on tiles of which so much has data."""

    valid_share: float

    def detect(self, chips):
        if any(chip.layers["optical"].valid.mean() == self.valid_share for chip in chips):
            raise RuntimeError("the network fell over")
        return [[] for _ in chips]


def table(path: Path, **more: str) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["scene", "date", "id"])
        writer.writerow(["scenes/west.tif", "2020-07-01", "old west"])
        writer.writerow(["scenes/east.tif", "2021-08-01T21:00:00Z", "new east"])
    return path


def mapped(tmp_path, ground, rule: str, **given):
    items = read_scenes([table(tmp_path / "scenes.csv")])
    out = tmp_path / f"{rule}.gpkg"
    given = {"model": engine(), "options": OPTIONS, "run_dir": tmp_path / "run", **given}
    return predict_scenes(given.pop("executor", InProcess()), items, out=out, overlaps=rule, **given)


@pytest.mark.parametrize("rule", ["newest", "best", "union", "keep"])
def test_overlapping_scenes_become_one_map(tmp_path, ground, rule):
    labels, _ = ground
    report = mapped(tmp_path, ground, rule)
    layers = read_layers(report.out)
    found = layers.footprints
    standing = found[found["superseded_by"].isna()]
    assert (report.footprints, report.superseded) == (len(standing), len(found) - len(standing))
    # coverage is the ground once, whoever saw it
    assert layers.coverage.area.sum() == pytest.approx(120 * 250 * 16)
    assert set(found["acquired"]) == {"2020-07-01", "2021-08-01T21:00:00Z"}
    if rule == "keep":
        assert report.superseded == 0
    else:
        # of blobs that a scene's edge cuts, the whole one of the other scene stands
        assert standing.area.sum() / 16 == pytest.approx(np.count_nonzero(labels), rel=0.05)
        assert report.superseded > 0
    assert [scene["scene_id"] for scene in layers.run_record["scenes"]] == ["old west", "new east"]


def test_slumps_that_a_joint_of_two_scenes_cuts_are_told(tmp_path):
    labels = np.zeros((120, 250), int)
    labels[30:60, 100:150], labels[80:100, 200:230] = 1, 2
    parts = [write_part(tmp_path / f"{col}.tif", labels, col, 125) for col in (0, 125)]
    items = [SceneItem(part.stem, str(part)) for part in parts]
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    assert report.footprints == 3
    (note,) = report.notes
    assert "one slump may count as two: 1. " in note
    labels[:, 100:150] = 0
    parts = [write_part(tmp_path / f"{col}.tif", labels, col, 125) for col in (0, 125)]
    report = predict_scenes(InProcess(), items, out=tmp_path / "n.gpkg", model=engine(), options=OPTIONS)
    assert (report.footprints, report.notes) == (1, ())


def test_an_area_is_never_the_map(tmp_path, ground):
    window = Window(0, 0, *ground[0].shape)
    area = (mask_to_polygon(np.ones(window.shape, bool), window, grid(window.shape)),)
    out = tmp_path / "best.gpkg"
    write_polygons(out, Polygons(area, grid(window.shape).crs))
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"best\.gpkg is read"):
        mapped(tmp_path, ground, "best", inputs={"aoi": out}, overwrite=True)
    assert not (tmp_path / "run").exists()
    mapped(tmp_path, ground, "keep", inputs={"aoi": out})
    with pytest.raises(InputError, match=r"best\.gpkg is read"):
        merge_scenes(tmp_path / "run", out, model=engine(), overwrite=True)
    assert out.read_bytes() == before


def test_no_rule_computes_anything_again(tmp_path, ground):
    mapped(tmp_path, ground, "best")
    merged = merge_scenes(tmp_path / "run", tmp_path / "other.gpkg", overlaps="newest", model=engine())
    assert all(report.shards_computed == 0 for _, report in merged.scenes)
    fresh = mapped(tmp_path, ground, "newest", run_dir=tmp_path / "fresh")
    assert rows(read_map(merged.out)) == rows(read_map(fresh.out))


def test_what_people_put_into_maps_of_many_outlives_their_being_made_again(tmp_path, ground):
    out = mapped(tmp_path, ground, "best").out
    own = next((tmp_path / "run").glob(f"*/{MAP}"))
    for path, added in ((out, "review"), (own, "owner")):
        layers = read_layers(path)
        changed = replace(layers, footprints=layers.footprints.assign(**{added: "accepted"}))
        write_layers(path, changed, overwrite=True)
    again = merge_scenes(tmp_path / "run", out, overlaps="best", model=engine(), overwrite=True)
    kept, went_over = again.notes
    assert kept.startswith(f"{own}: ")
    assert "the column owner" in kept
    count = len(read_map(out))
    assert went_over == f"{out}: {count} reviews of the map that was replaced went over"
    assert read_map(out)["review"].tolist() == ["accepted"] * count


def test_the_map_of_many_is_that_of_each_and_the_same_from_two_processes(tmp_path, ground):
    one = mapped(tmp_path, ground, "keep")
    two = mapped(tmp_path, ground, "best", executor=Processes(2), run_dir=tmp_path / "two")
    best = merge_scenes(tmp_path / "run", tmp_path / "again.gpkg", overlaps="best", model=engine())
    assert rows(read_map(two.out)) == rows(read_map(best.out))
    alone = tmp_path / "alone.gpkg"
    predict(tmp_path / "scenes" / "west.tif", out=alone, model=engine(), options=OPTIONS)
    own = read_map(one.out)
    ignored = ("acquired", "scene_id")
    told = read_run_record(one.out)
    assert told["model"] == read_run_record(alone)["plan"]["model"]
    assert told["merging"] == read_run_record(alone)["merging"]
    west = own[own["scene_id"] == "old west"].drop(columns="superseded_by")
    assert rows(west, without=ignored) == rows(read_map(alone), without=ignored)


def test_one_bad_scene_does_not_stop_the_others(tmp_path, ground):
    _, folder = ground
    (folder / "bad.tif").write_text("no raster")
    items = [*read_scenes([folder]), SceneItem("latin", str(folder / os.fsdecode(b"sc\xe8ne.tif")))]
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    assert [name for name, _ in report.scenes] == ["east", "west"]
    assert [name for name, _ in report.problems] == ["bad", "latin"]
    bad, latin = (problem for _, problem in report.problems)
    assert "bad.tif" in bad
    assert "its name is not UTF-8" in latin
    # what is no text is told in text
    json.dumps(read_run_record(report.out), ensure_ascii=False).encode()


def test_a_scene_that_vanishes_stops_only_itself(tmp_path, ground):
    _, folder = ground
    mapped(tmp_path, ground, "keep")
    (folder / "west.tif").rename(folder / "gone.tif")
    report = merge_scenes(tmp_path / "run", tmp_path / "m.gpkg", model=engine())
    assert [name for name, _ in report.problems] == ["old_west"]
    assert len(read_map(report.out)) > 0


def test_options_and_places_of_a_second_run_count(tmp_path, ground):
    _, folder = ground
    mapped(tmp_path, ground, "keep", options=replace(OPTIONS, min_area_m2=1000.0))
    (tmp_path / "kept").mkdir()
    for scene in sorted(folder.iterdir()):
        scene.rename(tmp_path / "kept" / scene.name)
    folder.rmdir()
    (tmp_path / "kept").rename(tmp_path / "moved")
    items = [
        replace(item, scene=item.scene.replace("scenes/", "moved/"))
        for item in read_scenes([table(tmp_path / "scenes.csv")])
    ]
    given = {"model": engine(), "run_dir": tmp_path / "run", "overlaps": "keep"}
    wider = predict_scenes(InProcess(), items, out=tmp_path / "w.gpkg", options=OPTIONS, **given)
    fresh = {**given, "run_dir": tmp_path / "fresh"}
    wanted = predict_scenes(InProcess(), items, out=tmp_path / "f.gpkg", options=OPTIONS, **fresh)
    assert not wider.problems
    assert rows(read_map(wider.out)) == rows(read_map(wanted.out))
    assert read_map(wider.out)["area_m2"].min() < 1000


def test_ground_that_failed_stands_in_coverage_although_another_scene_has_no_data_there(tmp_path):
    labels = np.zeros((64, 64), int)
    write_scene(tmp_path / "a.tif", labels)
    valid = np.ones(labels.shape, bool)
    valid[:, :32] = False
    write_scene(tmp_path / "b.tif", labels, valid)
    failing = engine(detector=FailingOn(valid_share=1.0))
    items = read_scenes([tmp_path / "a.tif", tmp_path / "b.tif"])
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", model=failing, options=OPTIONS)
    areas = read_layers(report.out).coverage.dissolve("status").area
    assert areas.to_dict() == {"mapped": 64 * 32 * 16, "failed": 64 * 32 * 16}


def test_undated_scenes_are_refused_for_newest_before_anything_is_computed(tmp_path, ground):
    _, folder = ground
    with pytest.raises(OptionsError, match=r"nothing tells of 2 of them: east, west"):
        predict_scenes(
            InProcess(),
            read_scenes([folder]),
            out=tmp_path / "m.gpkg",
            overlaps="newest",
            model=engine(),
            options=OPTIONS,
        )
    assert not list(tmp_path.rglob("shard-*.arrow"))


def test_scenes_in_other_zones_share_a_polar_map(tmp_path):
    labels = blob_labels((100, 100), 2, 8, radius=10)
    write_scene(tmp_path / "a.tif", labels)
    red = np.where(labels > 0, SLUMP, GROUND).astype(np.uint8)
    from odc.geo.geobox import GeoBox

    box = GeoBox.from_bbox((LEFT, TOP - 400, LEFT + 400, TOP), "EPSG:32612", shape=(100, 100))
    pixels = np.stack([red, red * 0 + 100, red * 0 + 80])
    write_geotiff(tmp_path / "b.tif", pixels, box, band_names=("red", "green", "blue"))
    items = read_scenes([tmp_path / "a.tif", tmp_path / "b.tif"])
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    found = read_map(report.out)
    assert found.crs.to_epsg() == 3413
    assert len(found) == 2 * labels.max()
    alone = predict(tmp_path / "b.tif", out=tmp_path / "b.gpkg", model=engine(), options=OPTIONS)
    areas = np.sort(read_map(alone.out)["area_m2"])
    assert np.sort(found[found["scene_id"] == "b"]["area_m2"]) == pytest.approx(areas)


def test_scenes_are_named_in_every_way(tmp_path, ground):
    _, folder = ground
    wanted = [str(folder / "east.tif"), str(folder / "west.tif")]
    assert [item.scene for item in read_scenes([folder])] == wanted
    assert [item.scene for item in read_scenes([str(folder / "*.tif")])] == wanted
    assert [item.scene for item in read_scenes([*wanted, wanted[0]])] == wanted
    (tmp_path / "more").mkdir()
    twin = tmp_path / "more" / "east.tif"
    twin.write_bytes((folder / "east.tif").read_bytes())
    assert [item.name for item in read_scenes([folder, twin])] == ["east", "west", "east-2"]
    numbered = [tmp_path / "more" / name for name in ("east-2.tif", "west.tif", "east.tif")]
    named = [item.name for item in read_scenes([folder, *numbered])]
    assert named == ["east", "west", "east-2", "west-2", "east-3"]
    named_so = [folder / "east.tif", twin, folder / "east-2.tif", folder / "East.tif"]
    assert [item.name for item in read_scenes(named_so)] == ["east", "east-2", "east-2-2", "East-3"]


def test_an_empty_name_is_not_the_folder_that_one_is_in(tmp_path, ground, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name of a scene is empty"):
        read_scenes([""])


def test_a_signed_address_is_a_scene_and_no_pattern():
    address = "https://host.example/scenes/s.tif?sv=2024&sig=a%2Bb"
    assert is_one_file([address])
    (item,) = read_scenes([address])
    assert (item.scene, item.name) == (address, "s")


def test_tables_tell_scenes_their_dem_and_date(tmp_path, ground):
    row = {"scene": "scenes/west.tif", "dem": "a.tif;b.tif", "date": "2020-07-01", "id": "w/1"}
    pyarrow.parquet.write_table(pa.Table.from_pylist([{**row, "geometry": b"xx"}]), tmp_path / "t.parquet")
    item = {
        "id": "w/1",
        "properties": {"datetime": "2020-07-01"},
        "assets": {
            "thumbnail": {"href": "x.png"},
            "B": {"href": "scenes/west.tif"},
            "dem": {"href": "a.tif;b.tif"},
        },
    }
    (tmp_path / "t.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    for name in ("t.parquet", "t.json"):
        (found,) = read_scenes([tmp_path / name])
        assert found.scene == str(tmp_path / "scenes/west.tif")
        assert found.dem == (str(tmp_path / "a.tif"), str(tmp_path / "b.tif"))
        assert (found.date, found.scene_id, found.name) == ("2020-07-01", "w/1", "w_1")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "raster,date\na.tif,2020-01-01\n", "names no scene"),
        (
            "t.csv",
            "scene,date\nb.tif,\na.tif,1st of May\n",
            r"t\.csv: row 2: date '1st of May' cannot",
        ),
        ("t.json", "{}", "cannot be read as a table"),
        ("t.json", '{"features": [null]}', "cannot be read as a table"),
        ("t.json", '{"features": [{"assets": [1]}]}', "cannot be read as a table"),
        ("t.parquet", "x", "cannot be read as a table"),
        ("t.csv", "scene\n", "no scenes are named"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_scenes([tmp_path / name])


def test_each_scene_gets_the_dem_tiles_near_it(tmp_path, ground):
    _, folder = ground
    near = write_dem(tmp_path / "near.tif", grid((120, 250)))
    for i in range(20):
        far = grid((10, 10), 8.0, LEFT + 200_000 + 100 * i, TOP)
        write_geotiff(tmp_path / f"far{i}.tif", np.zeros((10, 10), np.float32), far, nodata=-9999.0)
    items = read_scenes([folder], [str(tmp_path / "*.tif")])
    assert [item.dem for item in items] == [(str(near),), (str(near),)]


def test_a_scene_across_the_antimeridian_gets_tiles_of_both_sides(tmp_path):
    pixels = np.ones((3, 20, 20), np.uint8)
    scene = GeoBox((20, 20), Affine(0.01, 0, 179.9, 0, -0.01, 71.1), "EPSG:4326")
    write_geotiff(tmp_path / "scene.tif", pixels, scene, band_names=("red", "green", "blue"))
    for lon in (*range(160, 180), -180):
        tile = GeoBox((10, 10), Affine(0.1, 0, lon, 0, -0.1, 72), "EPSG:4326")
        write_geotiff(tmp_path / f"{lon}_dem.tif", np.zeros((10, 10), np.float32), tile, nodata=-9999.0)
    (item,) = read_scenes([tmp_path / "scene.tif"], [str(tmp_path / "*_dem.tif")])
    assert {str(tmp_path / f"{lon}_dem.tif") for lon in (179, -180)} <= set(item.dem)


def test_a_dem_for_all_need_not_reach_every_scene(tmp_path, ground):
    _, folder = ground
    west = write_dem(tmp_path / "west_dem.tif", grid((120, 70)))
    write_part(folder / "far.tif", ground[0], 150, 100)
    items = read_scenes([folder], [str(west)])
    out = tmp_path / "m.gpkg"
    report = predict_scenes(Processes(1), items, out=out, model=engine(), options=OPTIONS)
    assert not report.problems
    seen_with = {name: set(read_map(scene.out)["modalities"]) for name, scene in report.scenes}
    assert seen_with["far"] == {"optical"}
    assert "optical,terrain" in seen_with["west"]
    notes = {name: " ".join(scene.notes) for name, scene in report.scenes}
    assert "mapped by imagery alone" in notes["far"]
    assert "mapped by imagery alone" not in notes["west"]
    own = [replace(item, dem=(str(west),), dem_may_miss=False) for item in items if item.name == "far"]
    with pytest.raises(RunError, match="does not overlap the scene"):
        predict_scenes(InProcess(), own, out=tmp_path / "n.gpkg", model=engine(), options=OPTIONS)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_any_spreadsheet_list_the_same_scenes(tmp_path, delimiter):
    commas = 'scene,dem,bands\na.tif,"west.tif;east.tif","red=1,green=2,blue=3"\nb.tif,,\n'
    (tmp_path / "scenes.csv").write_text(commas)
    items = read_scenes([tmp_path / "scenes.csv"])
    assert len(items[0].dem) == 2
    with (tmp_path / "scenes.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(csv.reader(commas.splitlines()))
    assert read_scenes([tmp_path / "scenes.csv"]) == items


def test_tables_tell_each_scene_its_bands(tmp_path, ground):
    _, folder = ground
    for name, order in (("west", (0, 1, 2)), ("east", (2, 1, 0))):
        with rasterio.open(folder / f"{name}.tif") as source:
            pixels = source.read()
        box = grid((120, 150), 4.0, LEFT + (0 if name == "west" else 400), TOP)
        write_geotiff(folder / f"{name}.tif", pixels[list(order)], box, band_names=("a", "b", "c"))
    (tmp_path / "scenes.csv").write_text(
        'scene,bands\nscenes/west.tif,"red=1,green=2,blue=3"\nscenes/east.tif,"red=3,green=2,blue=1"\n'
        'scenes/east.tif;x,"red=here"\n'
    )
    given = {"model": engine(), "options": OPTIONS}
    items = read_scenes([tmp_path / "scenes.csv"])
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", overlaps="keep", **given)
    ((_, problem),) = report.problems
    assert "cannot read 'red=here'" in problem
    assert {name for name, _ in report.scenes} == {"west", "east"}
    assert all(scene.footprints for _, scene in report.scenes)


def test_the_command_maps_a_folder_and_names_what_failed(tmp_path, ground, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in (mapping, workers):
        monkeypatch.setattr(module, "engine_of", lambda *_, **__: engine())
    for module in (spreading, many):
        monkeypatch.setattr(module, "engine_to_plan", lambda *_, **__: engine())
    monkeypatch.setattr(spreading, "engine_at_rest", lambda *_: engine())
    (tmp_path / "scenes" / "bad.tif").write_text("no raster")
    done = CliRunner().invoke(app, ["predict", "scenes", "--overlaps", "union", "--shard-tiles", "2"])
    assert done.exit_code == 3, done.output
    assert done.stdout.strip() == "slumps.gpkg"
    assert "bad is not on the map" in done.stderr
    assert (tmp_path / "slumps.rtsrun" / "west" / MAP).exists()
    shown = CliRunner().invoke(app, ["runs", "show", "slumps.rtsrun"])
    assert "2 of 2 have all their tiles" in shown.stdout
    assert "problem   bad" in shown.stdout
    planned = CliRunner().invoke(app, ["plan", "scenes", "--out", "run", "--shard-tiles", "2"])
    assert planned.exit_code == 3, planned.output
    assert CliRunner().invoke(app, ["work", "run"]).exit_code == 0
    merged = CliRunner().invoke(app, ["merge", "run", "-o", "m.gpkg", "--overlaps", "union"])
    assert merged.exit_code == 3, merged.output
    assert rows(read_map("m.gpkg")) == rows(read_map("slumps.gpkg"))


def test_scenes_in_folders_whose_files_have_one_name_are_told_apart(tmp_path):
    labels = blob_labels((100, 100), 3, 6)
    for number, folder in enumerate(("north", "south")):
        (tmp_path / folder).mkdir()
        box = grid(labels.shape, top=TOP - 2000.0 * number)
        pixels = np.broadcast_to(np.where(labels > 0, SLUMP, GROUND).astype(np.uint8), (3, 100, 100))
        write_geotiff(tmp_path / folder / "rgb.tif", pixels, box, band_names=("red", "green", "blue"))
    items = read_scenes([tmp_path / "*" / "rgb.tif"])
    report = predict_scenes(InProcess(), items, out=tmp_path / "m.gpkg", model=engine(), options=OPTIONS)
    found = read_map(report.out)
    assert found["scene_id"].value_counts().to_dict() == {"rgb": labels.max(), "rgb-2": labels.max()}
    assert found[found["scene_id"] == "rgb"].geometry.bounds["miny"].min() > TOP - 1000
    recorded = {entry["scene_id"]: entry["scene"] for entry in read_run_record(report.out)["scenes"]}
    assert {name: Path(scene).parent.name for name, scene in recorded.items()} == {
        "rgb": "north",
        "rgb-2": "south",
    }
    assert many._told_apart(replace(items[1], scene=str(tmp_path / "absent.tif"))) is None
