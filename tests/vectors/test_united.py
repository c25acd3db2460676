from __future__ import annotations

import json
from dataclasses import replace

import geopandas
import pytest
import shapely
from odc.geo.crs import CRS

from rtsmap.instances.coverage import MAPPED, CoverageArea
from rtsmap.vectors.export import export_map
from rtsmap.vectors.formats import DRIVERS
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map, write_map
from rtsmap.vectors.reviews import FORMAT, apply_review
from rtsmap.vectors.united import SUPERSEDED, SceneMap, read_slumps, standing, unite_maps
from tests.vectors.samples import POLAR, UTM, coverage, footprints

EAST = CRS("EPSG:32612")


def test_ground_of_scenes_in_other_zones_keeps_its_outline(tmp_path):
    grounds = {UTM: shapely.box(400_000, 7_700_000, 440_000, 7_800_000)}
    grounds[EAST] = shapely.box(480_000, 7_700_000, 520_000, 7_800_000)
    maps = []
    for name, (crs, ground) in zip("ab", grounds.items(), strict=True):
        write_map(tmp_path / f"{name}.gpkg", [], crs, [CoverageArea(ground, MAPPED, "", 4e9)], {})
        maps.append(SceneMap(tmp_path / f"{name}.gpkg", name, None))
    unite_maps(maps, tmp_path / "all.gpkg", rule="best", record={})
    (united,) = read_map(tmp_path / "all.gpkg", COVERAGE_LAYER).geometry
    true = [
        geopandas.GeoSeries([ground], crs=crs.proj).segmentize(100).to_crs(3413).iloc[0]
        for crs, ground in grounds.items()
    ]
    # straight from corner to corner they would lie some metres off
    assert shapely.hausdorff_distance(united.boundary, shapely.union_all(true).boundary) < 1


def test_what_is_united_has_scene_and_date_of_one_of_its_parts(tmp_path):
    maps = []
    for name, date, score in (("old", "2020-07-01", 0.9), ("new", "2021-07-01", 0.8)):
        slumps = [replace(one, scene_id=name, acquired=date, score=score) for one in footprints(4)]
        write_map(tmp_path / f"{name}.gpkg", slumps, POLAR, coverage(), {})
        maps.append(SceneMap(tmp_path / f"{name}.gpkg", name, date))
    unite_maps(maps, tmp_path / "all.gpkg", rule="union", record={})
    stands = standing(read_map(tmp_path / "all.gpkg"))
    assert set(zip(stands["scene_id"], stands["acquired"], strict=True)) == {("old", "2020-07-01")}
    assert len(stands) == 4


def test_a_newer_scene_that_saw_nothing_is_named_as_footprints_name_it(tmp_path):
    for name, slumps in (("old", footprints(4)), ("new", [])):
        record = {"acquisition": {"scene_id": f"1030_{name}"}}
        ground = [CoverageArea(shapely.box(-2_001_000, 998_000, -1_997_000, 1_001_000), MAPPED, "", 1e7)]
        write_map(tmp_path / f"{name}.gpkg", slumps, POLAR, ground, record)
    maps = [
        SceneMap(tmp_path / f"{name}.gpkg", name, day) for name, day in (("old", "2020"), ("new", "2021"))
    ]
    unite_maps(maps, tmp_path / "all.gpkg", rule="newest", record={})
    assert read_map(tmp_path / "all.gpkg")[SUPERSEDED].tolist() == ["1030_new"] * 4


@pytest.mark.parametrize("suffix", [suffix for suffix in DRIVERS if suffix != ".csv"])
def test_what_was_rejected_or_gives_way_is_no_slump_of_labels(tmp_path, suffix):
    write_map(tmp_path / "one.gpkg", footprints(6), POLAR, coverage(), {})
    scenes = [SceneMap(tmp_path / "one.gpkg", name, None) for name in "ab"]
    unite_maps(scenes, tmp_path / "all.gpkg", rule="best", record={})
    stands = standing(read_map(tmp_path / "all.gpkg"))
    verdicts = zip(stands["id"], ["accepted", "rejected", None, "accepted", "rejected", None], strict=True)
    rows = [{"id": identity, "review": verdict} for identity, verdict in verdicts]
    (tmp_path / "review.json").write_text(json.dumps({"format": FORMAT, "reviews": rows}))
    apply_review(tmp_path / "all.gpkg", tmp_path / "review.json")
    export_map(tmp_path / "all.gpkg", tmp_path / f"labels{suffix}")
    labels = read_slumps(tmp_path / f"labels{suffix}")
    assert labels.notes == (
        "2 of 12 features rejected by a review, left out",
        "6 of 12 features that give way to others, left out",
    )
    wanted = stands.geometry.iloc[[0, 2, 3, 5]]
    found = geopandas.GeoSeries(labels.geometries, crs=labels.crs.proj).to_crs(POLAR.proj)
    assert sorted(found.area.round()) == sorted(wanted.area.round())
    assert {len(values) for values in labels.columns.values()} == {4}
