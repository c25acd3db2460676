"""Columns that people add to a map are of the same kind, with the same values and gaps, wherever they go."""

from __future__ import annotations

import datetime as dt
import sqlite3
from contextlib import closing

import geopandas
import pyarrow as pa
import pyogrio
import pytest

from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER, read_map, write_map
from rtsmap.vectors.profiles import PDG_UNKNOWN, export_profile
from rtsmap.vectors.united import SceneMap, unite_maps
from tests.vectors.samples import POLAR, RECORD, coverage, footprints

UTC = dt.timezone.utc
ADDED = {
    "visited": ("DATE", "2020-07-05", dt.date(2020, 7, 5)),
    "seen_at": (
        "DATETIME",
        "2020-07-05T12:34:56.789Z",
        dt.datetime(2020, 7, 5, 12, 34, 56, 789000, tzinfo=UTC),
    ),
    "active": ("BOOLEAN", 0, False),
    "count": ("INTEGER", 2**53 + 1, 2**53 + 1),
    "rank": ("MEDIUMINT", 7, 7),
    "small": ("SMALLINT", -3, -3),
    "ratio": ("DOUBLE", 0.1, 0.1),
    "note": ("TEXT", "Ж", "Ж"),
    "photo": ("BLOB", b"\x01\x00", b"\x01\x00"),
    "planned": ("DATE", None, None),
    "empty": ("INTEGER", None, None),
}


@pytest.fixture
def map_path(tmp_path):
    """A map to which people have added columns, of which the second row alone has values."""
    path = tmp_path / "map.gpkg"
    write_map(path, footprints(4), POLAR, coverage(), RECORD)
    with closing(sqlite3.connect(path)) as database, database:
        for name in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
            database.create_function(name, 1, lambda _: 0)
        for name, (kind, value, _) in ADDED.items():
            database.execute(f'ALTER TABLE rts_footprints ADD COLUMN "{name}" {kind}')
            database.execute(f'UPDATE rts_footprints SET "{name}" = ? WHERE fid = 2', (value,))  # noqa: S608
    return path


def kinds(path, layer=None):
    info = pyogrio.read_info(path, layer=layer)
    return {
        name: str(kind) for name, kind in zip(info["fields"], info["dtypes"], strict=True) if name in ADDED
    }


def values(path, layer=None):
    """By column all values but the gaps, as Arrow has them."""
    _, table = pyogrio.read_arrow(path, layer=layer, columns=list(ADDED))
    rows = table.select(list(ADDED)).to_pydict()
    return {name: [value for value in column if value is not None] for name, column in rows.items()}


WANTED = {name: [] if value is None else [value] for name, (_, _, value) in ADDED.items()}


@pytest.mark.parametrize("crs", [None, "EPSG:4326"])
def test_a_map_that_is_exported_as_a_map_has_the_same_columns(map_path, tmp_path, crs):
    export_map(map_path, tmp_path / "out.gpkg", crs=crs)
    assert kinds(tmp_path / "out.gpkg", FOOTPRINT_LAYER) == kinds(map_path, FOOTPRINT_LAYER)
    assert values(tmp_path / "out.gpkg", FOOTPRINT_LAYER) == values(map_path, FOOTPRINT_LAYER) == WANTED
    export_map(map_path, tmp_path / "none.gpkg", select=Selection(min_area_m2=1e9), crs=crs)
    assert kinds(tmp_path / "none.gpkg", FOOTPRINT_LAYER) == kinds(map_path, FOOTPRINT_LAYER)


def test_geoparquet_has_the_same_columns(map_path, tmp_path):
    export_map(map_path, tmp_path / "out.parquet")
    table = pa.parquet.read_table(tmp_path / "out.parquet")
    types = [
        table.schema.field(name).type for name in ("visited", "active", "count", "rank", "small", "planned")
    ]
    assert types == [pa.date32(), pa.bool_(), pa.int64(), pa.int32(), pa.int16(), pa.date32()]
    rows = table.select(list(ADDED)).to_pydict()
    assert {name: [one for one in column if one is not None] for name, column in rows.items()} == WANTED


def test_flatgeobuf_has_the_same_columns_but_days_which_it_does_not_know(map_path, tmp_path):
    notes = export_map(map_path, tmp_path / "out.fgb")
    assert notes == ("FlatGeobuf: dates have a time, 00:00, in visited, planned",)
    days = dict.fromkeys(("visited", "planned"), "datetime64[ms]")
    assert kinds(tmp_path / "out.fgb") == {**kinds(map_path, FOOTPRINT_LAYER), **days}
    got = {name: [str(one) for one in column] for name, column in values(tmp_path / "out.fgb").items()}
    # Arrow reads it without its zone there
    times = {"visited": ["2020-07-05 00:00:00"], "seen_at": ["2020-07-05 12:34:56.789000"]}
    assert got == {name: [str(one) for one in column] for name, column in WANTED.items()} | times


@pytest.mark.filterwarnings("error")
def test_a_shapefile_has_days_and_whole_numbers_with_gaps(map_path, tmp_path):
    notes = export_map(map_path, tmp_path / "out.shp")
    assert "shapefile: times are texts in seen_at" in notes
    got = values(tmp_path / "out.shp")
    same = ("visited", "count", "rank", "small", "ratio", "note", "planned", "empty")
    assert {name: got[name] for name in same} == {name: WANTED[name] for name in same}
    assert got["active"] == [0]
    assert got["seen_at"] == ["2020-07-05T12:34:56.789000+00:00"]


@pytest.mark.parametrize("suffix", [".geojson", ".csv", ".kml"])
def test_texts_have_days_without_a_time_and_numbers_without_fractions(map_path, tmp_path, suffix):
    export_map(map_path, tmp_path / f"out{suffix}")
    text = (tmp_path / f"out{suffix}").read_text(encoding="utf-8")
    assert "2020-07-05" in text
    assert "2020-07-05T00" not in text
    assert "2020-07-05 00" not in text
    assert str(2**53 + 1) in text
    assert "7.0<" not in text.replace(",", "<")


@pytest.mark.parametrize("rule", ["best", "union"])
def test_a_map_of_many_has_the_columns_of_each(map_path, tmp_path, rule):
    write_map(tmp_path / "other.gpkg", footprints(6), POLAR, coverage(), RECORD)
    scenes = [SceneMap(map_path, "a", None), SceneMap(tmp_path / "other.gpkg", "b", None)]
    unite_maps(scenes, tmp_path / "all.gpkg", rule=rule, record={})
    assert kinds(tmp_path / "all.gpkg", FOOTPRINT_LAYER) == kinds(map_path, FOOTPRINT_LAYER)
    got = values(tmp_path / "all.gpkg", FOOTPRINT_LAYER)
    assert {name: column[:1] for name, column in got.items()} == WANTED


def test_the_gateway_gets_numbers_and_texts(map_path, tmp_path):
    export_profile(map_path, tmp_path / "pdg.gpkg", "pdg")
    frame = geopandas.read_file(tmp_path / "pdg.gpkg")
    assert frame.notna().all(axis=None)
    assert set(frame["count"]) == {2**53 + 1, int(PDG_UNKNOWN)}
    assert set(frame["visited"]) == {"2020-07-05", ""}


def test_columns_without_gaps_are_read_as_ever(tmp_path):
    path = tmp_path / "map.gpkg"
    write_map(path, footprints(4), POLAR, coverage(), RECORD)
    kinds_read = read_map(path).dtypes
    assert kinds_read["n_parts"] == "int64"
    assert kinds_read["seam_unconfirmed"] == "bool"
