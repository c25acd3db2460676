"""Reviews are written into a map, whole or not at all, and nothing else of it changes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing

import geopandas
import pandas as pd
import pyogrio
import pytest
import shapely

from rtsmap.errors import InputError
from rtsmap.vectors import reviews
from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map, read_run_record, write_map
from rtsmap.vectors.reviews import FORMAT, apply_review
from tests.vectors.samples import POLAR, coverage, footprints

RECORD = {"plan_sha256": "abc", "rtsmap_version": "0.1.0"}
HOSTILE = '\'; DROP TABLE rts_footprints; -- <script> "Ж" \n🛰'


@pytest.fixture
def map_path(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    return tmp_path / "map.gpkg"


@pytest.fixture
def ids(map_path):
    return list(read_map(map_path)["id"])


def write_review(path, rows, **more):
    document = {"format": FORMAT, "map": "map.gpkg", "plan_sha256": "abc", "reviews": rows, **more}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def row(identity, review=None, comment=""):
    return {"id": identity, "review": review, "comment": comment}


def test_verdicts_and_comments_stand_in_their_columns(map_path, ids, tmp_path):
    rows = [row(ids[0], "accepted"), row(ids[1], "rejected", HOSTILE), row(ids[2], None, " look again ")]
    before = read_map(map_path)
    applied = apply_review(map_path, write_review(tmp_path / "r.json", rows))
    assert (applied.accepted, applied.rejected, applied.undecided, applied.commented) == (1, 1, 10, 2)
    assert applied.notes == ()
    after = read_map(map_path).set_index("id")
    assert [after["review"].get(i) for i in ids[:2]] == ["accepted", "rejected"]
    assert after["review"].isna().sum() == 10
    assert after.loc[ids[1], "review_comment"] == HOSTILE
    assert after.loc[ids[2], "review_comment"] == "look again"
    pd.testing.assert_frame_equal(
        pd.DataFrame(after.reset_index()[list(before.columns)].drop(columns="geometry")),
        pd.DataFrame(before.drop(columns="geometry")),
    )
    assert after.geometry.to_wkb().tolist() == before.geometry.to_wkb().tolist()
    assert len(read_map(map_path, COVERAGE_LAYER)) == 3
    assert read_run_record(map_path) == RECORD


def content(path):
    with closing(sqlite3.connect(path)) as database:
        return [
            line for line in database.iterdump() if "last_change" not in line and "gpkg_contents" not in line
        ]


def test_applying_twice_is_applying_once(map_path, ids, tmp_path):
    review = write_review(tmp_path / "r.json", [row(ids[0], "accepted", "ж"), row(ids[3], "rejected")])
    first = apply_review(map_path, review)
    once = read_map(map_path)
    assert apply_review(map_path, review) == first
    pd.testing.assert_frame_equal(pd.DataFrame(read_map(map_path)), pd.DataFrame(once))


def test_a_second_review_changes_only_what_it_names(map_path, ids, tmp_path):
    apply_review(map_path, write_review(tmp_path / "a.json", [row(i, "accepted", "a") for i in ids]))
    applied = apply_review(
        map_path, write_review(tmp_path / "b.json", [row(ids[4], "rejected"), row(ids[5])])
    )
    assert (applied.accepted, applied.rejected, applied.undecided, applied.commented) == (10, 1, 1, 10)
    assert apply_review(map_path, write_review(tmp_path / "c.json", [])) == applied


def test_layers_and_styles_of_the_users_stay(map_path, ids, tmp_path):
    mine = geopandas.GeoDataFrame({"note": ["mine"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=POLAR.proj)
    pyogrio.write_dataframe(mine, map_path, layer="field sites", driver="GPKG")
    with closing(sqlite3.connect(map_path)) as database, database:
        database.execute("UPDATE layer_styles SET description = 'my own'")
    apply_review(map_path, write_review(tmp_path / "r.json", [row(ids[0], "accepted")]))
    assert pyogrio.read_dataframe(map_path, layer="field sites")["note"].tolist() == ["mine"]
    with closing(sqlite3.connect(map_path)) as database:
        assert set(database.execute("SELECT description FROM layer_styles")) == {("my own",)}
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_is_still_in_the_journal_is_not_lost(map_path, ids, tmp_path):
    # QGIS keeps maps that it has open in this mode
    with closing(sqlite3.connect(map_path)) as open_elsewhere:
        open_elsewhere.execute("PRAGMA journal_mode = WAL")
        with open_elsewhere:
            open_elsewhere.execute("UPDATE layer_styles SET description = 'just now'")
        apply_review(map_path, write_review(tmp_path / "r.json", [row(ids[0], "accepted")]))
    with closing(sqlite3.connect(map_path)) as database:
        assert set(database.execute("SELECT description FROM layer_styles")) == {("just now",)}


@pytest.mark.skipif(not shutil.which("ogrinfo"), reason="GDAL's command line tools are not installed")
def test_ogrinfo_sees_the_new_columns(map_path, ids, tmp_path):
    apply_review(map_path, write_review(tmp_path / "r.json", [row(ids[0], "rejected", "ж")]))
    query = ["-sql", "SELECT count(*) AS n FROM rts_footprints WHERE review = 'rejected'"]
    done = subprocess.run(
        ["ogrinfo", str(map_path), *query], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    assert "n (Integer) = 1" in done.stdout


def test_rejected_footprints_can_be_left_out_of_exports(map_path, ids, tmp_path):
    apply_review(
        map_path, write_review(tmp_path / "r.json", [row(ids[0], "rejected"), row(ids[1], "accepted")])
    )
    export_map(map_path, tmp_path / "all.csv")
    export_map(map_path, tmp_path / "kept.csv", select=Selection(without_rejected=True))
    everything, kept = pd.read_csv(tmp_path / "all.csv"), pd.read_csv(tmp_path / "kept.csv")
    assert set(everything["id"]) - set(kept["id"]) == {ids[0]}
    assert {"review", "review_comment"} <= set(kept.columns)
    export_map(map_path, tmp_path / "all.shp")
    assert "rev_comm" in pyogrio.read_info(tmp_path / "all.shp")["fields"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("no such footprint", "accepted")], "1 of 1 footprints are not in"),
        ([row(None)], "wanted id, review and comment"),
        (["x"], "wanted id, review and comment"),
        ("x", "wanted a list `reviews`, got str"),
        ([row("0", "maybe")], "review is 'maybe'; wanted 'accepted', 'rejected' or null"),
        ([row("0", "accepted", 7)], "wanted a comment of at most"),
        ([row("0", "accepted", "x" * 10_001)], "wanted a comment of at most"),
        ([row("0"), row("0")], "a second one of footprint 0"),
    ],
)
def test_impossible_reviews_are_refused_and_change_nothing(map_path, ids, tmp_path, rows, sentence):
    before = map_path.read_bytes()
    if isinstance(rows, list):
        rows = [{**one, "id": ids[0]} if one != "x" and one["id"] == "0" else one for one in rows]
    with pytest.raises(InputError, match=sentence.replace("footprint 0", f"footprint {ids[0]}")):
        apply_review(map_path, write_review(tmp_path / "r.json", rows))
    assert map_path.read_bytes() == before


def test_other_files_are_no_reviews(map_path, tmp_path, monkeypatch):
    review = tmp_path / "r.json"
    with pytest.raises(InputError, match="cannot be read as a review"):
        apply_review(map_path, review)
    for text in (b"\xff\xfe", b"[]", b"{", b'{"format": "other"}'):
        review.write_bytes(text)
        with pytest.raises(InputError, match=r"is no review|cannot be read as a review"):
            apply_review(map_path, review)
    monkeypatch.setattr(reviews, "MAX_BYTES", 3)
    with pytest.raises(InputError, match="are no review"):
        apply_review(map_path, review)


def test_a_review_of_another_run_over_the_same_ground_is_told(map_path, ids, tmp_path):
    review = write_review(tmp_path / "r.json", [row(ids[0], "accepted")], plan_sha256="other")
    (note,) = apply_review(map_path, review).notes
    assert "is of another run over the same ground" in note


@pytest.mark.skipif(os.name == "nt", reason="links and modes are those of POSIX")
def test_the_map_itself_is_reviewed_where_a_link_is_named_and_stays_as_open_as_it_was(
    map_path, ids, tmp_path
):
    map_path.chmod(0o660)
    link = tmp_path / "link.gpkg"
    link.symlink_to(map_path)
    apply_review(link, write_review(tmp_path / "r.json", [row(ids[0], "rejected")]))
    assert link.is_symlink()
    assert read_map(map_path)["review"].tolist().count("rejected") == 1
    assert map_path.stat().st_mode & 0o777 == 0o660


def test_a_failure_in_the_middle_leaves_the_map_as_it_was(map_path, ids, tmp_path, monkeypatch):
    before = content(map_path)

    def fail(source, target, verdicts):
        original(source, target, verdicts)
        raise OSError(28, "No space left on device")

    original = reviews._write
    monkeypatch.setattr(reviews, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        apply_review(map_path, write_review(tmp_path / "r.json", [row(ids[0], "accepted")]))
    assert content(map_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.gpkg", "r.json"]
