"""What people have put into a map outlives its being made again: in the new map, or in a copy beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace

import geopandas
import pyogrio
import pytest
import shapely
import shapely.affinity

from rtsmap.errors import InputError
from rtsmap.vectors import handiwork
from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER, read_map, write_map
from rtsmap.vectors.united import SceneMap, unite_maps
from tests.vectors.samples import POLAR, RECORD, add_by_hand, blob, coverage, footprints

KEPT = "map.replaced.gpkg"


@pytest.fixture
def map_path(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    return tmp_path / "map.gpkg"


def change(path, sql, *values):
    with closing(sqlite3.connect(path)) as database, database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute(sql, values)


def review(path, written):
    """Write reviews and comments by id, as `rtsmap review apply` does."""
    for column in ("review", "review_comment"):
        change(path, f"ALTER TABLE rts_footprints ADD COLUMN {column} TEXT")
    for identity, (said, remark) in written.items():
        change(
            path,
            "UPDATE rts_footprints SET review = ?, review_comment = ? WHERE id = ?",
            said,
            remark,
            identity,
        )


def again(path, made=None):
    made = footprints() if made is None else made
    return write_map(path, made, POLAR, coverage(), RECORD, overwrite=True).notes


def content(path):
    with closing(sqlite3.connect(path)) as database:
        return list(database.iterdump())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_reviews_are_in_the_map_that_is_made_again(map_path, tmp_path):
    ids = [one.id for one in footprints()]
    written = {ids[0]: ("accepted", None), ids[1]: ("rejected", "a lake, “Озеро”"), ids[2]: (None, "odd")}
    review(map_path, written)
    (note,) = again(map_path, footprints()[::-1])
    assert note == f"{map_path}: 3 reviews of the map that was replaced went over"
    rows = read_map(map_path).set_index("id")[["review", "review_comment"]].dropna(how="all")
    assert rows.astype(object).where(rows.notna(), None).T.to_dict("list") == {
        key: list(said) for key, said in written.items()
    }
    assert names(tmp_path) == ["map.gpkg"]
    with closing(sqlite3.connect(map_path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_map_that_nobody_touched_is_replaced_and_leaves_nothing(map_path, tmp_path):
    assert again(map_path) == ()
    assert again(map_path, []) == ()
    assert names(tmp_path) == ["map.gpkg"]


def add_a_layer(path):
    mine = geopandas.GeoDataFrame({"note": ["mine"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=POLAR.proj)
    pyogrio.write_dataframe(mine, path, layer="field sites", driver="GPKG")


def reshape(path):
    stored = pyogrio.read_dataframe(path, layer=FOOTPRINT_LAYER)
    stored.loc[3, "geometry"] = shapely.affinity.scale(stored.geometry[3], 1.2, 1.2)
    pyogrio.write_dataframe(stored, path, layer=FOOTPRINT_LAYER, promote_to_multi=True)


def split(path):
    stored = pyogrio.read_dataframe(path, layer=FOOTPRINT_LAYER)
    half = stored.iloc[[3]].copy()
    left, bottom, right, top = half.total_bounds
    half.geometry = half.geometry.intersection(shapely.box((left + right) / 2, bottom, right, top))
    pyogrio.write_dataframe(half, path, layer=FOOTPRINT_LAYER, append=True, promote_to_multi=True)


def add_a_column(path):
    change(path, 'ALTER TABLE rts_footprints ADD COLUMN "the ""owner""" TEXT')
    change(path, 'UPDATE rts_footprints SET "the ""owner""" = \'Ж\' WHERE fid = 2')


def add_a_project(path):
    # as QGIS stores it, without a word in the tables of the standard
    change(path, "CREATE TABLE qgis_projects (name TEXT PRIMARY KEY, metadata BLOB, content BLOB)")
    change(path, "INSERT INTO qgis_projects VALUES ('slumps', NULL, x'00')")


def add_a_style(path):
    change(path, "UPDATE layer_styles SET styleName = 'my own' WHERE f_table_name = 'coverage'")


def delete(path):
    change(path, "DELETE FROM rts_footprints WHERE fid = 5")


WORKS = [
    (lambda path: add_by_hand(path, blob(3, -1_990_000, 999_000)), "1 outline drawn or changed by hand"),
    (split, "1 outline drawn or changed by hand"),
    (reshape, "1 outline drawn or changed by hand"),
    (delete, "1 row deleted by hand"),
    (add_a_column, 'the column the "owner"'),
    (add_a_layer, "the layer field sites"),
    (add_a_project, "the layer qgis_projects"),
    (add_a_style, "the style coverage my own"),
    (
        lambda path: review(path, {footprints()[11].id: ("accepted", "")}),
        "1 review of footprints that are gone",
    ),
]


@pytest.mark.parametrize(("work", "told"), WORKS)
def test_what_does_not_go_over_is_kept_beside_the_new_map_and_told(map_path, tmp_path, work, told):
    work(map_path)
    before = content(map_path)
    (note,) = again(map_path, footprints()[:11])
    assert told in note
    assert note.endswith(f"it is kept as {KEPT}")
    assert content(tmp_path / KEPT) == before
    assert len(read_map(map_path)) == 11
    assert again(map_path) == ()
    assert names(tmp_path) == ["map.gpkg", KEPT]


