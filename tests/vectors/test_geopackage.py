"""The map: what is written is read again, by us, by SQLite, by GDAL's own tool; or nothing is there."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS

from rtsmap.errors import InputError
from rtsmap.instances.attributes import Footprint
from rtsmap.instances.coverage import STATUSES
from rtsmap.vectors import geopackage
from rtsmap.vectors.geopackage import (
    COVERAGE_LAYER,
    FOOTPRINT_COLUMNS,
    FOOTPRINT_LAYER,
    RECORD_TABLE,
    read_map,
    read_run_record,
    to_geodataframe,
    write_map,
)
from rtsmap.vectors.labels import read_polygons
from rtsmap.vectors.qgis_style import SCORE_LIMITS, footprint_qml
from tests.vectors.samples import (
    LOCAL,
    POLAR,
    RECORD,
    UTM,
    assert_same_geometries,
    coverage,
    footprint,
    footprints,
    pixel_blob,
)


def query(path, sql):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


@pytest.fixture
def map_path(tmp_path):
    path = tmp_path / "Карта 1 — slumps.gpkg"
    write_map(path, footprints(), POLAR, coverage(), RECORD)
    return path


def test_every_field_of_a_footprint_is_a_column():
    assert list(FOOTPRINT_COLUMNS) == [
        field.name for field in dataclasses.fields(Footprint) if field.name not in ("polygon", "crs")
    ]


@pytest.mark.parametrize("crs", [POLAR, UTM, LOCAL], ids=["polar", "utm", "local"])
def test_footprints_are_read_as_they_were_written(tmp_path, crs):
    written = footprints(crs=crs)
    write_map(tmp_path / "map.gpkg", written, crs, [], {})
    read = read_map(tmp_path / "map.gpkg").set_index("id", drop=False).loc[[f.id for f in written]]
    assert read.crs.equals(crs.proj)
    assert_same_geometries(read.geometry, [f.polygon for f in written])
    frame = to_geodataframe(written, crs)
    for name in FOOTPRINT_COLUMNS:
        got, wanted = read[name].to_numpy(), frame[name].to_numpy()
        assert all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in zip(got, wanted, strict=True)), name


@settings(max_examples=25, deadline=None)
@given(seeds=st.lists(st.integers(0, 10_000), max_size=6, unique=True))
def test_content_and_order_do_not_depend_on_the_order_given(tmp_path_factory, seeds):
    folder = tmp_path_factory.mktemp("maps")
    made = [footprint(pixel_blob(s, 400 * (s % 7), 300 * (s % 5)), number=k) for k, s in enumerate(seeds)]
    write_map(folder / "a.gpkg", made, POLAR, [], RECORD)
    write_map(folder / "b.gpkg", made[::-1], POLAR, [], RECORD)
    a, b = read_map(folder / "a.gpkg"), read_map(folder / "b.gpkg")
    assert_same_geometries(a.geometry, b.geometry)
    pd.testing.assert_frame_equal(
        pd.DataFrame(a.drop(columns="geometry")), pd.DataFrame(b.drop(columns="geometry"))
    )
    assert sorted(a["id"]) == sorted(f.id for f in made)


def test_more_footprints_than_memory_should_hold_are_written_in_portions(tmp_path, monkeypatch):
    made = [footprint(pixel_blob(s, 400 * (s % 3), 300 * (s % 2)), number=s) for s in range(7)]
    write_map(tmp_path / "whole.gpkg", made, POLAR, coverage(), RECORD)
    monkeypatch.setattr(geopackage, "PORTION", 3)
    assert write_map(tmp_path / "map.gpkg", iter(made), POLAR, coverage(), RECORD).footprints == 7
    found, whole = (read_map(tmp_path / f"{name}.gpkg").set_index("id") for name in ("map", "whole"))
    pd.testing.assert_frame_equal(pd.DataFrame(found.loc[whole.index]), pd.DataFrame(whole))
    in_portions = [sorted(made[i : i + 3], key=geopackage._from_top_left) for i in (0, 3, 6)]
    assert found.index.tolist() == [one.id for portion in in_portions for one in portion]


def test_coverage_and_record_are_read_as_they_were_written(map_path):
    areas, read = coverage(), read_map(map_path, COVERAGE_LAYER)
    assert_same_geometries(read.geometry, [area.polygon for area in areas])
    assert read["status"].tolist() == [area.status for area in areas] == list(STATUSES[:3])
    assert read["reason"].tolist() == [area.reason for area in areas]
    assert read["area_m2"].tolist() == [area.area_m2 for area in areas]
    assert read_run_record(map_path) == RECORD


def test_a_record_may_hold_what_a_run_has(tmp_path):
    record = {
        "path": Path("a b.tif"),
        "n": np.int64(3),
        "score": np.float32(0.5),
        "gap": float("nan"),
        "t": (1, {2}),
    }
    write_map(tmp_path / "map.gpkg", [], POLAR, [], record)
    wanted = {"path": "a b.tif", "n": 3, "score": 0.5, "gap": None, "t": [1, [2]]}
    assert read_run_record(tmp_path / "map.gpkg") == wanted


def test_an_empty_map_has_all_layers_and_columns(tmp_path, map_path):
    path = tmp_path / "empty.gpkg"
    write_map(path, [], POLAR, [], {})
    for layer in (FOOTPRINT_LAYER, COVERAGE_LAYER, RECORD_TABLE):
        empty, full = (pyogrio.read_info(p, layer=layer) for p in (path, map_path))
        assert empty["features"] == 0
        for key in ("fields", "dtypes", "geometry_type", "crs"):
            assert np.array_equal(empty[key], full[key]), (layer, key)
    assert len(read_map(path)) == 0
    assert read_map(path).crs == POLAR.proj


def test_tables_are_registered_as_the_standard_wants(map_path):
    contents = dict(query(map_path, "SELECT table_name, data_type FROM gpkg_contents"))
    assert contents == {
        "rts_footprints": "features",
        "coverage": "features",
        "run_record": "attributes",
        "layer_styles": "attributes",
    }
    geometry = query(
        map_path, "SELECT table_name, column_name, geometry_type_name, z, m FROM gpkg_geometry_columns"
    )
    assert sorted(geometry) == [
        ("coverage", "geom", "MULTIPOLYGON", 0, 0),
        ("rts_footprints", "geom", "MULTIPOLYGON", 0, 0),
    ]
    assert query(map_path, "PRAGMA integrity_check") == [("ok",)]
    assert query(map_path, "PRAGMA foreign_key_check") == []


def test_qgis_finds_a_default_style_for_each_layer(map_path):
    # The columns that QgsOgrUtils::saveStyle makes, and the condition by which a style is looked up.
    columns = [row[1] for row in query(map_path, "PRAGMA table_info(layer_styles)")]
    assert columns == [
        "id", "f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName",
        "styleQML", "styleSLD", "useAsDefault", "description", "owner", "ui", "update_time",
    ]  # fmt: skip
    for layer, renderer in ((FOOTPRINT_LAYER, "graduatedSymbol"), (COVERAGE_LAYER, "categorizedSymbol")):
        found = query(
            map_path,
            "SELECT f_table_name, styleQML FROM layer_styles "
            "WHERE f_table_schema = '' AND f_geometry_column = 'geom' AND useAsDefault = 1",
        )
        (qml,) = [qml for table, qml in found if table == layer]
        element = ET.fromstring(qml).find("renderer-v2")  # noqa: S314
        assert element.get("type") == renderer
        symbols = {symbol.get("name") for symbol in element.find("symbols")}
        classes = element.find("ranges") if renderer == "graduatedSymbol" else element.find("categories")
        assert {entry.get("symbol") for entry in classes} == symbols


def test_every_score_and_status_has_one_class():
    ranges = ET.fromstring(footprint_qml()).find("renderer-v2/ranges")  # noqa: S314
    limits = [(float(entry.get("lower")), float(entry.get("upper"))) for entry in ranges]
    for score in (*SCORE_LIMITS, *np.linspace(0, 1, 997), np.nextafter(0.5, 0)):
        assert sum(lower <= score <= upper for lower, upper in limits) == 1
    categories = ET.fromstring(geopackage.coverage_qml()).find("renderer-v2/categories")  # noqa: S314
    assert [entry.get("value") for entry in categories] == list(STATUSES)


@pytest.mark.skipif(not shutil.which("ogrinfo"), reason="GDAL's command line tools are not installed")
def test_ogrinfo_reads_it_without_a_complaint(map_path):
    done = subprocess.run(
        ["ogrinfo", "-al", "-so", str(map_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    counts = dict(zip(
        [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("Layer name")],
        [int(line.split(": ")[1]) for line in done.stdout.splitlines() if line.startswith("Feature Count")],
        strict=True,
    ))  # fmt: skip
    assert counts == {"rts_footprints": 12, "coverage": 3, "run_record": 3, "layer_styles": 2}


def test_a_map_can_serve_as_labels(map_path):
    labels = read_polygons(map_path)
    assert len(labels) == 12
    assert set(labels.columns) == set(FOOTPRINT_COLUMNS)
    assert len(read_polygons(map_path, layer=COVERAGE_LAYER)) == 3


def test_a_map_is_not_replaced_unasked(map_path):
    before = map_path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_map(map_path, [], POLAR, [], {})
    assert map_path.read_bytes() == before
    write_map(map_path, [], POLAR, [], {}, overwrite=True)
    assert len(read_map(map_path)) == 0


@pytest.mark.parametrize("step", ["_write_spatial", "_write_table", "_check_written"])
def test_a_failure_while_writing_leaves_the_old_map(map_path, monkeypatch, step):
    before = map_path.read_bytes()
    calls = []

    def fail_the_second_time(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2 or step == "_check_written":
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    original = getattr(geopackage, step)
    monkeypatch.setattr(geopackage, step, fail_the_second_time)
    with pytest.raises((InputError, OSError), match="No space left"):
        write_map(map_path, footprints(3), POLAR, coverage(), {}, overwrite=True)
    assert map_path.read_bytes() == before
    assert [path.name for path in map_path.parent.iterdir()] == [map_path.name]


def test_a_file_that_lacks_rows_is_not_put_in_place(tmp_path, monkeypatch):
    original = geopackage._write_spatial
    monkeypatch.setattr(
        geopackage, "_write_spatial", lambda path, layer, frame, text: original(path, layer, frame[1:], text)
    )
    with pytest.raises(geopackage.RunError, match="not written as asked"):
        write_map(tmp_path / "map.gpkg", footprints(3), POLAR, coverage(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layer", [FOOTPRINT_LAYER, COVERAGE_LAYER])
def test_a_map_that_has_lost_a_geometry_is_refused(map_path, layer):
    with closing(sqlite3.connect(map_path)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(f"UPDATE {layer} SET geom = NULL WHERE fid = 1")  # noqa: S608
    with pytest.raises(InputError, match="1 row without geometry; delete what is empty"):
        read_map(map_path, layer)


def test_names_that_are_no_map_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"name it with \.gpkg"):
        write_map(tmp_path / "map.shp", [], POLAR, [], {})
    with pytest.raises(InputError, match="no such file"):
        read_map(tmp_path / "map.gpkg")
    (tmp_path / "map.gpkg").write_bytes(b"no map" * 100)
    with pytest.raises(InputError, match="cannot be read as a GeoPackage"):
        read_map(tmp_path / "map.gpkg")
    frame = to_geodataframe(footprints(2), POLAR)
    pyogrio.write_dataframe(frame, tmp_path / "other.gpkg", layer="other")
    with pytest.raises(InputError, match=r"no layer 'rts_footprints'.*other"):
        read_map(tmp_path / "other.gpkg")


def test_footprints_of_another_crs_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 footprints are not in EPSG:3413"):
        write_map(
            tmp_path / "map.gpkg", [*footprints(2), footprint(shapely.box(0, 0, 9, 9), UTM)], POLAR, [], {}
        )
    assert list(tmp_path.iterdir()) == []


def test_a_crs_without_a_code_is_kept(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(3, LOCAL), LOCAL, [], {})
    assert CRS(read_map(tmp_path / "map.gpkg").crs).proj.equals(LOCAL.proj)
