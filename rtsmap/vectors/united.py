"""Maps of several scenes as one: footprints reconciled where scenes overlap, coverage united."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from odc.geo.crs import CRS

from rtsmap.instances.attributes import centroid_lonlat, geodesic_area_m2, geodesic_perimeter_m
from rtsmap.instances.coverage import FAILED, LEFT_OUT, MAPPED, NO_DATA
from rtsmap.instances.overlaps import Seen, cut_by_joints, reconcile
from rtsmap.instances.polygons import only_polygons
from rtsmap.vectors.edits import distinct_ids
from rtsmap.vectors.export import SHAPEFILE_NAMES
from rtsmap.vectors.formats import with_short_edges
from rtsmap.vectors.geopackage import (
    COVERAGE_COLUMNS,
    SUPERSEDED,
    MapLayers,
    model_of,
    read_layers,
    write_layers,
)
from rtsmap.vectors.labels import Polygons, read_polygons
from rtsmap.vectors.repair import make_polygons_valid
from rtsmap.vectors.verdicts import REJECTED, REVIEW_COLUMN, column_of, notes_on_verdicts, plain_verdicts

MADE_FROM = "made_from"
"""In the record of a map of many: by name of the scene, a part of the record of its own map."""

_POLAR, _WHOLE_EARTH, _ARCTIC_LAT = "EPSG:3413", "EPSG:4326", 45.0
_UNION_NAMESPACE = uuid.UUID("7a1c7e0a-8d0b-5d7e-9a43-3b1b6a6f0d11")


@dataclass(frozen=True, slots=True)
class SceneMap:
    """The map of one scene: its file, its id, and when the scene was taken (ISO 8601; None unknown)."""

    path: Path
    scene_id: str
    acquired: str | None


@dataclass(frozen=True, slots=True)
class United:
    """How many footprints of a map of many stand, how many give way to them, and how many pairs are `cut`.

    A pair is cut that meets where both its scenes end: likely one slump that counts as two. `notes` say what
    became of a map that was replaced.
    """

    standing: int
    superseded: int
    cut: int
    notes: tuple[str, ...] = ()


def unite_maps(
    maps: Sequence[SceneMap], out: Path, *, rule: str, record: Mapping[str, Any], overwrite: bool = False
) -> United:
    """Write one map of many.

    It is in the CRS of the maps where they have one in common, else in EPSG:3413 for the Arctic and in
    EPSG:4326 elsewhere. `superseded_by` says what a footprint gives way to; ground that one scene mapped is
    mapped, whatever the others say of it, and what one failed on does not pass for ground without data.
    """
    ordered = sorted(maps, key=lambda one: one.scene_id)
    layers = [read_layers(one.path) for one in ordered]
    crs = _common_crs([layer.coverage for layer in layers])
    footprints = [layer.footprints.to_crs(crs) for layer in layers]
    coverage = [_in_crs(layer.coverage, crs) for layer in layers]
    together = pd.concat(footprints, ignore_index=True)
    # a scene may be there twice, and its footprints with it
    together["id"] = distinct_ids(together["id"])
    seen = Seen(
        ids=together["id"].tolist(),
        scores=together["score"].to_numpy(float),
        polygons=make_polygons_valid(together.geometry.to_numpy()),
        scene=np.repeat(np.arange(len(layers)), [len(frame) for frame in footprints]),
        scene_ids=[_named(one, layer.run_record) for one, layer in zip(ordered, layers, strict=True)],
        dates=[one.acquired for one in ordered],
        mapped=np.array([_union(frame[frame["status"] == MAPPED]) for frame in coverage], object),
    )
    verdict = reconcile(seen, rule)
    together[SUPERSEDED] = pd.Series(verdict.superseded_by, dtype="object")
    united = [_as_one(together, rows, CRS(crs)) for rows in verdict.united]
    for rows, one in zip(verdict.united, united, strict=True):
        together.loc[rows, SUPERSEDED] = one["id"]
    if united:
        # made with its kind, for not all values can be turned into it afterwards
        more = geopandas.GeoDataFrame(
            {
                name: pd.Series([one[name] for one in united], dtype=kind)
                for name, kind in together.dtypes.items()
                if name != "geometry"
            },
            geometry=[one["geometry"] for one in united],
            crs=together.crs,
        )
        together = pd.concat([together, more[together.columns]], ignore_index=True)
    made_from = {
        one.scene_id: _made_from(layer.run_record) for one, layer in zip(ordered, layers, strict=True)
    }
    record = {**record, **_in_common([layer.run_record for layer in layers]), MADE_FROM: made_from}
    notes = write_layers(
        out, MapLayers(together, _unite_coverage(coverage, crs), record), overwrite=overwrite
    )
    gone = int(together[SUPERSEDED].notna().sum())
    return United(len(together) - gone, gone, len(cut_by_joints(seen, verdict)), notes)


def standing(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """The footprints that do not give way to others; all of a map of one scene."""
    return frame[frame[SUPERSEDED].isna()] if SUPERSEDED in frame.columns else frame


def read_slumps(path: Path | str) -> Polygons:
    """`read_polygons` of a file that shows where slumps are.

    Of a map of rtsmap, or what was exported of one, those that a review has rejected and those that give way
    to others are none; notes count them.
    """
    found = read_polygons(path)
    name = column_of(found.columns, REVIEW_COLUMN)
    reviews = [None] * len(found) if name is None else plain_verdicts(found.columns[name])
    rejected = np.array([verdict == REJECTED for verdict in reviews], bool)
    gives_way = _column(found, SUPERSEDED, SHAPEFILE_NAMES[SUPERSEDED]) != ""
    keep = np.flatnonzero(~(rejected | gives_way))
    told = {"rejected by a review": rejected.sum(), "that give way to others": (gives_way & ~rejected).sum()}
    return Polygons(
        tuple(found.geometries[row] for row in keep),
        found.crs,
        {name: [values[row] for row in keep] for name, values in found.columns.items()},
        (
            *found.notes,
            *notes_on_verdicts(reviews),
            *(f"{count} of {len(found)} features {what}, left out" for what, count in told.items() if count),
        ),
    )


def _column(polygons: Polygons, *names: str) -> npt.NDArray[np.str_]:
    """The texts of the first of these columns that is there; empty where a row has none."""
    values = next(
        (polygons.columns[name] for name in names if name in polygons.columns), [""] * len(polygons)
    )
    return np.array([value if isinstance(value, str) else "" for value in values], np.str_)


def _named(one: SceneMap, record: Mapping[str, Any]) -> str:
    """How footprints name a scene, which may have another name in a run."""
    return str(record.get("acquisition", {}).get("scene_id") or one.scene_id)


def _made_from(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of the record of one scene's run, where its inputs were and which they are."""
    plan = record.get("plan", {})
    known = {"inputs": {"scene": plan.get("inputs", {}).get("scene")}}
    options = {"options": {"bands": plan.get("options", {}).get("bands")}}
    return {"paths": record.get("paths", {}), "plan": {**known, **options}}


