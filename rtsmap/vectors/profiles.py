"""Maps in the form that others ask for: ARTS, the Permafrost Discovery Gateway, COCO results, STAC."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyarrow.parquet import read_schema
from shapely.affinity import affine_transform

from rtsmap.atomic import refuse_existing, refuse_inputs, whole_file
from rtsmap.errors import InputError, OptionsError, why
from rtsmap.instances.attributes import centroid_lonlat, geodesic_area_m2, geodesic_perimeter_m
from rtsmap.instances.coverage import MAPPED
from rtsmap.instances.run_lengths import coco_result
from rtsmap.vectors.export import EVERYTHING, Selection, notes_on_reviews
from rtsmap.vectors.formats import write_frame
from rtsmap.vectors.geopackage import (
    COVERAGE_LAYER,
    FOOTPRINT_LAYER,
    model_of,
    read_map,
    read_run_record,
    refuse_many,
)
from rtsmap.vectors.labels import read_polygons
from rtsmap.vectors.stac import stac_item
from rtsmap.vectors.united import standing
from rtsmap.vectors.verdicts import ACCEPTED, REJECTED, REVIEW_COLUMN
from rtsmap.wording import count_of

ARTS_REQUIRED = (
    "CentroidLat",
    "CentroidLon",
    "RegionName",
    "CreatorLab",
    "BaseMapDate",
    "BaseMapSource",
    "BaseMapResolution",
    "TrainClass",
    "LabelType",
)
ARTS_RELATIONS = ("MergedRTS", "SplitRTS", "NewRTS", "StabilizedRTS", "UnknownRelationship")
"""Filled by ARTS, which holds new footprints against those that it has."""

ARTS_GIVEN = ("RegionName", "CreatorLab", "BaseMapDate", "BaseMapSource")
ARTS_FIELDS = (*ARTS_REQUIRED, *ARTS_RELATIONS, "ContributionDate", "UID", "BaseMapID", "Area", "Notes")
"""In the order of the data set's own Metadata_Format_Summary.csv."""

PDG_UNKNOWN = -9999.0
"""Stands for a missing number: the gateway's staging takes no NaN."""

CHIPS = "chips.parquet"


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What a profile may be told: `fields` by name (`arts`), and `chips` of `rtsmap tile` (`challenge`)."""

    fields: Mapping[str, str] = field(default_factory=dict)
    chips: Path | None = None


NO_OPTIONS = ProfileOptions()


def export_profile(
    gpkg: Path | str,
    out: Path | str,
    profile: str,
    *,
    layer: str = FOOTPRINT_LAYER,
    select: Selection = EVERYTHING,
    options: ProfileOptions = NO_OPTIONS,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write what stands in a map as a profile of `PROFILES` wants it; whole or not at all. Returns notes.

    `arts` is GeoJSON with the fields of the ARTS data set, without what a review has rejected. `pdg` is a
    GeoPackage of single polygons without missing numbers for the gateway's staging; with the layer
    `coverage` the outline of what was mapped, which its deduplication wants. `challenge` is a JSON list of
    COCO results with compressed run lengths: on the map's grid as one image with id 1, or on `chips`.
    `stac` is the record as a STAC item, with the MLM extension for the model.
    Raises OptionsError for what the profile cannot be told or must be told, InputError for other files.
    """
    gpkg, out = Path(gpkg), Path(out)
    if profile not in PROFILES:
        raise OptionsError(f"profile '{profile}': wanted one of {', '.join(PROFILES)}")
    suffix, write = PROFILES[profile]
    if out.suffix.lower() != suffix:
        raise OptionsError(f"{out}: the profile {profile} is written as {suffix}")
    if options.fields and profile != "arts":
        raise OptionsError(f"the profile {profile} takes no fields, got {', '.join(options.fields)}")
    if options.chips and profile != "challenge":
        raise OptionsError(f"the profile {profile} knows no chips")
    if layer != FOOTPRINT_LAYER and (profile, layer) != ("pdg", COVERAGE_LAYER):
        raise OptionsError(f"the profile {profile} has no layer '{layer}'")
    refuse_inputs(out, [gpkg])
    refuse_existing(out, overwrite=overwrite)
    if layer == COVERAGE_LAYER:
        return _write_pdg_coverage(gpkg, out, overwrite=overwrite)
    footprints = read_map(gpkg)
    stand = standing(footprints)
    gone = len(footprints) - len(stand)
    notes = notes_on_reviews(stand)
    if gone:
        notes = (f"left out: {count_of(gone, 'footprint')} that gave way to those of other scenes", *notes)
    return notes + write(_Export(gpkg, select.of(stand), read_run_record(gpkg), options, out, overwrite))


