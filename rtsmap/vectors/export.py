"""A map in other formats: Shapefile, GeoJSON, FlatGeobuf, GeoParquet, or a GeoPackage of a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import geopandas
from pandas.api.types import is_bool_dtype

from rtsmap.errors import OptionsError
from rtsmap.vectors.atomic import refuse_existing
from rtsmap.vectors.formats import driver_of, write_frame
from rtsmap.vectors.geopackage import FOOTPRINT_LAYER, read_layers, read_map, write_layers

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
    "status": "status",
    "reason": "reason",
}
"""Names in a shapefile, which has ten characters for each."""

SHAPEFILE_TEXT_BYTES = 254


def export_map(
    gpkg: Path | str,
    out: Path | str,
    *,
    layer: str = FOOTPRINT_LAYER,
    min_score: float = 0.0,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a layer of a map in the format that the suffix of `out` names; whole or not at all.

    Footprints with a score below `min_score` are left out. A .gpkg keeps everything else of the map;
    the other formats hold the one layer. GeoJSON is written in longitude and latitude. Returns notes
    on what the format could not hold. Raises InputError when `out` exists and `overwrite` is false,
    or when `gpkg` is not a map.
    """
    gpkg, out = Path(gpkg), Path(out)
    driver = driver_of(out)
    if gpkg.resolve() == out.resolve():
        raise OptionsError(f"{out}: a map cannot be exported onto itself; name another output")
    if not 0 <= min_score <= 1:
        raise OptionsError(f"min_score must be within 0..1, got {min_score}")
    refuse_existing(out, overwrite=overwrite)
    if driver == "GPKG":
        layers = read_layers(gpkg)
        chosen = replace(layers, footprints=_at_least(layers.footprints, min_score))
        write_layers(out, chosen, overwrite=overwrite)
        return ()
    frame = _at_least(read_map(gpkg, layer), min_score)
    notes: tuple[str, ...] = ()
    if driver == "ESRI Shapefile":
        frame, notes = _for_shapefile(frame)
    elif driver == "GeoJSON" and frame.empty:
        notes = ("GeoJSON: without a single polygon the file has no columns",)
    return notes + write_frame(out, frame, layer=layer, overwrite=overwrite)


def _at_least(frame: geopandas.GeoDataFrame, min_score: float) -> geopandas.GeoDataFrame:
    if "score" not in frame.columns:
        return frame
    return frame[frame["score"] >= min_score].reset_index(drop=True)


def _for_shapefile(frame: geopandas.GeoDataFrame) -> tuple[geopandas.GeoDataFrame, tuple[str, ...]]:
    """The frame with short names and plain types, and what that cost."""
    names = [name for name in frame.columns if name != frame.geometry.name]
    short = {name: SHAPEFILE_NAMES.get(name, name) for name in names}
    unknown = [name for name in names if len(short[name]) > 10]
    renamed = [f"{name} is {short[name]}" for name in names if short[name] != name]
    notes = [f"shapefile: names have ten characters: {', '.join(renamed)}"] if renamed else []
    if unknown:
        notes.append(f"shapefile: no short name is known for {', '.join(unknown)}, left out")
    frame = frame.drop(columns=unknown).rename(columns=short)
    flags = [name for name in short.values() if name in frame and is_bool_dtype(frame[name])]
    if flags:
        notes.append(f"shapefile: yes and no are 1 and 0 in {', '.join(flags)}")
    frame = frame.astype(dict.fromkeys(flags, "int32"))
    for name in frame.columns.drop(frame.geometry.name):
        if count := int(frame[name].map(_is_too_long).sum()):
            notes.append(f"shapefile: {count} texts in {name} were cut to {SHAPEFILE_TEXT_BYTES} bytes")
            frame[name] = frame[name].map(_cut_text)
    return frame, tuple(notes)


def _is_too_long(value: object) -> bool:
    return isinstance(value, str) and len(value.encode()) > SHAPEFILE_TEXT_BYTES


def _cut_text(value: object) -> object:
    return value.encode()[:SHAPEFILE_TEXT_BYTES].decode(errors="ignore") if isinstance(value, str) else value
