"""A map that was edited as QGIS edits it: attributes are copied, outlines change, nothing is measured."""

from __future__ import annotations

import json
from dataclasses import replace

import geopandas
import pyogrio
import pytest
import shapely
import shapely.affinity
from odc.geo.crs import CRS
from pyproj import Transformer

from rtsmap.errors import InputError
from rtsmap.instances.attributes import centroid_lonlat, geodesic_area_m2, geodesic_perimeter_m
from rtsmap.vectors.export import export_map
from rtsmap.vectors.formats import DRIVERS
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER, read_map, write_map
from rtsmap.vectors.labels import read_polygons
from rtsmap.vectors.reviews import FORMAT, apply_review
from rtsmap.vectors.united import SUPERSEDED, SceneMap, United, unite_maps
from tests.vectors.samples import POLAR, RECORD, UTM, coverage, footprints


def written(path, count=5, crs=POLAR):
    write_map(path, footprints(count, crs), crs, coverage(), RECORD)
    return path


def edited(path, outlines, copies=()):
    """Give rows of a map other outlines, and add rows with all the attributes of another."""
    stored = pyogrio.read_dataframe(path, layer=FOOTPRINT_LAYER)
    for row, outline in outlines.items():
        stored.loc[row, "geometry"] = outline
    more = stored.iloc[[row for row, _ in copies]].set_geometry([outline for _, outline in copies])
    rows = geopandas.pd.concat([stored, more]) if copies else stored
    pyogrio.write_dataframe(rows, path, layer=FOOTPRINT_LAYER, driver="GPKG", promote_to_multi=True)


def halves(outline):
    x0, y0, x1, y1 = outline.bounds
    left = shapely.box(x0, y0, (x0 + x1) / 2, y1)
    return outline.intersection(left), outline.difference(left)


@pytest.mark.parametrize("crs", [POLAR, UTM])
def test_figures_follow_outlines(tmp_path, crs):
    path = written(tmp_path / "map.gpkg", crs=crs)
    before = read_map(path)
    reshaped = before.geometry[1].buffer(10)
    left, right = halves(before.geometry[2])
    edited(path, {1: reshaped, 2: left}, [(2, right)])
    after = read_map(path)
    for row, outline in ((1, reshaped), (2, left), (5, right)):
        figures = after.loc[row, ["area_m2", "centroid_lon", "centroid_lat"]].tolist()
        assert figures == pytest.approx([geodesic_area_m2(outline, crs), *centroid_lonlat(outline, crs)])
    untouched = [0, 3, 4]
    assert (
        after.drop(columns="geometry").loc[untouched].equals(before.drop(columns="geometry").loc[untouched])
    )
    assert after["id"].is_unique
    assert after["id"][:5].tolist() == before["id"].tolist()
    assert read_map(path)["id"].tolist() == after["id"].tolist()


@pytest.mark.parametrize("crs", ["EPSG:3413", "EPSG:32608", "EPSG:4326"])
def test_figures_follow_outlines_that_keep_their_centroid(tmp_path, crs):
    path = tmp_path / "other.gpkg"
    export_map(written(tmp_path / "map.gpkg"), path, crs=crs)
    before = read_map(path).geometry
    island = before[1].difference(shapely.affinity.scale(before[1], 0.3, 0.3, origin=before[1].centroid))
    larger = shapely.affinity.scale(before[2], 1.1, 1.1, origin=before[2].centroid)
    edited(path, {1: island, 2: larger})
    after = read_map(path)
    for row, outline in ((1, island), (2, larger)):
        wanted = [measure(outline, CRS(crs)) for measure in (geodesic_area_m2, geodesic_perimeter_m)]
        assert after.loc[row, ["area_m2", "perimeter_m"]].tolist() == pytest.approx(wanted)


def test_halves_of_a_split_slump_are_reviewed_one_by_one(tmp_path):
    path = written(tmp_path / "map.gpkg")
    left, right = halves(read_map(path).geometry[2])
    edited(path, {2: left}, [(2, right)])
    ids = read_map(path)["id"].tolist()
    rows = [{"id": ids[2], "review": "rejected"}, {"id": ids[5], "review": "accepted", "comment": "the rest"}]
    (tmp_path / "review.json").write_text(json.dumps({"format": FORMAT, "reviews": rows}))
    applied = apply_review(path, tmp_path / "review.json")
    assert (applied.accepted, applied.rejected, applied.undecided) == (1, 1, 4)
    after = read_map(path).set_index("id")
    assert after["review"][[ids[2], ids[5]]].tolist() == ["rejected", "accepted"]
    assert after.geometry[ids[5]].equals(right)


def test_a_scene_that_is_there_twice_has_its_slumps_twice_by_id(tmp_path):
    scenes = [SceneMap(written(tmp_path / f"{name}.gpkg"), name, None) for name in "ab"]
    united = unite_maps(scenes, tmp_path / "all.gpkg", rule="best", record={})
    assert united == United(standing=5, superseded=5, cut=0)
    frame = read_map(tmp_path / "all.gpkg")
    assert frame["id"].is_unique
    gone = frame[SUPERSEDED].notna()
    assert set(frame[SUPERSEDED][gone]) == set(frame["id"][~gone])