@dataclass(frozen=True, slots=True)
class _Export:
    gpkg: Path
    footprints: geopandas.GeoDataFrame
    record: Mapping[str, Any]
    options: ProfileOptions
    out: Path
    overwrite: bool

    @property
    def model(self) -> Mapping[str, Any]:
        return model_of(self.record)


def _scene(record: Mapping[str, Any]) -> str | None:
    path = record.get("paths", {}).get("scene")
    return None if path is None else Path(path).stem


# ARTS


def arts_uid(row: Mapping[str, Any]) -> str:
    """The UID that ARTS gives: uuid5 (DNS) of its required fields as one text, whole metres as integers."""
    resolution = float(row["BaseMapResolution"])
    values = {**row, "BaseMapResolution": int(resolution) if resolution.is_integer() else resolution}
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "".join(str(values[name]) for name in ARTS_REQUIRED)))


def _write_arts(job: _Export) -> tuple[str, ...]:
    footprints = job.footprints
    notes = []
    if REVIEW_COLUMN in footprints:
        kept = footprints[footprints[REVIEW_COLUMN] != REJECTED].reset_index(drop=True)
        notes.append(f"ARTS: {len(footprints) - len(kept)} rejected footprints left out")
        footprints = kept
    unseen = len(footprints)
    if REVIEW_COLUMN in footprints:
        unseen -= int((footprints[REVIEW_COLUMN] == ACCEPTED).sum())
    if unseen:
        notes.append(f"ARTS: accepted by nobody yet: {unseen} of {count_of(len(footprints), 'footprint')}")
    given = _arts_given(job, footprints)
    rows = [_arts_row(slump, given, job) for slump in footprints.drop(columns="geometry").to_dict("records")]
    frame = geopandas.GeoDataFrame(
        pd.DataFrame(rows, columns=list(ARTS_FIELDS)),
        geometry=footprints.geometry.to_numpy(),
        crs=footprints.crs,
    )
    doubled = int(frame["UID"].duplicated().sum())
    if doubled:
        notes.append(
            f"ARTS: {count_of(doubled, 'footprint')} with UID and centroid (to a metre) of another one"
        )
    return tuple(notes) + write_frame(job.out, frame, layer="ARTS", overwrite=job.overwrite)


def _arts_given(job: _Export, footprints: geopandas.GeoDataFrame) -> dict[str, Any]:
    """What is told once for all; None where the footprints themselves know better."""
    fields = job.options.fields
    allowed = (*ARTS_GIVEN, "BaseMapResolution", "BaseMapID", "ContributionDate")
    strangers = sorted(set(fields) - set(allowed))
    if strangers:
        raise OptionsError(f"ARTS: {', '.join(strangers)} cannot be given; there are {', '.join(allowed)}")
    known = job.record.get("acquisition", {})
    if known.get("acquired"):
        fields = {"BaseMapDate": known["acquired"][:10], **fields}
    missing = [name for name in ARTS_GIVEN if not fields.get(name, "").strip()]
    if len(footprints) and "acquired" in footprints and footprints["acquired"].notna().all():
        missing = [name for name in missing if name != "BaseMapDate"]
    if missing:
        told = " ".join(f"--field {name}=..." for name in missing)
        raise OptionsError(f"ARTS wants {', '.join(missing)}, which the map does not know; give {told}")
    given: dict[str, Any] = {
        "BaseMapID": known.get("scene_id") or _scene(job.record),
        "BaseMapDate": None,
        "ContributionDate": None,
        **fields,
    }
    for name in ("BaseMapDate", "ContributionDate"):
        _check_dates(name, given[name])
    resolution = fields.get("BaseMapResolution", job.model.get("input", {}).get("resolution_m"))
    given["BaseMapResolution"] = _metres(resolution)
    return given


