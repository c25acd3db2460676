"""The record of a map as a STAC item, with the MLM extension for the model that made it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import geopandas
import pyproj
import shapely
from odc.geo.crs import CRS
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import InputError
from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.polygons import metres_per_unit
from rtsmap.vectors.formats import in_lonlat

STAC_VERSION = "1.1.0"
MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
EXTENSIONS = (
    MLM,
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
)
_SHA256_MULTIHASH = "1220"
_SEMANTIC = re.compile(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")
_SIMPLIFY_M = 100.0
_NOT_REPEATED = ("plan", "paths", "acquisition")
_CLASSES = [
    {"value": 0, "name": "background", "description": "No slump"},
    {"value": 1, "name": "rts", "description": "Retrogressive thaw slump"},
]


def stac_item(gpkg: Path, record: Mapping[str, Any], coverage: geopandas.GeoDataFrame) -> dict[str, Any]:
    """A STAC item of a map: where and when, how it was made, and from which model and scene.

    `datetime` is when the scene was taken; where that is not known, when the map was made, and
    `rtsmap:datetime_is` says so. Raises InputError for a map whose record lacks plan or model.
    """
    plan = record.get("plan", {})
    model, grid = plan.get("model", {}), plan.get("grid")
    if grid is None or not {"name", "input", "weights_sha256"} <= model.keys():
        raise InputError(f"{gpkg}: its record does not name grid and model; a STAC item cannot be made of it")
    outline = _outline(coverage)
    taken = record.get("acquisition", {}).get("acquired")
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": f"{gpkg.stem}-{record.get('plan_sha256', '')[:12]}".rstrip("-"),
        "geometry": shapely.geometry.mapping(outline),
        "bbox": _bbox(outline),
        "properties": {
            "title": f"Retrogressive thaw slumps of {gpkg.name}",
            "datetime": _utc(taken or record.get("finished_utc", "")),
            "created": _utc(record.get("finished_utc", "")),
            "rtsmap:datetime_is": "when the scene was taken" if taken else "when the map was made",
            **_projection(grid),
            **_model(model, plan, record),
            "processing:software": dict(plan.get("versions", {})),
            "rtsmap:plan": {key: plan[key] for key in ("inputs", "options", "tiles") if key in plan},
            **{f"rtsmap:{key}": value for key, value in record.items() if key not in _NOT_REPEATED},
        },
        "assets": _assets(gpkg, model),
        "links": list(_links(record)),
    }


def _outline(coverage: geopandas.GeoDataFrame) -> BaseGeometry:
    """The ground that was mapped, or else all that was to be, in longitude and latitude."""
    mapped = coverage[coverage["status"] == MAPPED]
    chosen = mapped if len(mapped) else coverage
    if chosen.empty:
        raise InputError("a map without coverage has no place on Earth; a STAC item cannot be made of it")
    whole = shapely.union_all(chosen.geometry.to_numpy())
    tolerance = _SIMPLIFY_M / metres_per_unit(CRS(coverage.crs))
    frame = geopandas.GeoDataFrame(geometry=[whole.simplify(tolerance)], crs=coverage.crs)
    turned, _ = in_lonlat(frame, "STAC")
    shape: BaseGeometry = turned.geometry.iloc[0]
    return shape


def _bbox(outline: BaseGeometry) -> list[float]:
    """West, south, east, north; west is the greater one across 180 degrees, as RFC 7946 has it."""
    west, south, east, north = outline.bounds
    parts = shapely.bounds(shapely.get_parts(outline))
    if west == -180 and east == 180 and len(parts) > 1:
        west = min(part[0] for part in parts if part[0] > 0)
        east = max(part[2] for part in parts if part[2] < 0)
    return [float(value) for value in (west, south, east, north)]


def _utc(text: str) -> str:
    """RFC 3339 in UTC, of a date or a time."""
    if len(text) == 10:
        return f"{text}T00:00:00Z"
    return text.replace("+00:00", "Z") if text.endswith(("Z", "+00:00")) else f"{text}Z"


def _projection(grid: Mapping[str, Any]) -> dict[str, Any]:
    crs = pyproj.CRS.from_user_input(grid["crs"])
    authority = crs.to_authority(min_confidence=100)
    code: dict[str, Any] = {"proj:code": ":".join(authority) if authority else None}
    if not authority:
        code["proj:projjson"] = crs.to_json_dict()
    return {**code, "proj:shape": list(grid["shape"]), "proj:transform": list(grid["affine"])}


def _model(model: Mapping[str, Any], plan: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    chip_px = plan.get("tiles", {}).get("chip_px", -1)
    modalities = model["input"]["modalities"]
    found: dict[str, Any] = {
        "mlm:name": f"rtsmap {model['name']}",
        "mlm:architecture": "Cascade Mask R-CNN with one MViTv2 backbone per modality",
        "mlm:tasks": ["instance-segmentation"],
        "mlm:framework": "PyTorch",
        "mlm:input": [_input(modality, chip_px) for modality in modalities],
        "mlm:output": [
            {
                "name": "masks",
                "tasks": ["instance-segmentation"],
                "description": "Probability that a pixel is of the slump: a mask for each, with a score",
                "result": {
                    "shape": [-1, chip_px, chip_px],
                    "dim_order": ["instance", "height", "width"],
                    "data_type": "uint8",
                },
                "classification:classes": _CLASSES,
            }
        ],
        "mlm:hyperparameters": {
            "resolution_m": model["input"]["resolution_m"],
            "precision": model.get("precision"),
            "device": model.get("device"),
            "temperature": record.get("temperature"),
            "min_score": record.get("merging", {}).get("min_score"),
            "mask_threshold": record.get("merging", {}).get("mask_threshold"),
        },
        "rtsmap:model_version": model.get("version"),
    }
    torch = plan.get("versions", {}).get("torch", "")
    if _SEMANTIC.fullmatch(torch):
        found["mlm:framework_version"] = torch
    return found


def _input(modality: Mapping[str, Any], chip_px: int) -> dict[str, Any]:
    bands = modality["bands"]
    return {
        "name": modality["name"],
        "bands": [band["name"] for band in bands],
        "input": {
            "shape": [-1, len(bands), chip_px, chip_px],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
        "value_scaling": [{"type": "z-score", "mean": band["mean"], "stddev": band["sd"]} for band in bands],
    }


def _assets(gpkg: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    bands = [band["name"] for modality in model["input"]["modalities"] for band in modality["bands"]]
    return {
        "map": {
            "href": f"./{quote(gpkg.name)}",
            "type": "application/geopackage+sqlite3",
            "title": "Footprints, coverage and run record",
            "roles": ["data"],
        },
        "model": {
            "href": f"./{quote(model['name'])}/weights.safetensors",
            "type": "application/octet-stream",
            "title": f"Weights of the bundle {model['name']}",
            "roles": ["mlm:model", "mlm:weights"],
            "mlm:artifact_type": "safetensors.torch.save_file",
            # `bands` of STAC itself may not stand there, and what inputs name must be described
            "raster:bands": [{"name": name} for name in bands],
            "file:checksum": _SHA256_MULTIHASH + model["weights_sha256"],
        },
    }


def _links(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Names of the inputs, without the folders of the machine that mapped."""
    scene_id = record.get("acquisition", {}).get("scene_id")
    for what, paths in record.get("paths", {}).items():
        for path in [paths] if isinstance(paths, str) else paths or []:
            href = path if "://" in path else f"./{quote(Path(path).name)}"
            title = f"{what}: {scene_id}" if what == "scene" and scene_id else what
            yield {"rel": "derived_from", "href": href, "title": title}
