"""Profiles held against the rules that their receivers have published."""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import uuid
import warnings
from dataclasses import replace
from datetime import date

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from odc.geo.geobox import GeoBox
from pycocotools import mask as coco_mask

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.instances.run_lengths import coco_result
from rtsmap.vectors.export import Selection
from rtsmap.vectors.geopackage import (
    COMMENT_COLUMN,
    COVERAGE_LAYER,
    REVIEW_COLUMN,
    MapLayers,
    read_layers,
    read_map,
    write_layers,
    write_map,
)
from rtsmap.vectors.labels import Polygons, write_polygons
from rtsmap.vectors.profiles import ARTS_FIELDS, ARTS_REQUIRED, PDG_UNKNOWN, ProfileOptions, export_profile
from tests.shared_data import shared
from tests.vectors.samples import (
    GRID,
    POLAR,
    add_by_hand,
    assert_same_geometries,
    blob,
    coverage,
    footprint,
    footprints,
)

GIVEN = {
    "RegionName": "Banks Island",
    "CreatorLab": "A. Näme, University of Б",
    "BaseMapDate": "2023-07-01,2023-08-31",
    "BaseMapSource": "WorldView-2",
}
RECORD = {
    "rtsmap_version": "0.1.0",
    "paths": {"scene": "/data/WV02 20230801.tif"},
    "finished_utc": "2026-11-22T18:32:22+00:00",
    "plan": {
        "model": {"name": "rts-starter", "version": "0.3.0", "input": {"resolution_m": 4.0}},
        "grid": {"crs": "EPSG:3413", "affine": list(GRID.affine)[:6], "shape": list(GRID.shape)},
    },
}


@pytest.fixture
def map_path(tmp_path):
    path = tmp_path / "in" / "map.gpkg"
    path.parent.mkdir()
    left, top = -2_000_000, 1_000_000
    # one beyond the grid's right edge, as outlines may be after simplifying
    made = [footprint(blob(k, left + 200 + 130 * k, top - 400, 60), number=k) for k in range(11)]
    write_map(path, made, POLAR, coverage(), RECORD)
    return path


def arts(map_path, out, fields=GIVEN, **more):
    return export_profile(map_path, out, "arts", options=ProfileOptions(fields), **more)


# ARTS: Metadata_Format_Summary.csv of github.com/whrc/ARTS