def test_reading_measures_nothing_again_that_was_not_edited(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("measured again")

    path = written(tmp_path / "map.gpkg")
    monkeypatch.setattr("rtsmap.vectors.edits.geodesic_area_m2", fail)
    assert len(read_map(path)) == 5
    edited(path, {0: read_map(path).geometry[0].buffer(5)})
    with pytest.raises(AssertionError, match="measured again"):
        read_map(path)


def test_figures_whose_columns_were_deleted_or_emptied_are_measured_anew(tmp_path):
    path = written(tmp_path / "map.gpkg")
    before = read_map(path)
    stored = pyogrio.read_dataframe(path, layer=FOOTPRINT_LAYER).drop(
        columns=["centroid_lon", "centroid_lat"]
    )
    stored.loc[2, "perimeter_m"] = None
    pyogrio.write_dataframe(stored, path, layer=FOOTPRINT_LAYER, driver="GPKG")
    after = read_map(path)
    for name in ("area_m2", "perimeter_m", "centroid_lon", "centroid_lat"):
        assert after[name].tolist() == pytest.approx(before[name].tolist())


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("id", range(5), "texts"),
        ("score", list("abcde"), "numbers"),
        ("area_m2", ["9"] * 5, "numbers"),
        ("perimeter_m", ["wide"] * 5, "numbers"),
        ("n_parts", ["two"] * 5, "numbers"),
        ("seam_unconfirmed", ["no"] * 5, "numbers"),
    ],
)
def test_a_map_whose_columns_are_of_another_kind_is_refused(tmp_path, column, values, wanted):
    path = written(tmp_path / "map.gpkg")
    stored = pyogrio.read_dataframe(path, layer=FOOTPRINT_LAYER)
    stored[column] = values
    pyogrio.write_dataframe(stored, path, layer=FOOTPRINT_LAYER, driver="GPKG")
    with pytest.raises(InputError, match=f"column '{column}'.* holds no {wanted}"):
        read_map(path)


def bow_tie(outline):
    x0, y0, x1, y1 = outline.bounds
    return shapely.Polygon([(x0, y0), (x1, y1), (x1, y0), (x0, y1)])


@pytest.mark.parametrize("suffix", DRIVERS)
def test_outlines_drawn_across_themselves_or_with_heights_are_exported(tmp_path, suffix):
    path, out = written(tmp_path / "map.gpkg"), tmp_path / f"out{suffix}"
    tangled = bow_tie(read_map(path).geometry[1])
    wanted = shapely.make_valid(tangled)
    edited(path, {1: shapely.force_3d(tangled, 7.0)})
    read = read_map(path)
    assert read["area_m2"][1] == pytest.approx(geodesic_area_m2(wanted, POLAR))
    assert read.geometry[1].equals(wanted)
    export_map(path, out)
    assert len(read_polygons(out) if suffix != ".csv" else out.read_text().splitlines()[1:]) == 5


@pytest.mark.parametrize("outline", [shapely.MultiPolygon(), shapely.Polygon([(0, 0), (9, 9), (0, 0)])])
def test_a_map_with_an_outline_without_area_is_refused_with_what_to_do(tmp_path, outline):
    path = written(tmp_path / "map.gpkg")
    edited(path, {1: outline})
    with pytest.raises(InputError, match="1 footprint with an outline without area; delete"):
        read_map(path)


def test_a_slump_that_degrees_cut_at_180_is_measured_in_one_piece(tmp_path):
    x, y = Transformer.from_crs("EPSG:4326", POLAR.proj, always_xy=True).transform(180.0, 71.0)
    outline = shapely.Point(x, y).buffer(200)
    path = tmp_path / "map.gpkg"
    slump = replace(footprints(1, POLAR)[0], polygon=outline, area_m2=geodesic_area_m2(outline, POLAR))
    lon, lat = centroid_lonlat(outline, POLAR)
    slump = replace(slump, centroid_lon=lon, centroid_lat=lat)
    write_map(path, [slump], POLAR, coverage(), RECORD)
    export_map(path, tmp_path / "degrees.gpkg", crs="EPSG:4326")
    copied = read_map(tmp_path / "degrees.gpkg").iloc[0]
    assert copied.geometry.bounds[2] - copied.geometry.bounds[0] > 359
    assert (abs(copied.centroid_lon), copied.centroid_lat) == pytest.approx((180, 71), abs=1e-6)
    # a shape that nobody has measured
    stored = pyogrio.read_dataframe(tmp_path / "degrees.gpkg", layer=FOOTPRINT_LAYER)
    stored["area_m2"] = float("nan")
    pyogrio.write_dataframe(stored, tmp_path / "degrees.gpkg", layer=FOOTPRINT_LAYER)
    drawn = read_map(tmp_path / "degrees.gpkg").iloc[0]
    assert drawn.area_m2 == pytest.approx(slump.area_m2, rel=1e-4)
    assert drawn.perimeter_m == pytest.approx(geodesic_perimeter_m(outline, POLAR), rel=1e-4)
    assert (abs(drawn.centroid_lon), drawn.centroid_lat) == pytest.approx((180, 71), abs=1e-6)
