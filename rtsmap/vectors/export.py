"""A map in other formats: Shapefile, GeoJSON, FlatGeobuf, GeoParquet, KML, CSV, or a GeoPackage of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

import geopandas
import pandas as pd
import pyproj
import shapely
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype

from rtsmap.atomic import refuse_existing, refuse_inputs
from rtsmap.errors import OptionsError
from rtsmap.vectors.formats import IN_LONLAT, driver_of, in_lonlat, with_short_edges, write_frame
from rtsmap.vectors.geopackage import (
    FOOTPRINT_LAYER,
    read_layers,
    read_map,
    write_layers,
)
from rtsmap.vectors.kinds import DATE
from rtsmap.vectors.kml import id_name
from rtsmap.vectors.repair import Shapes, make_polygons_valid
from rtsmap.vectors.verdicts import REJECTED, REVIEW_COLUMN, notes_on_verdicts

SHAPEFILE_NAMES: Mapping[str, str] = {
    "id": "id",
    "score": "score",
    "area_m2": "area_m2",
    "perimeter_m": "perim_m",
    "centroid_lon": "cent_lon",
    "centroid_lat": "cent_lat",
    "n_parts": "n_parts",
    "seam_unconfirmed": "seam_unc",
    "modalities": "modalities",
    "valid_share": "valid_shr",
    "elevation_min_m": "elev_min_m",
    "elevation_max_m": "elev_max_m",
    "elevation_range_m": "elev_rng_m",
    "slope_deg": "slope_deg",
    "aspect_deg": "aspect_deg",
    "relief_m": "relief_m",
    "scene_id": "scene_id",
    "acquired": "acquired",
    "dem_date": "dem_date",
    "status": "status",
    "reason": "reason",
    "review": "review",
    "review_comment": "rev_comm",
    "superseded_by": "superseded",
}
"""Names in a shapefile."""

SHAPEFILE_NAME_BYTES = 10
SHAPEFILE_TEXT_BYTES = 254

_WGS84 = (("EPSG", "4326"), ("OGC", "CRS84"))
_HALF_THE_WORLD = {True: 180.0, False: 1e7}
"""In degrees, and in metres: no polygon is as wide."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which footprints are exported: those with at least this score and area.

    If `without_rejected`, those that a review has rejected are left out too. Raises OptionsError for
    numbers that cannot be.
    """

    min_score: float = 0.0
    min_area_m2: float = 0.0
    without_rejected: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise OptionsError(f"min_score must be within 0..1, got {self.min_score}")
        if not 0 <= self.min_area_m2 < float("inf"):
            raise OptionsError(f"min_area_m2 must be 0 or more, got {self.min_area_m2}")

    def of(self, footprints: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
        """The chosen ones of a map's footprints."""
        # what was drawn by hand has no score, or any, and is left out only where scores are asked for
        scores, areas = footprints["score"].fillna(0), footprints["area_m2"].fillna(0)
        chosen = ((scores >= self.min_score) | (self.min_score == 0)) & (areas >= self.min_area_m2)
        if self.without_rejected and REVIEW_COLUMN in footprints:
            chosen &= footprints[REVIEW_COLUMN] != REJECTED
        return footprints[chosen].reset_index(drop=True)


EVERYTHING = Selection()


