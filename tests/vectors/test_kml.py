"""KML as its published schema wants it."""

from __future__ import annotations

import geopandas
import numpy as np
import pytest
import shapely

from rtsmap.vectors.export import export_map
from rtsmap.vectors.formats import write_frame
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map, write_map
from rtsmap.vectors.kml import write_kml
from tests.vectors.samples import POLAR, RECORD, assert_same_geometries, coverage, footprints

KML = "{http://www.opengis.net/kml/2.2}"
HOSTILE = "</name><script>alert(\"ж\")</script> & \x00\x0b 'ü' ]]> 🛰"


@pytest.fixture
def map_path(tmp_path):
    write_map(tmp_path / "map.gpkg", footprints(), POLAR, coverage(), RECORD)
    return tmp_path / "map.gpkg"


def assert_valid(path):
    validator = pytest.importorskip("fastkml.validator", reason="fastkml brings the OGC's schema")
    assert validator.validate(file_to_validate=path)


@pytest.mark.parametrize("layer", ["rts_footprints", COVERAGE_LAYER])
def test_it_is_valid_against_the_schema_of_the_ogc(map_path, tmp_path, layer):
    export_map(map_path, tmp_path / "a.kml", layer=layer)
    assert_valid(tmp_path / "a.kml")


def test_an_empty_map_is_valid_too(tmp_path):
    write_map(tmp_path / "map.gpkg", [], POLAR, [], {})
    export_map(tmp_path / "map.gpkg", tmp_path / "a.kml")
    assert_valid(tmp_path / "a.kml")


def test_texts_cannot_break_out_of_their_element(tmp_path):
    frame = geopandas.GeoDataFrame(
        {"id": [HOSTILE], "score": [0.5], HOSTILE: [HOSTILE], "none": [None]},
        geometry=[shapely.box(10, 70, 10.1, 70.1)],
        crs=4326,
    )
    write_kml(tmp_path / "a.kml", frame, HOSTILE)
    assert_valid(tmp_path / "a.kml")
    etree = pytest.importorskip("lxml.etree")
    tree = etree.parse(tmp_path / "a.kml")
    wanted = HOSTILE.replace("\x00", " ").replace("\x0b", " ")
    assert tree.find(f"{KML}Document/{KML}name").text == wanted
    values = tree.findall(f".//{KML}SimpleData")
    assert [value.text for value in values] == [wanted, "0.5", wanted]
    assert values[2].get("name") == wanted


def test_another_reader_sees_the_same_map(map_path, tmp_path):
    fastkml = pytest.importorskip("fastkml")
    export_map(map_path, tmp_path / "a.kml")
    (document,) = fastkml.KML.parse(tmp_path / "a.kml").features
    (folder,) = document.features
    wanted = read_map(map_path)
    shapes = [shapely.geometry.shape(mark.geometry) for mark in folder.features]
    assert_same_geometries(
        geopandas.GeoSeries(shapes, crs=4326).to_crs(POLAR.proj), wanted.geometry, tolerance=1e-3
    )
    for mark, (_, row) in zip(folder.features, wanted.iterrows(), strict=True):
        assert mark.name == f"score {row['score']:.2f}"
        data = {item.name: item.value for item in mark.extended_data.elements[0].data}
        assert float(data["area_m2"]) == row["area_m2"]
        assert data["rts_id"] == row["id"]
        assert data["seam_unconfirmed"] == str(int(row["seam_unconfirmed"]))
        assert ("relief_m" in data) == bool(np.isfinite(row["relief_m"]))


def test_every_score_has_a_colour_that_is_there(tmp_path):
    etree = pytest.importorskip("lxml.etree")
    scores = [0.0, 0.299, 0.3, 0.5, 0.999, 1.0]
    boxes = [shapely.box(k, 70, k + 0.5, 70.5) for k in range(len(scores))]
    frame = geopandas.GeoDataFrame({"score": scores}, geometry=boxes, crs=4326)
    write_frame(tmp_path / "a.kml", frame)
    tree = etree.parse(tmp_path / "a.kml")
    styles = {f"#{style.get('id')}" for style in tree.iter(f"{KML}Style")}
    used = [url.text for url in tree.iter(f"{KML}styleUrl")]
    assert set(used) <= styles
    assert used == ["#score0", "#score0", "#score1", "#score2", "#score5", "#score5"]


def test_outer_rings_run_against_the_clock(map_path, tmp_path):
    etree = pytest.importorskip("lxml.etree")
    export_map(map_path, tmp_path / "a.kml")
    for side, ccw in (("outerBoundaryIs", True), ("innerBoundaryIs", False)):
        rings = etree.parse(tmp_path / "a.kml").findall(f".//{KML}{side}//{KML}coordinates")
        assert rings
        for ring in rings:
            places = [tuple(map(float, place.split(","))) for place in ring.text.split()]
            assert shapely.LinearRing(places).is_ccw is ccw
