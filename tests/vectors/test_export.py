"""A map in other formats is the same map, or says where it is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely
import shapely.affinity
from odc.geo.crs import CRS

from rtsmap.errors import InputError, OptionsError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.instances.coverage import MAPPED, CoverageArea
from rtsmap.vectors import formats
from rtsmap.vectors.export import SHAPEFILE_NAMES, Selection, export_map
from rtsmap.vectors.formats import DRIVERS
from rtsmap.vectors.geopackage import (
    COMMENT_COLUMN,
    COVERAGE_COLUMNS,
    COVERAGE_LAYER,
    FOOTPRINT_COLUMNS,
    REVIEW_COLUMN,
    read_layers,
    read_map,
    write_layers,
    write_map,
)
from rtsmap.vectors.labels import read_polygons
from rtsmap.vectors.united import SUPERSEDED
from tests.vectors.samples import (
    LOCAL,
    POLAR,
    RECORD,
    UTM,
    add_by_hand,
    assert_same_geometries,
    blob,
    coverage,
    footprint,
    footprints,
    pixel_blob,
)

SUFFIXES = sorted(DRIVERS)
EXACT = [suffix for suffix in SUFFIXES if DRIVERS[suffix] not in {"GeoJSON", "KML", "CSV"}]
AS_LABELS = [suffix for suffix in SUFFIXES if suffix != ".csv"]
OF_LIBKML = ["Name", "description", "timestamp", "begin", "end", "altitudeMode", "tessellate", "extrude"]
OF_LIBKML += ["visibility", "drawOrder", "icon", "id"]


@pytest.fixture
def map_path(tmp_path):
    path = tmp_path / "in" / "map.gpkg"
    path.parent.mkdir()
    write_map(path, footprints(), POLAR, coverage(), RECORD)
    return path


def read_any(path):
    if path.suffix == ".gpkg":
        return read_map(path)
    if path.suffix == ".csv":
        frame = pd.read_csv(path)
        return geopandas.GeoDataFrame(
            frame.drop(columns="WKT"), geometry=shapely.from_wkt(frame["WKT"].to_numpy(object)), crs=4326
        )
    if path.suffix == ".kml":
        frame = pyogrio.read_dataframe(path)
        flags = {name: bool for name in ("seam_unconfirmed",) if name in frame}
        return (
            frame.drop(columns=[name for name in OF_LIBKML if name in frame])
            .astype(flags)
            .rename(columns={"rts_id": "id"})
        )
    frame = geopandas.read_parquet(path) if "parquet" in path.suffix else pyogrio.read_dataframe(path)
    full = {short: name for name, short in SHAPEFILE_NAMES.items()}
    return frame.rename(columns=full) if path.suffix == ".shp" else frame


def assert_same_attributes(got, wanted, rel):
    assert [name for name in got.columns if name != "geometry"] == [
        n for n in wanted.columns if n != "geometry"
    ]
    for name in wanted.columns.drop("geometry"):
        for one, other in zip(got[name], wanted[name], strict=True):
            if other == "":  # a shapefile has no empty text
                assert pd.isna(one) or one == ""
            elif isinstance(other, str | bool | np.bool_):
                assert one == other or str(one) == str(other), name  # CSV's are words
            else:
                assert (pd.isna(one) and pd.isna(other)) or one == pytest.approx(other, rel=rel), name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("crs", [POLAR, UTM, LOCAL], ids=["polar", "utm", "local"])
def test_round_trip(tmp_path, suffix, crs):
    write_map(tmp_path / "map.gpkg", footprints(crs=crs), crs, [], {})
    wanted = read_map(tmp_path / "map.gpkg").set_index("id", drop=False)
    out = tmp_path / f"Оползни à {suffix[1:]}{suffix}"
    export_map(tmp_path / "map.gpkg", out)
    got = read_any(out).set_index("id", drop=False).loc[wanted.index]
    assert_same_attributes(got, wanted, rel=1e-14 if suffix in EXACT else 1e-12)
    if suffix in EXACT:
        assert_same_geometries(got.geometry, wanted.geometry)
    else:
        assert got.crs.to_epsg() == 4326
        assert_same_geometries(got.to_crs(crs.proj).geometry, wanted.geometry, tolerance=1e-3)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_map_of_which_nothing_is_chosen_is_a_file_without_slumps(tmp_path, map_path, suffix):
    export_map(map_path, tmp_path / f"out{suffix}", select=Selection(min_score=1.0))
    assert len(read_any(tmp_path / f"out{suffix}")) == 0


@pytest.mark.parametrize("suffix", AS_LABELS)
def test_outlines_of_pixels_stay_valid_and_keep_their_area(tmp_path, suffix):
    made = [footprint(pixel_blob(k, -2_000_000 + 300 * k, 500_000), number=k) for k in range(25)]
    write_map(tmp_path / "map.gpkg", made, POLAR, [], {})
    out = tmp_path / f"out{suffix}"
    export_map(tmp_path / "map.gpkg", out)
    again = read_polygons(out)
    assert again.notes == ()
    assert sum(geodesic_area_m2(shape, again.crs) for shape in again.geometries) == pytest.approx(
        sum(one.area_m2 for one in made), rel=1e-6
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_slumps_added_by_hand_are_exported_with_their_size(map_path, tmp_path, suffix):
    before, drawn = read_map(map_path), blob(0, -1_999_000, 999_000)
    add_by_hand(map_path, drawn)
    export_map(map_path, tmp_path / f"a{suffix}")
    got = read_any(tmp_path / f"a{suffix}")
    hand, found = got[got["score"].isna()], got[got["score"].notna()]
    assert_same_attributes(found.set_index("id", drop=False).loc[before["id"]], before, rel=1e-12)
    assert hand["area_m2"].tolist() == pytest.approx([geodesic_area_m2(drawn, POLAR)])
    assert hand["n_parts"].tolist() == [1]
    assert hand["id"].isna().all()
    export_map(map_path, tmp_path / f"b{suffix}", select=Selection(min_score=0.01))
    assert len(read_any(tmp_path / f"b{suffix}")) == len(before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_map_without_slumps_is_exported_too(tmp_path, suffix):
    write_map(tmp_path / "map.gpkg", [], POLAR, [], {})
    out = tmp_path / f"out{suffix}"
    notes = export_map(tmp_path / "map.gpkg", out)
    frame = read_any(out)
    assert len(frame) == 0
    if suffix in EXACT or suffix == ".csv":
        assert [name for name in frame.columns if name != "geometry"] == list(FOOTPRINT_COLUMNS)
    elif suffix != ".kml":
        assert notes == ("GeoJSON: without a single polygon the file has no columns",)


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".gpkg"])
def test_the_coverage_can_be_exported(map_path, tmp_path, suffix):
    export_map(map_path, tmp_path / f"coverage{suffix}", layer=COVERAGE_LAYER)
    got = read_any(tmp_path / f"coverage{suffix}").sort_values("area_m2", ignore_index=True)
    wanted = read_map(map_path, COVERAGE_LAYER).sort_values("area_m2", ignore_index=True)
    assert_same_attributes(got, wanted, rel=1e-12)
    if suffix in EXACT:
        assert_same_geometries(got.geometry, wanted.geometry)


def test_shapefile_names_are_short_different_and_complete():
    names = list(SHAPEFILE_NAMES.values())
    added = {REVIEW_COLUMN, COMMENT_COLUMN, SUPERSEDED}
    assert set(SHAPEFILE_NAMES) == {*FOOTPRINT_COLUMNS, *COVERAGE_COLUMNS, *added}
    assert len(set(names)) == len(names)
    assert all(0 < len(name) <= 10 and name.isascii() and name.islower() for name in names)


def test_a_shapefile_has_its_names_and_says_what_it_cannot_hold(map_path, tmp_path):
    notes = export_map(map_path, tmp_path / "a.shp")
    frame = pyogrio.read_dataframe(tmp_path / "a.shp")
    assert list(frame.columns.drop("geometry")) == [SHAPEFILE_NAMES[name] for name in FOOTPRINT_COLUMNS]
    assert (tmp_path / "a.cpg").read_text() == "UTF-8"
    assert "seam_unconfirmed is seam_unc" in notes[0]
    assert notes[1] == "shapefile: yes and no are 1 and 0 in seam_unc"


def test_columns_of_users_have_names_of_ten_bytes_in_a_shapefile_and_none_is_lost(map_path, tmp_path):
    added = ["площадь_м2", "площадь_км", "cent_lon", "a_long_remark", "a_long_reply", "ok", " ", "ends "]
    layers = read_layers(map_path)
    for name in added:
        layers.footprints[name] = f"<{name}>"
    write_layers(tmp_path / "more.gpkg", layers)
    notes = export_map(tmp_path / "more.gpkg", tmp_path / "A.SHP")
    frame = pyogrio.read_dataframe(tmp_path / "A.SHP")
    names = list(frame.columns.drop("geometry"))
    assert max(len(name.encode()) for name in names) <= 10
    told = dict(one.split(" is ") for one in notes[0].partition(": names have ten bytes: ")[2].split(", "))
    for name in added:
        assert set(frame[told.get(name, name)]) == {f"<{name}>"}
    assert len(set(names)) == len(names) == len(FOOTPRINT_COLUMNS) + len(added)
    assert (told["площадь_м2"], told["площадь_км"]) == ("площа", "площ_1")
    assert (told[" "], told["ends "]) == ("column", "ends")
    assert "ok" not in told


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".fgb"])
def test_a_crs_that_a_format_cannot_hold_is_refused(map_path, tmp_path, suffix):
    rotated = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=30 +lon_0=0 +datum=WGS84"
    with pytest.raises(InputError, match=r"cannot be written.*CRS cannot be converted"):
        export_map(map_path, tmp_path / f"out{suffix}", crs=rotated)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("rts_id", list("abc")),
        ("WKT", list("abc")),
        ("wkt", list("abc")),
        ("ms", [2**52 + k for k in range(3)]),
    ],
)
def test_columns_of_users_stand_beside_those_of_the_map(tmp_path, suffix, column, values):
    write_map(tmp_path / "map.gpkg", footprints(3), POLAR, coverage(), RECORD)
    layers = read_layers(tmp_path / "map.gpkg")
    layers.footprints[column] = values
    write_layers(tmp_path / "more.gpkg", layers)
    notes = export_map(tmp_path / "more.gpkg", tmp_path / f"out{suffix}")
    read = {"CSV": pd.read_csv, "Parquet": geopandas.read_parquet, "GPKG": read_map}
    frame = read.get(DRIVERS[suffix], pyogrio.read_dataframe)(tmp_path / f"out{suffix}")
    told = {}
    for note in notes:
        told |= dict(re.findall(r"(\w+) is (\w+)", note))
    for name in (column, "id"):
        assert sorted(map(str, frame[told.get(name, name)])) == sorted(map(str, layers.footprints[name]))


def test_a_polygon_that_rounding_breaks_is_repaired_and_told(tmp_path):
    # Two fields joined by a strip of a hundredth of a millimetre, which GeoJSON's decimals cannot show.
    strip = shapely.union_all(
        [shapely.box(0, 0, 9, 9), shapely.box(9, 4, 20, 4.00001), shapely.box(20, 0, 29, 9)]
    )
    slump = shapely.affinity.translate(strip, -2_000_000, 500_000)
    write_map(tmp_path / "map.gpkg", [footprint(slump), *footprints(2)], POLAR, [], {})
    notes = export_map(tmp_path / "map.gpkg", tmp_path / "a.geojson")
    again = read_polygons(tmp_path / "a.geojson")
    assert again.notes == ()
    assert notes == ("GeoJSON: 1 of 3 polygons had to be repaired in EPSG:4326",)
    (fields,) = [shape for shape in again.geometries if shape.geom_type == "MultiPolygon"]
    assert geodesic_area_m2(fields, again.crs) == pytest.approx(162, rel=1e-2)


def test_texts_too_long_for_a_shapefile_are_told(tmp_path):
    long = footprint(shapely.box(0, 0, 9, 9), modalities=tuple(f"modalität{k}" for k in range(40)))
    write_map(tmp_path / "map.gpkg", [long], POLAR, [], {})
    notes = export_map(tmp_path / "map.gpkg", tmp_path / "a.shp")
    assert "shapefile: 1 texts in modalities were cut to 254 bytes" in notes
    (text,) = pyogrio.read_dataframe(tmp_path / "a.shp")["modalities"]
    assert ",".join(long.modalities).startswith(text)
    assert len(text.encode()) > 240


def test_scores_below_the_least_are_left_out(map_path, tmp_path):
    scores = read_map(map_path)["score"]
    export_map(map_path, tmp_path / "a.fgb", select=Selection(min_score=0.6))
    assert sorted(read_any(tmp_path / "a.fgb")["score"]) == sorted(scores[scores >= 0.6])
    export_map(map_path, tmp_path / "a.gpkg", select=Selection(min_score=0.6))
    part = read_layers(tmp_path / "a.gpkg")
    assert sorted(part.footprints["score"]) == sorted(scores[scores >= 0.6])
    assert len(part.coverage) == 3
    assert part.run_record == RECORD


def test_nothing_is_left_out_unasked_whatever_people_have_typed_as_score(map_path, tmp_path):
    layers = read_layers(map_path)
    layers.footprints.loc[[1, 2], "score"] = [-1.0, 95.0]
    write_layers(tmp_path / "typed.gpkg", layers)
    export_map(tmp_path / "typed.gpkg", tmp_path / "a.fgb")
    assert len(read_any(tmp_path / "a.fgb")) == 12
    export_map(tmp_path / "typed.gpkg", tmp_path / "b.fgb", select=Selection(min_score=1e-9))
    assert len(read_any(tmp_path / "b.fgb")) == 11


def test_areas_below_the_least_are_left_out(map_path, tmp_path):
    areas = read_map(map_path)["area_m2"]
    least = float(np.median(areas))
    export_map(map_path, tmp_path / "a.csv", select=Selection(min_area_m2=least))
    assert sorted(read_any(tmp_path / "a.csv")["area_m2"]) == sorted(areas[areas >= least])
    with pytest.raises(OptionsError, match="choose footprints only"):
        export_map(map_path, tmp_path / "b.csv", layer=COVERAGE_LAYER, select=Selection(min_area_m2=least))
    with pytest.raises(OptionsError, match="min_area_m2 must be 0 or more"):
        Selection(min_area_m2=float("nan"))


@pytest.mark.parametrize("suffix", [".shp", ".fgb", ".csv", ".parquet", ".gpkg"])
def test_outlines_can_be_turned_into_another_crs(map_path, tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    export_map(map_path, out, crs="EPSG:32608")
    got = read_any(out)
    if suffix == ".csv":
        got = got.set_crs(32608, allow_override=True)
    assert got.crs.to_epsg() == 32608
    wanted = read_map(map_path).set_index("id", drop=False)
    got = got.set_index("id", drop=False).loc[wanted.index]
    assert_same_geometries(got.to_crs(POLAR.proj).geometry, wanted.geometry, tolerance=1e-3)
    assert_same_attributes(got, wanted, rel=1e-14)
    if suffix == ".gpkg":
        assert read_map(out, COVERAGE_LAYER).crs.to_epsg() == 32608


def test_long_edges_of_coverage_bend_with_the_crs(map_path, tmp_path):
    before = read_map(map_path, COVERAGE_LAYER)
    export_map(map_path, tmp_path / "a.fgb", layer=COVERAGE_LAYER, crs="EPSG:4326")
    after = pyogrio.read_dataframe(tmp_path / "a.fgb").set_index("area_m2").loc[before["area_m2"]]
    assert_same_geometries(after.to_crs(POLAR.proj).geometry, before.geometry, tolerance=0.05)


@pytest.mark.parametrize("suffix", [".geojson", ".kml", ".csv"])
def test_long_edges_of_coverage_bend_in_longitude_and_latitude_too(tmp_path, suffix):
    ground = shapely.box(-2_000_000, 1_000_000, -1_980_000, 1_100_000)
    mapped = [CoverageArea(ground, MAPPED, "", geodesic_area_m2(ground, POLAR))]
    write_map(tmp_path / "map.gpkg", [], POLAR, mapped, {})
    export_map(tmp_path / "map.gpkg", tmp_path / f"a{suffix}", layer=COVERAGE_LAYER)
    (shape,) = read_any(tmp_path / f"a{suffix}").geometry.to_crs(POLAR.proj)
    # straight from corner to corner they would lie 594 m off
    assert shapely.hausdorff_distance(shape, ground, densify=0.01) < 0.5


def test_polygons_across_180_degrees_never_go_around_the_earth(tmp_path):
    x, y = pyproj.Transformer.from_crs("EPSG:4326", POLAR.proj, always_xy=True).transform(180, 71)
    write_map(tmp_path / "map.gpkg", [footprint(blob(0, x, y))], POLAR, [], {})
    export_map(tmp_path / "map.gpkg", tmp_path / "a.shp", crs="EPSG:4326")
    (shape,) = pyogrio.read_dataframe(tmp_path / "a.shp").geometry
    assert sum(geodesic_area_m2(part, CRS("EPSG:4326")) for part in shape.geoms) == pytest.approx(
        geodesic_area_m2(blob(0, x, y), POLAR), rel=1e-6
    )
    for crs in ("EPSG:3857", "EPSG:4269"):
        with pytest.raises(OptionsError, match="1 polygons cross 180 degrees"):
            export_map(tmp_path / "map.gpkg", tmp_path / "b.shp", crs=crs)


def test_a_crs_that_cannot_be_is_refused(map_path, tmp_path):
    with pytest.raises(OptionsError, match="no such coordinate reference system"):
        export_map(map_path, tmp_path / "a.shp", crs="EPSG:99999999")
    with pytest.raises(OptionsError, match="has no place for outlines"):
        export_map(map_path, tmp_path / "a.shp", crs="EPSG:5773")
    with pytest.raises(OptionsError, match="KML is always in longitude and latitude"):
        export_map(map_path, tmp_path / "a.kml", crs="EPSG:3413")
    export_map(map_path, tmp_path / "a.geojson", crs="EPSG:4326")
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["a.geojson"]


@pytest.mark.skipif(not shutil.which("ogrinfo"), reason="GDAL's command line tools are not installed")
@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if "parquet" not in suffix])
def test_ogrinfo_opens_every_format_without_a_complaint(map_path, tmp_path, suffix):
    out = tmp_path / f"map{suffix}"
    export_map(map_path, out)
    done = subprocess.run(
        ["ogrinfo", "-al", "-so", str(out)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    assert "Feature Count: 12" in done.stdout
    whole = subprocess.run(
        ["ogrinfo", "-al", str(out)], capture_output=True, text=True, check=True, timeout=60
    )
    assert whole.stderr == ""
    assert whole.stdout.count("POLYGON ((") >= 12


def test_duckdb_reads_the_table(map_path, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    wanted = read_map(map_path)
    export_map(map_path, tmp_path / "a.csv")
    export_map(map_path, tmp_path / "a.parquet")
    for source in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        query = f"SELECT count(*), sum(area_m2), count(*) FILTER (seam_unconfirmed) FROM '{source}'"  # noqa: S608
        count, area, unconfirmed = duckdb.execute(query).fetchone()
        assert (count, unconfirmed) == (12, int(wanted["seam_unconfirmed"].sum()))
        assert area == pytest.approx(wanted["area_m2"].sum(), rel=1e-12)


def test_a_shapefile_is_put_back_when_its_replacing_fails(map_path, tmp_path, monkeypatch):
    export_map(map_path, tmp_path / "a.shp")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("a.*")}
    original, moved = Path.replace, []

    def fail_at_the_last(self, target):
        moved.append(Path(target).name)
        if Path(target) == tmp_path / "a.shp" and len(moved) < 12:
            raise PermissionError(13, "The file is open in another program")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", fail_at_the_last)
    with pytest.raises(InputError, match=r"open in another program.*; close it"):
        export_map(map_path, tmp_path / "a.shp", select=Selection(min_score=0.6), overwrite=True)
    assert len(moved) > len(before)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("a.*")} == before


def test_outputs_are_not_replaced_unasked(map_path, tmp_path):
    for suffix in SUFFIXES:
        out = tmp_path / f"out{suffix}"
        out.write_bytes(b"precious")
        with pytest.raises(InputError, match="exists already"):
            export_map(map_path, out)
        assert out.read_bytes() == b"precious"
        export_map(map_path, out, overwrite=True)
        assert len(read_any(out)) == 12


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".gpkg"])
def test_a_failure_while_writing_leaves_no_part_behind(map_path, tmp_path, monkeypatch, suffix):
    def fail(path, driver, frame, layer):
        original(path, driver, frame, layer)
        raise OSError(28, "No space left on device")

    original = formats._write
    monkeypatch.setattr(formats, "_write", fail)
    with pytest.raises(InputError, match="cannot be written"):
        export_map(map_path, tmp_path / f"out{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_impossible_exports_are_refused(map_path, tmp_path):
    with pytest.raises(InputError, match="would be replaced"):
        export_map(map_path, map_path, overwrite=True)
    with pytest.raises(OptionsError, match="min_score"):
        export_map(map_path, tmp_path / "a.shp", select=Selection(min_score=50))
    with pytest.raises(InputError, match=r"cannot tell the format from '\.tif'"):
        export_map(map_path, tmp_path / "a.tif")
    with pytest.raises(InputError, match="no such file"):
        export_map(tmp_path / "no.gpkg", tmp_path / "a.shp")
    with pytest.raises(InputError, match="no layer 'slumps'"):
        export_map(map_path, tmp_path / "a.shp", layer="slumps")
    with pytest.raises(InputError, match=r"no layer 'run_record'.* rts_footprints, coverage"):
        export_map(map_path, tmp_path / "a.csv", layer="run_record")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