def test_arts_fields_are_those_of_the_data_sets_own_list():
    path = shared("rts_inventories/Metadata_Format_Summary.csv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(row["FieldName"] for row in rows) == ARTS_FIELDS
    assert tuple(row["FieldName"] for row in rows if row["Required"] == "True") == ARTS_REQUIRED


def test_arts_passes_the_data_sets_checks(map_path, tmp_path):
    arts(map_path, tmp_path / "arts.geojson")
    frame = geopandas.read_file(tmp_path / "arts.geojson")
    assert list(frame.columns) == [*ARTS_FIELDS, "geometry"]
    assert frame[list(ARTS_REQUIRED)].notna().all(axis=None)
    for name, limit in (("CentroidLat", 90), ("CentroidLon", 180), ("BaseMapResolution", 1000)):
        assert frame[name].dtype == np.float64
        assert frame[name].between(-limit, limit).all()
    for name in ("CentroidLat", "CentroidLon"):
        assert (frame[name].round(5) == frame[name]).all()
    for name in ("RegionName", "CreatorLab", "BaseMapSource", "TrainClass", "LabelType"):
        assert frame[name].map(lambda text: isinstance(text, str) and text != "").all()
    for text in frame["BaseMapDate"]:
        assert 1 <= len([date.fromisoformat(part) for part in text.split(",")]) <= 2
    assert set(frame["TrainClass"]) == {"Positive"}
    assert set(frame["LabelType"]) == {"Polygon"}
    assert all(len(uid) == 36 and uuid.UUID(uid).version == 5 for uid in frame["UID"])
    assert frame["UID"].is_unique


def test_arts_says_the_truth_about_the_slumps(map_path, tmp_path):
    notes = arts(map_path, tmp_path / "arts.geojson")
    assert notes == ("ARTS: accepted by nobody yet: 11 of 11 footprints",)
    frame, before = geopandas.read_file(tmp_path / "arts.geojson"), read_map(map_path)
    assert frame["Area"].to_numpy() == pytest.approx(before["area_m2"].to_numpy(), abs=0.05)
    assert set(frame["BaseMapID"]) == {"WV02 20230801"}
    assert set(frame["BaseMapResolution"]) == {4.0}
    for note, slump in zip(frame["Notes"], before.itertuples(), strict=True):
        assert slump.id in note
        assert f"score {slump.score:.3f}" in note
    centroids = frame.to_crs(POLAR.proj).centroid.to_crs(4326)
    assert centroids.x.to_numpy() == pytest.approx(frame["CentroidLon"].to_numpy(), abs=1e-4)
    assert centroids.y.to_numpy() == pytest.approx(frame["CentroidLat"].to_numpy(), abs=1e-4)


def test_the_uid_is_that_of_the_required_fields_as_one_text(map_path, tmp_path):
    # As ARTS' seed_gen makes it: no separators, resolutions that are whole without decimals.
    arts(map_path, tmp_path / "whole.geojson")
    arts(map_path, tmp_path / "half.geojson", {**GIVEN, "BaseMapResolution": "0.5"})
    for name, metres in (("whole", "4"), ("half", "0.5")):
        for row in json.loads((tmp_path / f"{name}.geojson").read_text(encoding="utf-8"))["features"]:
            told = row["properties"]
            seed = (
                f"{told['CentroidLat']}{told['CentroidLon']}Banks IslandA. Näme, University of Б"
                f"2023-07-01,2023-08-31WorldView-2{metres}PositivePolygon"
            )
            assert told["UID"] == str(uuid.uuid5(uuid.NAMESPACE_DNS, seed))


def reviewed(map_path):
    layers = read_layers(map_path)
    verdicts = ["accepted", "rejected", None] + ["accepted"] * (len(layers.footprints) - 3)
    footprints = layers.footprints.assign(**{REVIEW_COLUMN: verdicts, COMMENT_COLUMN: None})
    write_layers(map_path, MapLayers(footprints, layers.coverage, layers.run_record), overwrite=True)
    return footprints


def test_what_was_rejected_is_no_slump_for_arts(map_path, tmp_path):
    footprints = reviewed(map_path)
    notes = arts(map_path, tmp_path / "arts.geojson")
    frame = geopandas.read_file(tmp_path / "arts.geojson")
    assert len(frame) == 10
    assert not frame["Notes"].str.contains(footprints["id"][1]).any()
    assert notes == (
        "ARTS: 1 rejected footprints left out",
        "ARTS: accepted by nobody yet: 1 of 10 footprints",
    )


def test_arts_takes_dates_that_people_made_days_of(map_path, tmp_path):
    layers = read_layers(map_path)
    days = pd.Series(pd.to_datetime(["2020-07-05"] * len(layers.footprints)))
    write_layers(tmp_path / "days.gpkg", replace(layers, footprints=layers.footprints.assign(acquired=days)))
    fields = {name: value for name, value in GIVEN.items() if name != "BaseMapDate"}
    arts(tmp_path / "days.gpkg", tmp_path / "arts.geojson", fields)
    features = json.loads((tmp_path / "arts.geojson").read_text())["features"]
    assert {feature["properties"]["BaseMapDate"] for feature in features} == {"2020-07-05"}


def test_arts_takes_date_and_id_of_the_scene_where_the_map_knows_them(map_path, tmp_path):
    layers = read_layers(map_path)
    known = {"acquisition": {"acquired": "2013-04-26T22:43:06Z", "scene_id": "1030010020A45200"}}
    record = {**layers.run_record, **known}
    write_layers(map_path, MapLayers(layers.footprints, layers.coverage, record), overwrite=True)
    fields = {name: text for name, text in GIVEN.items() if name != "BaseMapDate"}
    arts(map_path, tmp_path / "arts.geojson", fields)
    frame = geopandas.read_file(tmp_path / "arts.geojson")
    assert set(frame["BaseMapDate"].astype(str)) == {"2013-04-26"}
    assert set(frame["BaseMapID"]) == {"1030010020A45200"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({**GIVEN, "RegionName": " "}, "ARTS wants RegionName, which the map does not know"),
        ({}, "ARTS wants RegionName, CreatorLab, BaseMapDate, BaseMapSource"),
        ({**GIVEN, "UID": "x"}, "UID cannot be given"),
        ({**GIVEN, "BaseMapDate": "1.8.2023"}, "wanted YYYY-MM-DD"),
        ({**GIVEN, "BaseMapDate": "20230801"}, "wanted YYYY-MM-DD"),
        ({**GIVEN, "ContributionDate": "2024-W31-4"}, "wanted YYYY-MM-DD"),
        ({**GIVEN, "BaseMapDate": "2023-09-01,2023-08-01"}, "first and last of a range"),
        ({**GIVEN, "BaseMapResolution": "four"}, "wanted metres"),
        ({**GIVEN, "BaseMapResolution": "nan"}, "wanted metres"),
    ],
)
def test_arts_refuses_what_the_data_set_would(map_path, tmp_path, fields, sentence):
    with pytest.raises(OptionsError, match=re.escape(sentence)):
        arts(map_path, tmp_path / "arts.geojson", fields)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# Permafrost Discovery Gateway: the assumptions in the README of its viz-staging


