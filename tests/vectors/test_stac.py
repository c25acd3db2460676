"""The record of a map as a STAC item: held against STAC's own schema and the rules of its MLM extension."""

from __future__ import annotations

import json
import re

import geopandas
import numpy as np
import pytest
import shapely

from rtsmap.errors import InputError
from rtsmap.instances.coverage import CoverageArea
from rtsmap.vectors.export import Selection, export_map
from rtsmap.vectors.geopackage import COVERAGE_LAYER, read_map, write_map
from rtsmap.vectors.profiles import export_profile
from tests.vectors.samples import GRID, LOCAL, POLAR, blob, coverage, footprints

BANDS = [
    {"name": name, "mean": 90.0, "sd": 25.0, "low": 0.0, "high": 255.0} for name in ("red", "green", "blue")
]
RECORD = {
    "rtsmap_version": "0.1.0",
    "finished_utc": "2026-11-22T18:32:22+00:00",
    "plan_sha256": "ab" * 32,
    "paths": {"scene": "/secret place/Szene 1.tif", "dem": ["/a/dem 1.tif", "https://x.org/dem2.tif"]},
    "acquisition": {"acquired": "2013-04-26T22:43:06Z", "scene_id": "1030010020A45200"},
    "merging": {"min_score": 0.5, "mask_threshold": 128},
    "notes": ["ein Hinweis"],
    "temperature": 1.0,
    "plan": {
        "grid": {"crs": "EPSG:3413", "affine": list(GRID.affine)[:6], "shape": list(GRID.shape)},
        "model": {
            "name": "rts-starter",
            "version": "0.3.0",
            "weights_sha256": "cd" * 32,
            "device": "cpu",
            "precision": "fp32",
            "input": {"resolution_m": 4.0, "modalities": [{"name": "optical", "bands": BANDS}]},
        },
        "tiles": {"chip_px": 256},
        "versions": {"rtsmap": "0.1.0", "torch": "2.15.0+cpu"},
        "inputs": {"scene": {"sha256_of_samples": "ef"}},
    },
}
MLM = re.compile(r"https://stac-extensions\.github\.io/mlm/v1\.\d+\.\d+/schema\.json")