def test_a_copy_never_takes_the_place_of_another(map_path, tmp_path):
    for number in range(3):
        add_by_hand(map_path, blob(number, -1_990_000, 999_000))
        again(map_path)
    assert names(tmp_path) == ["map.gpkg", "map.replaced-2.gpkg", "map.replaced-3.gpkg", KEPT]


def test_what_is_still_in_the_journal_goes_over_and_is_kept(map_path, tmp_path):
    # QGIS keeps maps that it has open in this mode
    with closing(sqlite3.connect(map_path)) as open_elsewhere:
        open_elsewhere.execute("PRAGMA journal_mode = WAL")
        review(map_path, {footprints()[0].id: ("accepted", None)})
        with open_elsewhere:
            open_elsewhere.execute("UPDATE layer_styles SET styleName = 'just now'")
        again(map_path)
    assert read_map(map_path)["review"].tolist().count("accepted") == 1
    with closing(sqlite3.connect(tmp_path / KEPT)) as database:
        assert set(database.execute("SELECT styleName FROM layer_styles")) == {("just now",)}


def test_a_damaged_map_is_kept_as_nobody_knows_what_is_in_it(map_path, tmp_path):
    damaged = map_path.read_bytes()[:5000]
    map_path.write_bytes(damaged)
    (note,) = again(map_path)
    assert "had something that cannot be read" in note
    assert (tmp_path / KEPT).read_bytes() == damaged
    assert len(read_map(map_path)) == 12


def test_a_map_that_another_program_has_locked_is_kept(map_path, tmp_path, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(handiwork.sqlite3, "connect", lambda path: connect(path, timeout=0.1))
    before = content(map_path)
    with closing(connect(map_path, isolation_level=None)) as open_elsewhere:
        open_elsewhere.execute("BEGIN EXCLUSIVE")
        (note,) = again(map_path)
    assert "had something that cannot be read (database is locked)" in note
    assert content(tmp_path / KEPT) == before


@pytest.mark.parametrize("text", [b"", b"no GeoPackage"])
def test_what_is_no_geopackage_is_replaced_as_asked(tmp_path, text):
    (tmp_path / "map.gpkg").write_bytes(text)
    assert again(tmp_path / "map.gpkg") == ()
    assert names(tmp_path) == ["map.gpkg"]


def test_a_geopackage_of_the_users_is_kept(tmp_path):
    add_a_layer(tmp_path / "map.gpkg")
    before = content(tmp_path / "map.gpkg")
    again(tmp_path / "map.gpkg")
    assert content(tmp_path / KEPT) == before


def test_the_old_map_stays_where_no_copy_can_be_kept(map_path, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    map_path.write_bytes(map_path.read_bytes()[:5000])
    before = map_path.read_bytes()
    monkeypatch.setattr(handiwork.shutil, "copyfile", fail)
    with pytest.raises(InputError, match=r"no copy can be kept beside it: .*No space left"):
        again(map_path)
    assert map_path.read_bytes() == before
    assert names(tmp_path) == ["map.gpkg"]


def test_a_map_of_many_scenes_keeps_its_own_reviews_before_those_of_the_scenes(tmp_path):
    first, second = footprints(2)
    scene = tmp_path / "scene.gpkg"
    write_map(scene, [first, replace(second, scene_id="scene")], POLAR, coverage(), {})
    out = tmp_path / "map.gpkg"
    scenes = [SceneMap(scene, "scene", None)]
    unite_maps(scenes, out, rule="best", record={})
    review(out, {first.id: ("accepted", None)})
    united = unite_maps(scenes, out, rule="best", record={}, overwrite=True)
    assert united.notes == (f"{out}: 1 review of the map that was replaced went over",)
    review(scene, {first.id: ("rejected", None), second.id: ("accepted", None)})
    (note,) = unite_maps(scenes, out, rule="best", record={}, overwrite=True).notes
    assert "1 review with another verdict or comment" in note
    assert read_map(tmp_path / KEPT).set_index("id")["review"][first.id] == "accepted"
    assert read_map(out).set_index("id")["review"].to_dict() == {first.id: "rejected", second.id: "accepted"}


def test_an_export_says_what_its_map_says_and_another_copy_is_not_lost(map_path, tmp_path):
    add_by_hand(map_path, blob(3, -1_990_000, 999_000))
    out = tmp_path / "out.gpkg"
    export_map(map_path, out)
    # what was drawn by hand is in the new one as well
    assert export_map(map_path, out, overwrite=True) == ()
    review(out, {footprints()[0].id: ("accepted", None)})
    (note,) = export_map(map_path, out, select=Selection(min_score=0.1), overwrite=True)
    assert "had 1 review with another verdict or comment" in note
    assert "review" not in read_map(out)
    assert "accepted" in read_map(tmp_path / "out.replaced.gpkg")["review"].tolist()