def test_pdg_is_single_valid_polygons_without_missing_numbers(map_path, tmp_path):
    notes = export_profile(map_path, tmp_path / "slumps.gpkg", "pdg")
    assert [name for name, _ in pyogrio.list_layers(tmp_path / "slumps.gpkg")] == ["slumps"]
    frame, before = geopandas.read_file(tmp_path / "slumps.gpkg"), read_map(map_path)
    assert set(frame.geom_type) == {"Polygon"}
    assert frame.is_valid.all()
    assert frame.crs == before.crs
    assert not any(name.startswith("staging_") for name in frame.columns)
    numbers = frame.select_dtypes("number")
    assert np.isfinite(numbers).all(axis=None)
    assert (frame["relief_m"] == PDG_UNKNOWN).sum() >= before["relief_m"].isna().sum()
    assert frame["area_m2"].sum() == pytest.approx(before["area_m2"].sum(), rel=1e-9)
    assert "slumps of several pieces are 3 rows more" in notes[0]
    assert "-9999" in notes[1]
    assert_same_geometries(
        [shapely.union_all(list(part)) for _, part in frame.groupby("id", sort=False).geometry],
        [shapely.union_all([shape]) for shape in before.geometry],
    )


def test_pdg_is_of_a_version_that_older_programs_read(map_path, tmp_path):
    export_profile(map_path, tmp_path / "pdg.gpkg", "pdg")
    with sqlite3.connect(tmp_path / "pdg.gpkg") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (10200,)
    database.close()


def test_pdg_coverage_is_the_outline_that_deduplication_wants(map_path, tmp_path):
    export_profile(map_path, tmp_path / "slumps.gpkg", "pdg", layer=COVERAGE_LAYER)
    frame, before = geopandas.read_file(tmp_path / "slumps.gpkg"), read_map(map_path, COVERAGE_LAYER)
    assert set(frame.geom_type) == {"Polygon"}
    assert set(frame["date"]) == {"2026-11-22"}  # what keep_rules rank files by
    mapped = before[before["status"] == "mapped"]
    assert frame.area.sum() == pytest.approx(mapped.area.sum())


# The GeoAI Arctic Challenge: the requirements of its submission page


def assert_a_submission(results, sizes):
    assert isinstance(results, list)
    for result in results:
        assert set(result) == {"image_id", "category_id", "segmentation", "score"}
        assert type(result["image_id"]) is int
        assert result["category_id"] == 1
        assert isinstance(result["score"], float)
        assert 0 <= result["score"] <= 1
        runs = result["segmentation"]
        assert isinstance(runs["counts"], str)
        assert runs["size"] == list(sizes[result["image_id"]])


def inside(outline, grid):
    """Pixels whose centre lies in an outline on the ground, one by one."""
    rows, cols = np.mgrid[: grid.shape[0], : grid.shape[1]]
    x, y = grid.affine * (cols + 0.5, rows + 0.5)
    return shapely.contains_xy(outline, x, y)