def _check_dates(name: str, text: str | None) -> None:
    parts = [] if text is None else text.split(",")
    days: list[date] = []
    with suppress(ValueError):
        days = [date.fromisoformat(part) for part in parts]
    # Python reads more of ISO 8601 than ARTS does: weeks, and days without hyphens
    if [day.isoformat() for day in days] != parts:
        raise OptionsError(f"ARTS: {name} is '{text}'; wanted YYYY-MM-DD, or two with a comma between")
    if len(days) > (2 if name == "BaseMapDate" else 1) or days != sorted(days):
        raise OptionsError(f"ARTS: {name} is '{text}'; wanted one date, or first and last of a range")


def _metres(text: Any) -> float:
    try:
        metres = float(text)
    except (TypeError, ValueError) as exc:
        raise OptionsError(
            f"ARTS: BaseMapResolution is {text!r}; wanted metres: --field BaseMapResolution=4"
        ) from exc
    if not 0 < metres < 1000:
        raise OptionsError(f"ARTS: BaseMapResolution is {metres:g}; wanted metres")
    return metres


def _arts_row(slump: Mapping[str, Any], given: Mapping[str, Any], job: _Export) -> dict[str, Any]:
    made = f"rtsmap {job.record.get('rtsmap_version', '')}, model {job.model.get('name', 'unknown')}"
    row: dict[str, Any] = {
        **dict.fromkeys(ARTS_RELATIONS),
        **given,
        "BaseMapDate": given["BaseMapDate"] or str(slump["acquired"])[:10],
        "BaseMapID": given["BaseMapID"] or slump.get("scene_id"),
        "CentroidLat": round(slump["centroid_lat"], 5),
        "CentroidLon": round(slump["centroid_lon"], 5),
        "TrainClass": "Positive",
        "LabelType": "Polygon",
        "Area": round(slump["area_m2"], 1),
        "Notes": f"{made} {job.model.get('version', '')}, {_how_found(slump)}",
    }
    return row | {"UID": arts_uid(row)}


def _how_found(slump: Mapping[str, Any]) -> str:
    score, identity = slump["score"], slump["id"]
    return "added by hand" if pd.isna(score) or pd.isna(identity) else f"score {score:.3f}, id {identity}"


# Permafrost Discovery Gateway


def _write_pdg(job: _Export) -> tuple[str, ...]:
    frame = job.footprints.explode(ignore_index=True)
    extra = len(frame) - len(job.footprints)
    crs = CRS(frame.crs)
    notes = []
    if extra:
        split = frame["id"].duplicated(keep=False).to_numpy()
        for number in np.flatnonzero(split):
            piece = frame.geometry.iloc[number]
            lon, lat = centroid_lonlat(piece, crs)
            columns = ["area_m2", "perimeter_m", "centroid_lon", "centroid_lat"]
            sizes = geodesic_area_m2(piece, crs), geodesic_perimeter_m(piece, crs)
            frame.loc[number, columns] = [*sizes, lon, lat]
        notes.append(
            f"PDG: slumps of several pieces are {count_of(extra, 'row')} more, "
            "each with its own area and centroid"
        )
    numbers = frame.select_dtypes("number").columns
    unknown = int(frame[numbers].isna().sum().sum())
    if unknown:
        frame[numbers] = frame[numbers].fillna(PDG_UNKNOWN)
        notes.append(f"PDG: {unknown} unknown numbers are {PDG_UNKNOWN:g}; tell the workflow so (nodata)")
    for name in frame.columns[frame.dtypes != "bool"].drop([*numbers, "geometry"]):
        frame[name] = ["" if pd.isna(value) else str(value) for value in frame[name]]
    return tuple(notes) + write_frame(job.out, frame, layer=job.out.stem, overwrite=job.overwrite)