def export_map(
    gpkg: Path | str,
    out: Path | str,
    *,
    layer: str = FOOTPRINT_LAYER,
    select: Selection = EVERYTHING,
    crs: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a layer of a map in the format that the suffix of `out` names; whole or not at all.

    `select` chooses among footprints; other layers are written whole. A .gpkg keeps everything else of the
    map; the other formats hold the one layer. `crs` is any that pyproj knows; without one GeoJSON, KML and
    CSV are in longitude and latitude, the others in the map's. Returns notes on what the format could not
    hold. Raises InputError when `out` exists and `overwrite` is false, or when `gpkg` is not a map, and
    OptionsError for what cannot be asked for.
    """
    gpkg, out = Path(gpkg), Path(out)
    driver = driver_of(out)
    refuse_inputs(out, [gpkg])
    if layer != FOOTPRINT_LAYER and select != EVERYTHING:
        raise OptionsError(
            f"layer '{layer}': scores, areas and reviews choose footprints only; leave them out"
        )
    target = _target(driver, crs)
    refuse_existing(out, overwrite=overwrite)
    if driver == "GPKG":
        return _export_whole(gpkg, out, select, target, overwrite=overwrite)
    frame = read_map(gpkg, layer)
    notes: tuple[str, ...] = ()
    if layer == FOOTPRINT_LAYER:
        notes, frame = notes_on_reviews(frame), select.of(frame)
    told: tuple[str, ...] = ()
    if target is not None:
        frame, told = reprojected(frame, target)
    elif driver == "CSV":
        frame, told = in_lonlat(frame, driver)
    notes += told
    if driver == "ESRI Shapefile":
        frame, told = _for_shapefile(frame)
    else:
        told = _what_differs(driver, frame, crs)
    notes += told
    return notes + write_frame(out, frame, layer=layer, overwrite=overwrite)


def _what_differs(driver: str, frame: geopandas.GeoDataFrame, crs: str | None) -> tuple[str, ...]:
    """What a reader of this format has to know."""
    days = [str(name) for name, kind in frame.dtypes.items() if kind == DATE]
    if driver == "FlatGeobuf" and days:
        return (f"FlatGeobuf: dates have a time, 00:00, in {', '.join(days)}",)
    if driver == "GeoJSON" and frame.empty:
        return ("GeoJSON: without a single polygon the file has no columns",)
    if driver == "KML" and "id" in frame:
        return (f"KML: id is {id_name(frame.columns)}",)
    if driver == "CSV":
        return (f"CSV: outlines are WKT in {crs or 'longitude and latitude (EPSG:4326)'}",)
    return ()


def _target(driver: str, crs: str | None) -> pyproj.CRS | None:
    """The CRS to turn polygons into; None where the format or the map has its own."""
    if crs is None:
        return None
    try:
        target = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as exc:
        raise OptionsError(f"--crs {crs}: no such coordinate reference system: {exc}") from exc
    if not (target.is_projected or target.is_geographic):
        raise OptionsError(f"--crs {crs}: {target.type_name} has no place for outlines; name a map CRS")
    if driver not in IN_LONLAT:
        return target
    if target.to_authority() not in _WGS84:
        raise OptionsError(f"--crs {crs}: {driver} is always in longitude and latitude; leave --crs out")
    return None


def _export_whole(
    gpkg: Path, out: Path, select: Selection, target: pyproj.CRS | None, *, overwrite: bool
) -> tuple[str, ...]:
    layers = read_layers(gpkg)
    notes = notes_on_reviews(layers.footprints)
    frames = {"footprints": select.of(layers.footprints), "coverage": layers.coverage}
    if target is not None:
        for name, frame in frames.items():
            frames[name], told = reprojected(frame, target)
            notes += told
    # a copy of the map says what the map says, not what another copy did
    return notes + write_layers(out, replace(layers, **frames), overwrite=overwrite, carry=False)


def notes_on_reviews(footprints: geopandas.GeoDataFrame) -> tuple[str, ...]:
    """What people should know of the reviews of a map, if it has any."""
    return notes_on_verdicts(footprints[REVIEW_COLUMN]) if REVIEW_COLUMN in footprints else ()


def reprojected(
    frame: geopandas.GeoDataFrame, crs: pyproj.CRS
) -> tuple[geopandas.GeoDataFrame, tuple[str, ...]]:
    """The frame in another CRS, repaired where that broke polygons, and what was repaired.

    In longitude and latitude of WGS84 polygons are cut at 180 degrees; OptionsError for another CRS that
    ends there, where polygons go on.
    """
    if crs.to_authority() in _WGS84:
        turned, notes = in_lonlat(frame, "export")
        return turned.set_crs(crs, allow_override=True), notes
    turned = with_short_edges(frame).to_crs(crs)
    shapes = turned.geometry.to_numpy()
    _refuse_torn(shapes, crs)
    broken = int((~shapely.is_valid(shapes)).sum())
    if not broken:
        return turned, ()
    shapes = geopandas.GeoSeries(make_polygons_valid(shapes), index=turned.index, crs=crs)
    return turned.set_geometry(shapes), (
        f"{broken} of {len(turned)} polygons had to be repaired in {crs.to_string()}",
    )


def _refuse_torn(shapes: Shapes, crs: pyproj.CRS) -> None:
    """Raise OptionsError where a polygon would go all around the Earth, as its ends lie on both sides."""
    left, _, right, _ = shapely.bounds(shapely.get_parts(shapes)).T
    torn = int((right - left > _HALF_THE_WORLD[crs.is_geographic]).sum())
    if torn:
        raise OptionsError(
            f"--crs {crs.to_string()[:40]}: {torn} polygons cross 180 degrees, where this CRS ends; choose "
            "EPSG:4326, in which they are cut there, or one that goes on, such as EPSG:3413"
        )


def _for_shapefile(frame: geopandas.GeoDataFrame) -> tuple[geopandas.GeoDataFrame, tuple[str, ...]]:
    """The frame with short names and plain types, and what that cost."""
    names = [name for name in frame.columns if name != frame.geometry.name]
    short = _short_names(names)
    renamed = [f"{name} is {short[name]}" for name in names if short[name] != name]
    notes = [f"shapefile: names have ten bytes: {', '.join(renamed)}"] if renamed else []
    frame = frame.rename(columns=short)
    flags = [name for name in short.values() if is_bool_dtype(frame[name])]
    if flags:
        notes.append(f"shapefile: yes and no are 1 and 0 in {', '.join(flags)}")
    # with gaps they are of a kind that has them
    frame = frame.astype({name: "int32" if frame[name].dtype == "bool" else "Int32" for name in flags})
    times = [
        name for name in short.values() if is_datetime64_any_dtype(frame[name]) and frame[name].dtype != DATE
    ]
    if times:
        notes.append(f"shapefile: times are texts in {', '.join(times)}")
        frame = frame.assign(**{name: frame[name].map(_iso, na_action="ignore") for name in times})
    for name in frame.columns.drop(frame.geometry.name):
        if count := sum(map(_is_too_long, frame[name])):
            notes.append(f"shapefile: {count} texts in {name} were cut to {SHAPEFILE_TEXT_BYTES} bytes")
            frame[name] = frame[name].map(_cut_text)
    return frame, tuple(notes)


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Names that a shapefile can hold, all different; columns that people added give way, and are cut."""
    short = {name: SHAPEFILE_NAMES[name] for name in names if name in SHAPEFILE_NAMES}
    for name in (name for name in names if name not in SHAPEFILE_NAMES):
        taken = {other.lower() for other in short.values()}
        endings = chain([""], (f"_{number}" for number in count(1)))
        # blanks at the ends, and line feeds, are taken off by whoever writes them
        plain = " ".join(name.split()) or "column"
        cut = (f"{_cut(plain, SHAPEFILE_NAME_BYTES - len(ending))}{ending}" for ending in endings)
        short[name] = next(one for one in cut if one.lower() not in taken)
    return short


def _iso(time: pd.Timestamp) -> str:
    return str(time.isoformat())


def _is_too_long(value: object) -> bool:
    return isinstance(value, str) and len(value.encode()) > SHAPEFILE_TEXT_BYTES


def _cut_text(value: object) -> object:
    return _cut(value, SHAPEFILE_TEXT_BYTES) if isinstance(value, str) else value


def _cut(text: str, size_bytes: int) -> str:
    """As many of its characters as fit."""
    return text.encode()[:size_bytes].decode(errors="ignore")