def _in_common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The model, thresholds and temperature that made all the maps; what differs between them is left out."""
    told = [
        {"model": model_of(record), **{name: record.get(name) for name in ("merging", "temperature")}}
        for record in records
    ]
    return {name: found for name, found in told[0].items() if found and all(t[name] == found for t in told)}


def _common_crs(frames: Sequence[geopandas.GeoDataFrame]) -> str:
    found = {frame.crs.to_wkt() for frame in frames}
    if len(found) == 1:
        return str(found.pop())
    south = min(frame.to_crs(_WHOLE_EARTH).total_bounds[1] for frame in frames)
    return _POLAR if south > _ARCTIC_LAT else _WHOLE_EARTH


def _in_crs(coverage: geopandas.GeoDataFrame, crs: str) -> geopandas.GeoDataFrame:
    """Coverage has edges of many kilometres, which bend where the CRS is another one."""
    return coverage if coverage.crs == crs else with_short_edges(coverage).to_crs(crs)


def _union(frame: geopandas.GeoDataFrame) -> Any:
    return shapely.union_all(make_polygons_valid(frame.geometry.to_numpy()))


def _as_one(frame: geopandas.GeoDataFrame, rows: Sequence[int], crs: CRS) -> dict[str, Any]:
    """A new footprint with the outline of several; what cannot be united is that of the best scored."""
    members = frame.loc[list(rows)]
    polygon = _union(members)
    best = members.sort_values(["score", "id"], ascending=[False, True]).iloc[0].to_dict()
    lon, lat = centroid_lonlat(polygon, crs)
    names = sorted({name for text in members["modalities"] for name in str(text).split(",") if name})
    changed = {
        "id": str(uuid.uuid5(_UNION_NAMESPACE, ",".join(sorted(members["id"])))),
        "area_m2": geodesic_area_m2(polygon, crs),
        "perimeter_m": geodesic_perimeter_m(polygon, crs),
        "centroid_lon": lon,
        "centroid_lat": lat,
        "n_parts": int(members["n_parts"].sum()),
        "seam_unconfirmed": bool(members["seam_unconfirmed"].all()),
        "modalities": ",".join(names),
        "valid_share": float(members["valid_share"].max()),
        "geometry": polygon,
        SUPERSEDED: None,
    }
    return {**best, **changed}


def _unite_coverage(frames: Sequence[geopandas.GeoDataFrame], crs: str) -> geopandas.GeoDataFrame:
    """Each ground once: mapped where one scene mapped it, failed where one failed that could have."""
    together = pd.concat(frames, ignore_index=True)
    rows: list[dict[str, Any]] = []
    taken = shapely.Polygon()
    for status in (MAPPED, FAILED, NO_DATA, LEFT_OUT):
        of_status = together[together["status"] == status]
        for reason, group in of_status.groupby(of_status["reason"].fillna(""), sort=True):
            ground = only_polygons(shapely.difference(_union(group), taken))
            taken = shapely.union(taken, ground)
            if ground.area > 0:
                area_m2 = geodesic_area_m2(ground, CRS(crs))
                rows.append({"status": status, "reason": reason, "area_m2": area_m2, "geometry": ground})
    columns = [*COVERAGE_COLUMNS, "geometry"]
    return geopandas.GeoDataFrame(rows, columns=columns, geometry="geometry", crs=crs)