def made(folder, record=RECORD, areas=None, crs=POLAR):
    write_map(folder / "Karte 1.gpkg", footprints(3, crs), crs, areas or coverage(), record)
    export_profile(folder / "Karte 1.gpkg", folder / "item.json", "stac", select=Selection(min_score=0.4))
    return json.loads((folder / "item.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "changes", [{}, {"acquisition": {}}, {"acquisition": {"acquired": "2013-04-26"}}, {"paths": {}}]
)
def test_it_is_valid_against_the_schema_of_stac(tmp_path, changes):
    pystac = pytest.importorskip("pystac", reason="pystac brings STAC's schema")
    validation = pytest.importorskip("pystac.validation.stac_validator")
    pytest.importorskip("jsonschema")
    item = made(tmp_path, {**RECORD, **changes})
    validation.JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")


def test_another_reader_understands_the_model(tmp_path):
    pystac = pytest.importorskip("pystac")
    mlm = pytest.importorskip("pystac.extensions.mlm")
    item = pystac.Item.from_dict(made(tmp_path))
    model = mlm.MLMExtension.ext(item)
    assert model.mlm_name == "rtsmap rts-starter"
    assert model.tasks == ["instance-segmentation"]
    assert model.input[0].input.shape == [-1, 3, 256, 256]
    assert model.output[0].classes[1].name == "rts"
    assert item.datetime.isoformat() == "2013-04-26T22:43:06+00:00"


def test_it_keeps_the_rules_of_the_mlm_extension(tmp_path):
    """Each assertion is a rule of the extension's schema, which needs the network for what it refers to."""
    item = made(tmp_path)
    properties, assets = item["properties"], item["assets"]
    assert sum(bool(MLM.fullmatch(uri)) for uri in item["stac_extensions"]) == 1
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(properties)
    assert not {"mlm:artifact_type", "mlm:compile_method", "mlm:entrypoint"} & set(properties)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", properties["mlm:name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+([-+].*)?", properties["mlm:framework_version"])
    assert all(re.fullmatch("[0-9a-zA-Z_.-]+", name) for name in properties["mlm:hyperparameters"])
    for entry in properties["mlm:input"]:
        structure = entry["input"]
        assert {"name", "input"} <= set(entry)
        assert {"shape", "dim_order", "data_type"} <= set(structure)
        assert len(structure["shape"]) == len(structure["dim_order"]) == len(set(structure["dim_order"]))
        assert min(structure["shape"]) >= -1
        assert "bands" in structure["dim_order"]
        assert len(entry["value_scaling"]) == len(entry["bands"])
        assert all({"type", "mean", "stddev"} == set(scale) for scale in entry["value_scaling"])
    # bands that inputs name are described by the raster extension, in the asset of the model
    assert any("/raster/v1." in uri for uri in item["stac_extensions"])
    named = {band for entry in properties["mlm:input"] for band in entry["bands"]}
    assert named == {band["name"] for band in assets["model"]["raster:bands"]}
    for entry in properties["mlm:output"]:
        assert {"name", "tasks", "result"} <= set(entry)
        assert "bands" not in entry["result"]["dim_order"]
    models = [asset for asset in assets.values() if "mlm:model" in asset["roles"]]
    assert len(models) == 1
    assert all(("mlm:artifact_type" in asset) == ("mlm:model" in asset["roles"]) for asset in assets.values())
    assert models[0]["file:checksum"] == "1220" + "cd" * 32  # a multihash: sha2-256, 32 bytes


def test_it_says_where_when_and_from_what(tmp_path):
    item = made(tmp_path)
    mapped = read_map(tmp_path / "Karte 1.gpkg", COVERAGE_LAYER).query("status == 'mapped'")
    outline = geopandas.GeoSeries([shapely.geometry.shape(item["geometry"])], crs=4326).to_crs(POLAR.proj)
    assert outline.area.iloc[0] == pytest.approx(mapped.area.sum(), rel=0.15)
    assert item["bbox"] == pytest.approx(shapely.geometry.shape(item["geometry"]).bounds)
    assert item["id"] == "Karte 1-abababababab"
    properties = item["properties"]
    assert properties["rtsmap:datetime_is"] == "when the scene was taken"
    assert properties["rtsmap:footprints"] == 1  # of that score
    assert properties["rtsmap:notes"] == ["ein Hinweis"]
    assert properties["proj:code"] == "EPSG:3413"
    assert item["assets"]["map"]["href"] == "./Karte%201.gpkg"
    links = [link["href"] for link in item["links"]]
    assert sorted(links) == ["./Szene%201.tif", "./dem%201.tif", "https://x.org/dem2.tif"]
    assert "secret" not in json.dumps(item)


def test_without_a_date_of_the_scene_that_of_the_map_counts_and_is_named(tmp_path):
    properties = made(tmp_path, {**RECORD, "acquisition": {"acquired": None}})["properties"]
    assert properties["datetime"] == "2026-11-22T18:32:22Z"
    assert properties["rtsmap:datetime_is"] == "when the map was made"


def test_a_crs_without_a_code_is_written_out(tmp_path):
    grid = {**RECORD["plan"]["grid"], "crs": LOCAL.to_wkt()}
    item = made(tmp_path, {**RECORD, "plan": {**RECORD["plan"], "grid": grid}})
    assert item["properties"]["proj:code"] is None
    assert item["properties"]["proj:projjson"]["type"] == "ProjectedCRS"


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4267", "EPSG:32608", "EPSG:2264"])
def test_the_outline_is_the_same_ground_whatever_the_crs_of_the_map(tmp_path, crs):
    wanted = shapely.geometry.shape(made(tmp_path)["geometry"])
    export_map(tmp_path / "Karte 1.gpkg", tmp_path / "other.gpkg", crs=crs)
    export_profile(tmp_path / "other.gpkg", tmp_path / "other.json", "stac")
    got = shapely.geometry.shape(json.loads((tmp_path / "other.json").read_text())["geometry"])
    assert got.symmetric_difference(wanted).area < 0.1 * wanted.area


def test_across_180_degrees_the_box_goes_from_east_to_west(tmp_path):
    angle = np.deg2rad(180 + 45)
    area = blob(0, 2_100_000 * np.sin(angle), -2_100_000 * np.cos(angle), radius=5000)
    item = made(tmp_path, areas=[CoverageArea(area, "mapped", "", area.area)])
    west, south, east, north = item["bbox"]
    assert 179 < west < 180
    assert -180 < east < -179
    assert 60 < south < north < 80


def test_a_map_that_does_not_know_its_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not name grid and model"):
        made(tmp_path, {"rtsmap_version": "0.1.0"})