def decoded(result):
    with warnings.catch_warnings():
        # pycocotools speaks to numpy 2 as to numpy 1
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(result["segmentation"]).astype(bool)


def test_challenge_results_are_the_maps_outlines(map_path, tmp_path):
    export_profile(map_path, tmp_path / "a.json", "challenge")
    results = json.loads((tmp_path / "a.json").read_text())
    assert_a_submission(results, {1: GRID.shape})
    wanted = read_map(map_path).sort_values("score", ascending=False, kind="stable")
    masks = [inside(shape, GRID) for shape in wanted.geometry]
    assert len(results) == sum(mask.any() for mask in masks) < len(masks) + 1
    for result, mask in zip(results, masks, strict=False):
        assert (decoded(result) == mask).all()
    assert [result["score"] for result in results] == sorted((r["score"] for r in results), reverse=True)


def test_challenge_results_can_be_on_chips(map_path, tmp_path):
    grids = {3: GRID[0:120, 0:160], 8: GRID[60:200, 100:390]}
    index = Polygons(
        tuple(grid.extent.geom for grid in grids.values()),
        POLAR,
        {
            "chip": list(grids),
            "height": [grid.shape[0] for grid in grids.values()],
            "width": [grid.shape[1] for grid in grids.values()],
        },
    )
    (tmp_path / "chips").mkdir()
    write_polygons(tmp_path / "chips" / "chips.parquet", index)
    options = ProfileOptions(chips=tmp_path / "chips")
    notes = export_profile(
        map_path, tmp_path / "a.json", "challenge", options=options, select=Selection(min_score=0.5)
    )
    results = json.loads((tmp_path / "a.json").read_text())
    assert_a_submission(results, {number: grid.shape for number, grid in grids.items()})
    assert notes == (f"challenge: {len(results)} results on 2 images",)
    slumps = read_map(map_path)
    slumps = slumps[slumps["score"] >= 0.5]
    for number, grid in grids.items():
        found = [decoded(r) for r in results if r["image_id"] == number]
        assert np.any(found, axis=0).sum() == inside(shapely.union_all(slumps.geometry), grid).sum() > 0


def test_a_map_without_slumps_is_an_empty_submission(tmp_path):
    write_map(tmp_path / "map.gpkg", [], POLAR, [], RECORD)
    export_profile(tmp_path / "map.gpkg", tmp_path / "a.json", "challenge")
    assert json.loads((tmp_path / "a.json").read_text()) == []


@pytest.mark.parametrize("profile", ["stac", "challenge"])
def test_what_is_of_one_scene_cannot_be_of_many(tmp_path, profile):
    record = {"scenes": [{"name": "a"}, {"name": "b"}]}
    write_map(tmp_path / "many.gpkg", footprints(2), POLAR, coverage(), record)
    with pytest.raises(InputError, match=r"a map of 2 scenes.*RUN/SCENE/map\.gpkg"):
        export_profile(tmp_path / "many.gpkg", tmp_path / "x.json", profile)


@pytest.mark.parametrize("box", [(0, 0, 7, 5), (2, 1, 3, 2), (0, 0, 1, 5), (6, 4, 7, 5), (-3, -3, 2, 9)])
def test_run_lengths_at_the_corners_of_an_image(box):
    result = coco_result(1, shapely.box(*box), (5, 7), 0.5)
    wanted = inside(shapely.box(*box), GeoBox((5, 7), GRID.affine.identity(), None))
    assert (decoded(result) == wanted).all()
    assert coco_result(1, shapely.box(2.6, 2.6, 3.4, 3.4), (5, 7), 0.5) is None


def test_slumps_added_by_hand_are_in_profiles_that_want_no_score(map_path, tmp_path):
    drawn = blob(0, -1_999_500, 999_500)
    add_by_hand(map_path, drawn)
    arts(map_path, tmp_path / "a.geojson")
    row = geopandas.read_file(tmp_path / "a.geojson", engine="pyogrio").iloc[-1]
    assert row["Area"] == pytest.approx(geodesic_area_m2(drawn, POLAR), abs=0.1)
    assert row["Notes"].endswith("added by hand")
    assert export_profile(map_path, tmp_path / "a.json", "challenge")[1].startswith(
        "challenge: left out: 1 footprint "
    )
    assert "NaN" not in (tmp_path / "a.json").read_text()