def _write_pdg_coverage(gpkg: Path, out: Path, *, overwrite: bool) -> tuple[str, ...]:
    coverage, record = read_map(gpkg, COVERAGE_LAYER), read_run_record(gpkg)
    mapped = coverage[coverage["status"] == MAPPED][["geometry"]].explode(ignore_index=True)
    mapped["date"] = str(record.get("finished_utc", ""))[:10]
    mapped["scene"] = _scene(record) or ""
    return write_frame(out, mapped, layer=out.stem, overwrite=overwrite)


# COCO results


def _write_challenge(job: _Export) -> tuple[str, ...]:
    images = {1: _grid_of(job)} if job.options.chips is None else dict(_chips_of(job.options.chips))
    results: list[dict[str, Any]] = []
    ranked = job.footprints.dropna(subset="score").sort_values("score", ascending=False, kind="stable")
    for image, geobox in images.items():
        shapes = ranked.to_crs(geobox.crs.proj) if geobox.crs.proj != ranked.crs else ranked
        to_pixels = (~geobox.affine).to_shapely()
        tree = shapely.STRtree(shapes.geometry.to_numpy())
        for position in sorted(tree.query(geobox.extent.geom, predicate="intersects").tolist()):
            outline = affine_transform(tree.geometries[position], to_pixels)
            score = float(shapes["score"].iloc[position])
            result = coco_result(image, outline, tuple(geobox.shape), score)
            if result is not None:
                results.append(result)
    with whole_file(job.out, overwrite=job.overwrite) as temporary:
        temporary.write_text(json.dumps(results), encoding="utf-8")
    notes = [f"challenge: {len(results)} results on {len(images)} images"]
    if by_hand := len(job.footprints) - len(ranked):
        notes.append(f"challenge: left out: {count_of(by_hand, 'footprint')} without a score")
    return tuple(notes)


def _grid_of(job: _Export) -> GeoBox:
    refuse_many(job.gpkg, job.record, "a map as one image")
    grid = job.record.get("plan", {}).get("grid")
    if grid is None:
        raise InputError(
            "the map's record has no grid; give the chips of `rtsmap tile`, or map the scene again"
        )
    return GeoBox(tuple(grid["shape"]), Affine(*grid["affine"]), grid["crs"])


def _chips_of(folder: Path) -> Iterator[tuple[int, GeoBox]]:
    """Number and grid of each chip that `rtsmap tile` has written."""
    index = folder / CHIPS if folder.is_dir() else folder
    if index.is_file() and index.suffix == ".parquet" and "geometry" not in _columns_of(index):
        raise InputError(
            f"{index}: these chips have no place on Earth, where the map is; `rtsmap predict CHIPS.npz -o "
            "results.json` writes results of such chips"
        )
    chips = read_polygons(index)
    if not {"chip", "height", "width"} <= set(chips.columns):
        raise InputError(f"{index}: wanted the index {CHIPS} of a folder that `rtsmap tile` has written")
    rows = zip(chips.geometries, *(chips.columns[name] for name in ("chip", "height", "width")), strict=True)
    for outline, number, height, width in rows:
        left, bottom, right, top = outline.bounds
        affine = Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top)
        yield int(number), GeoBox((int(height), int(width)), affine, chips.crs)


def _columns_of(index: Path) -> list[str]:
    try:
        names: list[str] = read_schema(index).names
    except (OSError, ValueError) as exc:
        raise InputError(f"{index}: cannot be read as the index of chips: {why(exc)}") from exc
    return names


# STAC


def _write_stac(job: _Export) -> tuple[str, ...]:
    refuse_many(job.gpkg, job.record, "a STAC item")
    item = stac_item(job.gpkg, job.record, read_map(job.gpkg, COVERAGE_LAYER))
    item["properties"]["rtsmap:footprints"] = len(job.footprints)
    with whole_file(job.out, overwrite=job.overwrite) as temporary:
        temporary.write_text(
            json.dumps(item, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
        )
    return ()


_Writer = Callable[[_Export], tuple[str, ...]]

PROFILES: Mapping[str, tuple[str, _Writer]] = {
    "arts": (".geojson", _write_arts),
    "pdg": (".gpkg", _write_pdg),
    "challenge": (".json", _write_challenge),
    "stac": (".json", _write_stac),
}
"""Suffix and writer of each profile."""
