"""A review counts however people have typed it; what is no verdict is told, and counts for nothing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtsmap.errors import InputError, LabelError
from rtsmap.runs.rejected import RejectedPlaces
from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import read_map, write_map
from rtsmap.vectors.profiles import ProfileOptions, export_profile
from rtsmap.vectors.reviews import FORMAT, apply_review
from rtsmap.vectors.united import read_slumps
from rtsmap.vectors.verdicts import notes_on_verdicts, plain_verdicts
from tests.vectors.samples import POLAR, RECORD, coverage, footprints

TYPED = ["Rejected", " rejected ", "REJECTED\n", "Accepted", "", None]
STRANGE = "'review' of 2 footprints is neither 'accepted' nor 'rejected' ('Rejectd', '?')"


def typed(path, values, column="review", kind="TEXT"):
    """A map in which somebody has typed these reviews, in QGIS say; gives the ids."""
    made = sorted(footprints(len(values)), key=lambda one: one.id)
    write_map(path, made, POLAR, coverage(), RECORD, overwrite=True)
    with closing(sqlite3.connect(path)) as database, database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        database.execute(f'ALTER TABLE rts_footprints ADD COLUMN "{column}" {kind}')
        rows = [(value, one.id) for value, one in zip(values, made, strict=True)]
        # SQLite takes large letters for small ones
        database.executemany("UPDATE rts_footprints SET review = ? WHERE id = ?", rows)
    return [one.id for one in made]


@given(st.text(), st.sampled_from(["accepted", "rejected"]), st.text(" \t\n"), st.booleans())
def test_blanks_and_letters_make_no_difference(other, verdict, blanks, large):
    said = blanks + (verdict.upper() if large else verdict.title()) + blanks
    assert plain_verdicts([said, None, float("nan"), blanks]) == [verdict, None, None, None]
    assert notes_on_verdicts([said, None, blanks]) == ()
    assert plain_verdicts([other]) == plain_verdicts(plain_verdicts([other]))


@pytest.mark.parametrize("column", ["review", "Review"])
def test_what_was_rejected_in_any_letters_is_rejected_everywhere(tmp_path, column):
    path = tmp_path / "map.gpkg"
    ids = typed(path, TYPED, column)
    reviews = read_map(path).set_index("id")["review"]
    assert [reviews[key] for key in ids] == ["rejected"] * 3 + ["accepted", None, None]
    export_map(path, tmp_path / "kept.gpkg", select=Selection(without_rejected=True))
    assert set(read_map(tmp_path / "kept.gpkg")["id"]) == set(ids[3:])
    assert read_slumps(path).notes == ("3 of 6 features rejected by a review, left out",)
    assert len(RejectedPlaces.read(path).polygons) == 3
    given = dict.fromkeys(("RegionName", "CreatorLab", "BaseMapSource"), "x") | {"BaseMapDate": "2020-07-05"}
    fields = ProfileOptions({**given, "BaseMapResolution": "4"})
    notes = export_profile(path, tmp_path / "arts.geojson", "arts", options=fields)
    assert notes[:2] == (
        "ARTS: 3 rejected footprints left out",
        "ARTS: accepted by nobody yet: 2 of 3 footprints",
    )
    review = {"format": FORMAT, "reviews": [{"id": ids[5], "review": "accepted", "comment": "ж"}]}
    (tmp_path / "r.json").write_text(json.dumps(review))
    applied = apply_review(path, tmp_path / "r.json")
    assert (applied.accepted, applied.rejected, applied.undecided, applied.commented) == (2, 3, 1, 1)


def test_what_is_no_verdict_is_told_wherever_it_is_read(tmp_path):
    path = tmp_path / "map.gpkg"
    ids = typed(path, ["Rejectd", "?", "rejected", " "])
    for out in ("all.gpkg", "all.csv", "all.shp"):
        assert any(STRANGE in note for note in export_map(path, tmp_path / out))
    assert any(STRANGE in note for note in export_profile(path, tmp_path / "pdg.gpkg", "pdg"))
    slumps = read_slumps(path)
    assert any(STRANGE in note for note in slumps.notes)
    assert len(slumps) == 3
    with pytest.raises(LabelError, match="'review' has"):
        RejectedPlaces.read(path)
    (tmp_path / "r.json").write_text(
        json.dumps({"format": FORMAT, "reviews": [{"id": ids[3], "review": None}]})
    )
    applied = apply_review(path, tmp_path / "r.json")
    assert any(STRANGE in note for note in applied.notes)
    assert (applied.accepted, applied.rejected, applied.undecided) == (0, 1, 3)


def test_a_review_does_not_go_into_a_column_of_numbers(tmp_path):
    path = tmp_path / "map.gpkg"
    ids = typed(path, [1, 5, None], kind="INTEGER")
    (tmp_path / "r.json").write_text(
        json.dumps({"format": FORMAT, "reviews": [{"id": ids[0], "review": None}]})
    )
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"its column 'review' is one of INTEGER.*give it another name"):
        apply_review(path, tmp_path / "r.json")
    assert path.read_bytes() == before
    (note,) = export_map(path, tmp_path / "out.gpkg")
    assert "'review' of 2 footprints is neither" in note