# Maps of many scenes


@pytest.fixture
def many(tmp_path):
    """A map of two scenes of different years, of whose four footprints the second gives way to the first."""
    west, north = -2_000_000, 1_000_000
    made = [
        footprint(
            blob(0, west + 300 * k, north),
            number=k,
            scene_id=f"scene {k // 2}",
            acquired=f"{2021 + k}-08-01T10:00:00Z",
        )
        for k in range(4)
    ]
    path = tmp_path / "in" / "many.gpkg"
    path.parent.mkdir()
    record = {"scenes": [{"name": "a"}, {"name": "b"}], "model": RECORD["plan"]["model"]}
    write_map(path, made, POLAR, coverage(), record)
    layers = read_layers(path)
    frame = layers.footprints.assign(superseded_by=None)
    frame.loc[frame["id"] == made[1].id, "superseded_by"] = made[0].id
    write_layers(path, MapLayers(frame, layers.coverage, layers.run_record), overwrite=True)
    return path


def test_what_gave_way_is_in_no_profile(many, tmp_path):
    fields = {name: text for name, text in GIVEN.items() if name != "BaseMapDate"}
    notes = arts(many, tmp_path / "a.geojson", fields)
    assert notes[0] == "left out: 1 footprint that gave way to those of other scenes"
    rows = geopandas.read_file(tmp_path / "a.geojson", engine="pyogrio")
    assert sorted(str(date)[:10] for date in rows["BaseMapDate"]) == [
        "2021-08-01",
        "2023-08-01",
        "2024-08-01",
    ]
    assert sorted(rows["BaseMapID"]) == ["scene 0", "scene 1", "scene 1"]
    assert set(rows["BaseMapResolution"]) == {4}
    assert all("model rts-starter 0.3.0" in note for note in rows["Notes"])
    export_profile(many, tmp_path / "a.gpkg", "pdg")
    assert len(geopandas.read_file(tmp_path / "a.gpkg", engine="pyogrio")) == 3


# All of them


def test_what_a_profile_cannot_be_told_is_refused(map_path, tmp_path):
    with pytest.raises(OptionsError, match="wanted one of arts, pdg, challenge, stac"):
        export_profile(map_path, tmp_path / "a.json", "coco")
    with pytest.raises(OptionsError, match=r"is written as \.geojson"):
        export_profile(map_path, tmp_path / "a.shp", "arts")
    with pytest.raises(OptionsError, match="takes no fields"):
        export_profile(map_path, tmp_path / "a.gpkg", "pdg", options=ProfileOptions(GIVEN))
    with pytest.raises(OptionsError, match="knows no chips"):
        export_profile(map_path, tmp_path / "a.gpkg", "pdg", options=ProfileOptions(chips=tmp_path))
    with pytest.raises(OptionsError, match="has no layer 'coverage'"):
        export_profile(map_path, tmp_path / "a.json", "challenge", layer=COVERAGE_LAYER)
    (tmp_path / "a.json").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        export_profile(map_path, tmp_path / "a.json", "challenge")
    write_map(tmp_path / "old.gpkg", footprints(2), POLAR, [], {})
    with pytest.raises(InputError, match="the map's record has no grid"):
        export_profile(tmp_path / "old.gpkg", tmp_path / "b.json", "challenge")
    (tmp_path / "chips.parquet").write_text("garbage")
    chips = ProfileOptions(chips=tmp_path / "chips.parquet")
    with pytest.raises(InputError, match="cannot be read as the index of chips"):
        export_profile(map_path, tmp_path / "b.json", "challenge", options=chips)


def test_a_profile_never_takes_the_place_of_its_map(map_path):
    before = map_path.read_bytes()
    with pytest.raises(InputError, match="would be replaced"):
        export_profile(map_path, map_path, "pdg", overwrite=True)
    assert map_path.read_bytes() == before
