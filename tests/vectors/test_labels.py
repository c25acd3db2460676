"""Label files of every kind: read, repaired, refused with a sentence, written and read again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import zipfile
from contextlib import closing

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.crs import CRS

from rtsmap import sandbox
from rtsmap.errors import InputError, LabelError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.vectors.formats import DRIVERS
from rtsmap.vectors.labels import LFS_POINTER, Polygons, read_polygons, write_polygons
from rtsmap.vectors.repair import make_polygons_valid
from tests.shared_data import SHARED_DATA, shared
from tests.vectors.samples import LOCAL, POLAR, UTM, assert_same_geometries, blob, pixel_blob

SUFFIXES = sorted(suffix for suffix in DRIVERS if suffix != ".csv")  # CSV cannot say its CRS
POINTS_ONLY = "rts_inventories/Bernhard2022/RTS_data_Location.kml"
REPAIRED = {
    "GT_Set_Nitze_etal_2021_TrainingSet_RTS.shp": 4,
    "ESL_RTS_LTA_98P_cleaned.shp": 1,
    "Ramage2017.zip": 3,
}


def label_files():
    folders = (SHARED_DATA / "rts_inventories", SHARED_DATA / "rts_sites")
    found = [
        p for folder in folders for p in folder.rglob("*") if p.suffix in (".shp", ".kml", ".zip", ".geojson")
    ]
    relative = sorted(str(path.relative_to(SHARED_DATA)) for path in found)
    return relative or ["rts_inventories"]


@pytest.mark.parametrize("relative", [name for name in label_files() if name != POINTS_ONLY])
def test_every_shared_label_file_is_read(relative):
    path = shared(relative)
    polygons = read_polygons(path)
    info = pyogrio.read_info(path)
    assert len(polygons) == info["features"] > 0
    assert set(polygons.columns) == set(info["fields"])
    assert CRS(info["crs"]).proj.equals(polygons.crs.proj)
    assert 60 < np.median([g.centroid.y for g in polygons.to_crs(CRS("EPSG:4326")).geometries]) < 82
    repaired = REPAIRED.get(path.name)
    wanted = (f"{repaired} of {len(polygons)} features invalid and repaired",) if repaired else ()
    assert polygons.notes == wanted


def test_repair_keeps_the_area_that_was_drawn():
    path = shared("rts_inventories/Nitze2021/GT_Set_Nitze_etal_2021_TrainingSet_RTS.shp")
    raw = pyogrio.read_dataframe(path)
    drawn = shapely.area(raw.geometry.to_numpy())
    ours = np.array([shape.area for shape in read_polygons(path).geometries])
    broken = ~raw.is_valid.to_numpy()
    assert np.array_equal(ours[~broken], drawn[~broken])
    assert ours[broken] == pytest.approx(drawn[broken], rel=0.02)


def test_repair_keeps_ground_that_two_parts_cover():
    bow_tie = shapely.Polygon([(30, 0), (32, 2), (32, 0), (30, 2)])
    active_in_scar = [shapely.box(0, 0, 4, 4), shapely.box(1, 1, 2, 2), shapely.box(3, 3, 6, 5), bow_tie]
    drawn = np.array([shapely.MultiPolygon(active_in_scar)], dtype=object)
    assert not shapely.is_valid(drawn[0])
    repaired = make_polygons_valid(drawn)[0]
    assert repaired.is_valid
    assert repaired.area == pytest.approx(shapely.box(0, 0, 4, 4).union(shapely.box(3, 3, 6, 5)).area + 2)


def test_inventory_of_points_is_refused():
    with pytest.raises(LabelError, match=r"no polygon among 1832 features \(found: Point\)"):
        read_polygons(shared(POINTS_ONLY))


def test_what_is_found_instead_of_polygons_is_named_as_it_is(tmp_path):
    shapes = [shapely.Polygon(), shapely.LineString([(0, 0), (1, 1)]), None]
    geopandas.GeoDataFrame(geometry=shapes, crs=4326).to_file(tmp_path / "area.geojson")
    with pytest.raises(LabelError, match=r"\(found: LineString, empty Polygon\); give a file of polygons"):
        read_polygons(tmp_path / "area.geojson")


def sample(crs=UTM, count=9):
    corner = (470_000, 7_550_000) if crs == UTM else (0, 0) if crs == LOCAL else (-2_000_000, 400_000)
    shapes = tuple(blob(k, corner[0] + 400 * k, corner[1], 60) for k in range(count))
    columns = {
        "nummer": list(range(count)),
        "area": [shape.area for shape in shapes],
        "stabil": [k % 2 == 0 for k in range(count)],
        "név": [f"Δ“{k}”, ÿ ледник" if k % 3 else None for k in range(count)],
    }
    return Polygons(shapes, crs, columns)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("crs", [UTM, POLAR, LOCAL], ids=["utm", "polar", "local"])
def test_what_is_written_is_read_again(tmp_path, suffix, crs):
    polygons = sample(crs)
    path = tmp_path / f"Оползни — ä b{suffix}"
    write_polygons(path, polygons)
    again = read_polygons(path)
    order = np.argsort(again.columns["nummer"])
    shapes = [again.geometries[i] for i in order]
    if suffix in (".geojson", ".json", ".kml"):
        assert again.crs == CRS("EPSG:4326")
        shapes = [again.to_crs(crs).geometries[i] for i in order]
        assert_same_geometries(shapes, polygons.geometries, tolerance=1e-3)
    else:
        assert again.crs.proj.equals(crs.proj) or suffix == ".shp"
        assert_same_geometries(shapes, polygons.geometries)
    for name, values in polygons.columns.items():
        got = [again.columns[name][i] for i in order]
        assert [None if value is None or value != value else value for value in got] == values  # noqa: PLR0124


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=4), suffix=st.sampled_from(SUFFIXES))
def test_pixel_outlines_stay_valid_in_every_format(tmp_path_factory, seeds, suffix):
    path = tmp_path_factory.mktemp("labels") / f"file{suffix}"
    shapes = tuple(pixel_blob(seed, -2_000_000 + 500 * k, 400_000) for k, seed in enumerate(seeds))
    write_polygons(path, Polygons(shapes, POLAR))
    again = read_polygons(path)
    assert again.notes == ()
    areas = [geodesic_area_m2(shape, again.crs) for shape in again.geometries]
    wanted = [geodesic_area_m2(shape, POLAR) for shape in shapes]
    assert sorted(areas) == pytest.approx(sorted(wanted), rel=1e-5)


def test_geojson_is_as_the_standard_wants_it(tmp_path):
    slump = blob(1, -2_000_000, 400_000)
    path = tmp_path / "a.geojson"
    write_polygons(path, Polygons((slump,), POLAR))
    text = path.read_text(encoding="utf-8")
    assert '"crs"' not in text
    outer = geopandas.read_file(path).geometry[0].exterior
    assert outer.is_ccw


def test_a_slump_on_the_dateline_is_cut_there_in_geojson(tmp_path):
    # Wrangel Island: 180 degrees east is the ray to the lower left in this projection.
    east = np.degrees(np.deg2rad(180 + 45))
    centre = 2_100_000 * np.array([np.sin(np.deg2rad(east)), -np.cos(np.deg2rad(east))])
    slump = blob(0, *centre, radius=500)
    path = tmp_path / "wrangel.geojson"
    write_polygons(path, Polygons((slump,), POLAR))
    (again,) = read_polygons(path).geometries
    assert again.geom_type == "MultiPolygon"
    assert all(part.bounds[2] - part.bounds[0] < 1 for part in again.geoms)
    assert geodesic_area_m2(again, CRS("EPSG:4326")) == pytest.approx(
        geodesic_area_m2(slump, POLAR), rel=1e-4
    )


def test_zipped_and_capital_shapefiles(tmp_path):
    polygons = sample()
    write_polygons(tmp_path / "a.shp", polygons)
    with zipfile.ZipFile(tmp_path / "a b.zip", "w") as archive:
        for part in tmp_path.glob("a.*"):
            archive.write(part, f"folder/{part.name.upper()}")
    assert_same_geometries(read_polygons(tmp_path / "a b.zip").geometries, polygons.geometries)


def test_several_files_in_an_archive_want_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, name in enumerate(["east", "west"], start=1):
            write_polygons(tmp_path / f"{name}.gpkg", sample(count=number))
            archive.write(tmp_path / f"{name}.gpkg", f"{name}.gpkg")
    with pytest.raises(LabelError, match=r"found 2: east\.gpkg, west\.gpkg; unpack it and name one"):
        read_polygons(tmp_path / "a.zip")
    assert len(read_polygons(tmp_path / "a.zip", layer="west")) == 2
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(LabelError, match="found 0: none"):
        read_polygons(tmp_path / "b.zip")


def test_kml(tmp_path):
    polygons = Polygons((shapely.box(-135, 68, -134.99, 68.01),), CRS("EPSG:4326"))
    frame = geopandas.GeoDataFrame({"Name": ["a"]}, geometry=list(polygons.geometries), crs=4326)
    frame.to_file(tmp_path / "a.kml", driver="KML", engine="pyogrio")
    read = read_polygons(tmp_path / "a.kml")
    assert_same_geometries(read.geometries, polygons.geometries, tolerance=1e-9)


def write_raw(path, geometries, crs="EPSG:32608", **options):
    frame = geopandas.GeoDataFrame({"n": range(len(geometries))}, geometry=geometries, crs=crs)
    pyogrio.write_dataframe(frame, path, **options)


BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])


def test_repairs_and_omissions_are_counted(tmp_path):
    square = shapely.box(0, 0, 5, 5)
    mixed = shapely.GeometryCollection([square, shapely.Point(9, 9)])
    with_z = shapely.force_3d(square, 7.0)
    shapes = [square, BOW_TIE, with_z, None, shapely.Point(1, 1), shapely.LineString([(0, 0), (1, 1)]), mixed]
    write_raw(tmp_path / "a.gpkg", shapes, geometry_type="Unknown")
    polygons = read_polygons(tmp_path / "a.gpkg")
    assert polygons.columns["n"] == [0, 1, 2, 6]
    assert polygons.geometries[1].area == BOW_TIE.buffer(0).area * 2 == 50
    assert_same_geometries([polygons.geometries[i] for i in (0, 2, 3)], [square] * 3)
    assert not shapely.has_z(np.array(polygons.geometries)).any()
    assert set(polygons.notes) == {
        "1 of 7 features without geometry left out",
        "2 of 7 features not polygons and left out",
        "1 of 7 features invalid and repaired",
        "1 of 7 features with Z, which was dropped",
    }


def test_no_crs_is_refused(tmp_path):
    write_polygons(tmp_path / "a.shp", sample())
    (tmp_path / "a.prj").unlink()
    with pytest.raises(LabelError, match=r"no coordinate reference system.*\.prj"):
        read_polygons(tmp_path / "a.shp")
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(LabelError, match="no coordinate reference system"):
        read_polygons(tmp_path / "a.parquet")


@pytest.mark.parametrize("part", ["a.shp", "a.shx", "a.dbf", "a.prj"])
def test_a_git_lfs_pointer_says_what_it_is(tmp_path, part):
    write_polygons(tmp_path / "a.shp", sample())
    (tmp_path / part).write_bytes(LFS_POINTER + b"v1\noid sha256:1234\nsize 123\n")
    with pytest.raises(LabelError, match=rf"{part}: this is a Git LFS pointer.*git lfs pull"):
        read_polygons(tmp_path / "a.shp")


def test_a_git_lfs_pointer_in_place_of_geojson(tmp_path):
    (tmp_path / "arts.geojson").write_bytes(LFS_POINTER + b"v1\noid sha256:1234\nsize 123\n")
    with pytest.raises(LabelError, match="Git LFS pointer"):
        read_polygons(tmp_path / "arts.geojson")


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".kml", ".zip", ".fgb", ".parquet", ".txt"])
def test_files_that_are_none_are_refused_with_their_name(tmp_path, suffix):
    path = tmp_path / f"bad{suffix}"
    with pytest.raises(LabelError, match="no such file"):
        read_polygons(path)
    path.touch()
    with pytest.raises(LabelError, match="empty"):
        read_polygons(path)
    path.write_bytes(b"this is not a vector file\n" * 20)
    with pytest.raises(LabelError, match=rf"bad{suffix}: cannot be read"):
        read_polygons(path)


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.geojson", "a.fgb"])
def test_a_file_without_features_is_ground_without_slumps(tmp_path, name):
    write_raw(tmp_path / name, [], geometry_type="Polygon")
    nothing = read_polygons(tmp_path / name)
    assert len(nothing) == 0
    assert "no feature: ground without slumps" in nothing.notes
    assert len(nothing.to_crs(CRS("EPSG:4326"))) == 0


def test_several_layers_want_a_name(tmp_path):
    for layer in ("old", "new"):
        write_raw(tmp_path / "a.gpkg", [shapely.box(0, 0, 1, 1)], layer=layer)
    with pytest.raises(LabelError, match=r"found 2: old, new; .* ogr2ogr ONE\.gpkg '.*a\.gpkg' 'old'"):
        read_polygons(tmp_path / "a.gpkg")
    assert len(read_polygons(tmp_path / "a.gpkg", layer="new")) == 1
    with pytest.raises(LabelError, match="no layer 'newer'; the file has: old, new"):
        read_polygons(tmp_path / "a.gpkg", layer="newer")


def test_a_layer_of_points_beside_the_polygons_does_not_matter(tmp_path):
    write_raw(tmp_path / "a.gpkg", [shapely.Point(0, 0)], layer="points")
    write_raw(tmp_path / "a.gpkg", [shapely.box(0, 0, 1, 1)], layer="polygons")
    assert len(read_polygons(tmp_path / "a.gpkg")) == 1


def test_polygons_are_checked_where_they_are_made():
    square = shapely.box(0, 0, 1, 1)
    with pytest.raises(LabelError, match="column 'a' has 2 values for 1 polygons"):
        Polygons((square,), UTM, {"a": [1, 2]})
    for wrong in (BOW_TIE, shapely.Point(0, 0), shapely.Polygon()):
        with pytest.raises(LabelError, match="polygon 1 is empty, invalid or not a polygon"):
            Polygons((square, wrong), UTM)


def test_to_another_crs_and_back():
    polygons = sample()
    again = polygons.to_crs(POLAR).to_crs(UTM)
    assert_same_geometries(again.geometries, polygons.geometries, tolerance=1e-4)
    assert dict(again.columns) == dict(polygons.columns)


def test_outputs_are_not_replaced_unasked(tmp_path):
    path = tmp_path / "a.geojson"
    write_polygons(path, sample(count=1))
    with pytest.raises(InputError, match="exists already"):
        write_polygons(path, sample(count=2))
    assert len(read_polygons(path)) == 1
    write_polygons(path, sample(count=2), overwrite=True)
    assert len(read_polygons(path)) == 2


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot tell the format from '\.tab'"):
        write_polygons(tmp_path / "a.tab", sample())
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_copy_is_read(tmp_path):
    write_polygons(tmp_path / "a.gpkg", sample())
    copy = shutil.copy(tmp_path / "a.gpkg", tmp_path / "b.gpkg")
    (tmp_path / "b.gpkg").chmod(0o444)
    assert len(read_polygons(copy)) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "b.gpkg"]


def test_projected_numbers_are_not_taken_for_degrees(tmp_path):
    ring = [[500_000, 7_000_000], [500_010, 7_000_000], [500_010, 7_000_010], [500_000, 7_000_000]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "drawn in metres.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(LabelError, match="are no degrees"):
        read_polygons(path)


def test_curves_are_drawn_as_many_edges(tmp_path):
    path = tmp_path / "curved.gpkg"
    write_polygons(path, Polygons((shapely.box(0, 0, 10, 10),), CRS("EPSG:32608")), "slumps")
    # a circle of radius 5: CURVEPOLYGON(CIRCULARSTRING(...)) as ISO WKB behind GeoPackage's own header
    points = [(0, 0), (5, 5), (10, 0), (5, -5), (0, 0)]
    circle = struct.pack("<BII", 1, 8, 5) + b"".join(struct.pack("<dd", *point) for point in points)
    blob = b"GP\x00\x01" + struct.pack("<i", 32608) + struct.pack("<BII", 1, 10, 1) + circle
    with closing(sqlite3.connect(path)) as database, database:
        for (name,) in database.execute("select name from sqlite_master where type = 'trigger'").fetchall():
            database.execute(f'drop trigger "{name}"')
        database.execute("update slumps set geom = ?", (blob,))
        database.execute("update gpkg_geometry_columns set geometry_type_name = 'CURVEPOLYGON'")
    assert read_polygons(path).geometries[0].area == pytest.approx(np.pi * 25, rel=2e-3)


@pytest.mark.parametrize("name", ["a b.gpkg", 'd\'été "x".geojson', "Ямал_融.gpkg", "100%&.geojson"])
def test_any_name_will_do(tmp_path, name):
    drawn = Polygons((shapely.box(10, 60, 10.1, 60.1),), CRS("EPSG:4326"))
    write_polygons(tmp_path / name, drawn)
    assert len(read_polygons(tmp_path / name)) == 1


def test_what_crashes_the_reader_is_a_problem_of_its_file(tmp_path, monkeypatch):
    write_polygons(tmp_path / "x.gpkg", Polygons((shapely.box(10, 60, 10.1, 60.1),), CRS("EPSG:4326")))

    def crash(*_, **__):
        raise sandbox.CrashedError("the library that reads it crashes (SIGSEGV)")

    monkeypatch.setattr(sandbox, "call", crash)
    with pytest.raises(LabelError, match=r"x\.gpkg: the library that reads it crashes"):
        read_polygons(tmp_path / "x.gpkg")


@pytest.mark.parametrize("name", ["a;b.gpkg", "a!b.geojson"])
def test_names_that_would_be_taken_for_others_are_refused_and_nothing_is_written(tmp_path, name):
    drawn = Polygons((shapely.box(10, 60, 10.1, 60.1),), CRS("EPSG:4326"))
    with pytest.raises(InputError, match="rename it"):
        write_polygons(tmp_path / name, drawn)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="rename it"):
        read_polygons(tmp_path / name)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_polygons_with_impossible_coordinates_are_left_out(tmp_path, odd):
    path = tmp_path / "odd.fgb"
    with np.errstate(all="ignore"):
        good, bow = blob(1), shapely.Polygon([(0, 0), (odd, 9), (9, 0), (-odd, 9)])
        frame = geopandas.GeoDataFrame(geometry=[good, bow], crs=POLAR.proj)
        pyogrio.write_dataframe(frame, path, layer_options={"SPATIAL_INDEX": "NO"})
        read = read_polygons(path)
    assert_same_geometries(read.geometries, [good])
    assert any("1 of 2 features with impossible coordinates left out" in note for note in read.notes)
