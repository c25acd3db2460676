"""Polygons from files and back: labels, truth and areas of interest, as shapely geometries with a CRS."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import pyproj
import shapely
from odc.geo.crs import CRS
from shapely.geometry.base import BaseGeometry

from rtsmap import sandbox
from rtsmap.atomic import refuse_odd_name
from rtsmap.errors import LabelError, why
from rtsmap.vectors.formats import DRIVERS, write_frame
from rtsmap.vectors.repair import is_polygonal, make_polygons_valid

MAP_LAYER = "rts_footprints"
ZIPPED_SUFFIXES = (".shp", ".gpkg", ".geojson", ".json", ".fgb", ".kml")
_MOST_DEGREES = 540.0
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class Polygons:
    """Valid, non-empty 2-D polygons or multipolygons in `crs`.

    `columns` holds the attributes, one value a polygon; `notes` says what reading had to change.
    Raises LabelError when lengths disagree or a geometry is not such a polygon.
    """

    geometries: tuple[BaseGeometry, ...]
    crs: CRS
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if len(values) != len(self.geometries):
                raise LabelError(
                    f"column '{name}' has {len(values)} values for {len(self.geometries)} polygons"
                )
        geometries = np.array(self.geometries, dtype=object)
        usable = is_polygonal(geometries) & shapely.is_valid(geometries) & ~shapely.is_empty(geometries)
        if not usable.all():
            at = int(np.flatnonzero(~usable)[0])
            raise LabelError(
                f"polygon {at} is empty, invalid or not a polygon: {str(self.geometries[at])[:80]}"
            )

    def __len__(self) -> int:
        return len(self.geometries)

    def to_crs(self, crs: CRS) -> Polygons:
        """The same polygons in another CRS, vertices transformed, repaired where that broke them."""
        frame = geopandas.GeoSeries(self.geometries, crs=self.crs.proj).to_crs(crs.proj)
        geometries, keep, notes = _usable_polygons(np.asarray(frame.array))
        columns = {name: _take(values, keep) for name, values in self.columns.items()}
        return Polygons(tuple(geometries), crs, columns, self.notes + notes)


def read_polygons(path: Path | str, layer: str | None = None) -> Polygons:
    """Read polygons from a Shapefile (also zipped), GeoPackage, GeoJSON, KML, FlatGeobuf or GeoParquet.

    Z is dropped, invalid polygons are repaired, other geometries are left out; `notes` counts each.
    Without `layer` the file must have one polygon layer (a map of rtsmap gives its footprints).
    A file that holds no feature is ground without slumps, and `notes` says so.
    Raises LabelError for a missing or unreadable file, a Git LFS pointer, a file without CRS, or
    one with features of which none is a polygon.
    """
    path = Path(path)
    _check_content_is_here(path)
    look_first(path, None)
    shapes, crs, columns, notes = _read_parquet(path) if _is_parquet(path) else _read_ogr(path, layer)
    if not crs:
        raise LabelError(
            f"{path}: no coordinate reference system; polygons without one cannot be placed on a scene. "
            "Add it (a .prj file for a shapefile, or with ogr2ogr -a_srs)"
        )
    if not len(shapes):
        nothing: dict[str, list[Any]] = {name: [] for name in columns}
        return Polygons((), _parse_crs(path, crs), nothing, (*notes, "no feature: ground without slumps"))
    geometries, keep, repairs = _usable_polygons(shapes)
    parsed = _parse_crs(path, crs)
    _check_degrees(path, geometries, parsed)
    if not len(geometries):
        kinds = sorted({f"{'empty ' * g.is_empty}{g.geom_type}" for g in shapes if g is not None})
        raise LabelError(
            f"{path}: no polygon among {len(shapes)} features (found: {', '.join(kinds) or 'no geometry'}); "
            "give a file of polygons"
        )
    return Polygons(
        tuple(geometries),
        parsed,
        {name: _take(values, keep) for name, values in columns.items()},
        notes + repairs,
    )


def look_first(path: Path, layer: str | None) -> None:
    """Have the file read in a child process; LabelError for what crashes or stalls there."""
    refuse_odd_name(path)
    source = f"/vsizip/{path}" if path.suffix.lower() == ".zip" else str(path)
    try:
        sandbox.call("rtsmap.vectors.first_look:look", source, layer)
    except sandbox.CrashedError as exc:
        raise LabelError(f"{path}: {exc}; the file is damaged, or not what its name says") from exc


def write_polygons(
    path: Path | str, polygons: Polygons, layer: str | None = None, *, overwrite: bool = False
) -> None:
    """Write polygons in the format that the suffix names; see `write_frame`."""
    frame = geopandas.GeoDataFrame(
        dict(polygons.columns), geometry=list(polygons.geometries), crs=polygons.crs.proj
    )
    write_frame(Path(path), frame, layer=layer, overwrite=overwrite)


def _check_content_is_here(path: Path) -> None:
    if not path.exists():
        raise LabelError(f"{path}: no such file")
    parts = [path]
    if path.suffix.lower() == ".shp":
        parts += [path.with_suffix(suffix) for suffix in (".shx", ".dbf", ".prj")]
    for part in parts:
        if _starts_with(part, LFS_POINTER):
            raise LabelError(
                f"{part}: this is a Git LFS pointer, not the file itself; "
                "fetch the content with 'git lfs pull'"
            )
    if path.is_file() and path.stat().st_size == 0:
        raise LabelError(f"{path}: the file is empty (0 bytes)")


def _starts_with(path: Path, beginning: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(beginning)) == beginning


def _is_parquet(path: Path) -> bool:
    return DRIVERS.get(path.suffix.lower()) == "Parquet"


_Raw = tuple[npt.NDArray[Any], Any, dict[str, list[Any]], tuple[str, ...]]


def _read_parquet(path: Path) -> _Raw:
    try:
        frame = geopandas.read_parquet(path)
    except (OSError, ValueError) as exc:
        raise LabelError(f"{path}: cannot be read as GeoParquet: {why(exc)}") from exc
    names = [name for name in frame.columns if name != frame.geometry.name]
    columns = {str(name): frame[name].tolist() for name in names}
    return np.asarray(frame.geometry.array), frame.crs, columns, ()


def _read_ogr(path: Path, layer: str | None) -> _Raw:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = _member_of_zip(path, layer) if path.suffix.lower() == ".zip" else str(path)
            name = _choose_layer(path, source, layer)
            meta, _, wkb, values = pyogrio.raw.read(source, layer=name, datetime_as_string=True)
    except LabelError:
        raise
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, RuntimeError, ValueError) as exc:
        raise LabelError(f"{path}: cannot be read as a vector file: {why(exc)}") from exc
    columns = {str(field): column.tolist() for field, column in zip(meta["fields"], values, strict=True)}
    try:
        geometries = np.array([], dtype=object) if wkb is None else shapely.from_wkb(wkb, on_invalid="fix")
    except shapely.errors.GEOSException as exc:
        raise LabelError(f"{path}: its geometries are damaged: {exc}") from exc
    notes = tuple(dict.fromkeys(f"GDAL: {warning.message}" for warning in caught))
    return geometries, meta["crs"], columns, notes


def _member_of_zip(path: Path, layer: str | None) -> str:
    """The one vector file in an archive, in whatever folder there, as GDAL names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [PurePosixPath(name) for name in archive.namelist() if not name.startswith("__MACOSX")]
    except (zipfile.BadZipFile, OSError) as exc:
        raise LabelError(f"{path}: cannot be read as a zip archive: {why(exc)}") from exc
    found = [member for member in members if member.suffix.lower() in ZIPPED_SUFFIXES]
    chosen = [member for member in found if member.stem == layer] if len(found) > 1 and layer else found
    if len(chosen) != 1:
        raise LabelError(
            f"{path}: one vector file wanted in the archive, found {len(chosen)}: "
            f"{', '.join(map(str, found)) or 'none'}; unpack it and name one of several"
        )
    return f"/vsizip/{path}/{chosen[0]}"


def _choose_layer(path: Path, source: str, layer: str | None) -> str:
    layers = {str(name): geometry_type for name, geometry_type in pyogrio.list_layers(source)}
    if layer is not None:
        if layer not in layers:
            raise LabelError(f"{path}: no layer '{layer}'; the file has: {', '.join(layers) or 'none'}")
        return layer
    spatial = [name for name, geometry_type in layers.items() if geometry_type]
    polygonal = [name for name in spatial if "Polygon" in layers[name] or layers[name] == "Unknown"]
    if MAP_LAYER in polygonal:
        return MAP_LAYER
    candidates = polygonal or spatial
    if len(candidates) != 1:
        cure = f"; save the right one to a file of its own: ogr2ogr ONE.gpkg '{path}' '{candidates[0]}'"
        found = ", ".join(candidates) + cure if candidates else "none with geometry"
        raise LabelError(f"{path}: one layer of polygons wanted, found {len(candidates)}: {found}")
    return candidates[0]


def _usable_polygons(
    geometries: npt.NDArray[Any],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.intp], tuple[str, ...]]:
    """2-D valid polygons among the geometries, their positions, and what was changed or left out."""
    missing = shapely.is_missing(geometries) | shapely.is_empty(geometries)
    with_z = shapely.has_z(geometries)
    flat = shapely.force_2d(geometries)
    invalid = ~missing & ~shapely.is_valid(flat)
    shapes = make_polygons_valid(flat)
    hopeless = shapely.is_missing(shapes)
    usable = ~missing & is_polygonal(shapes) & ~shapely.is_empty(shapes)
    notes = [
        (int(missing.sum()), "without geometry left out"),
        (int((~missing & hopeless).sum()), "with impossible coordinates left out"),
        (int((~missing & ~hopeless & ~usable).sum()), "not polygons and left out"),
        (int((invalid & usable).sum()), "invalid and repaired"),
        (int((with_z & usable).sum()), "with Z, which was dropped"),
    ]
    return (
        shapes[usable],
        np.flatnonzero(usable),
        tuple(f"{count} of {len(shapes)} features {what}" for count, what in notes if count),
    )


def _check_degrees(path: Path, geometries: npt.NDArray[Any], crs: CRS) -> None:
    """GeoJSON and KML without a CRS count as degrees, whatever numbers they hold."""
    if crs.geographic and len(geometries):
        west, south, east, north = shapely.total_bounds(geometries)
        if max(-west, east) > _MOST_DEGREES or max(-south, north) > 90 + 1e-6:
            raise LabelError(
                f"{path}: its coordinates reach from {west:.6g}, {south:.6g} to {east:.6g}, {north:.6g}: "
                f"these are no degrees, but its CRS ({crs.proj.name}) is in degrees; give it the CRS "
                "that it was drawn in: ogr2ogr -a_srs EPSG:CODE OUT.gpkg FILE"
            )


def _parse_crs(path: Path, crs: Any) -> CRS:
    try:
        parsed = pyproj.CRS.from_user_input(crs)
        authority = parsed.to_authority(min_confidence=100)
        return CRS(":".join(authority) if authority else parsed.to_wkt())
    except pyproj.exceptions.CRSError as exc:
        raise LabelError(f"{path}: the coordinate reference system cannot be understood: {exc}") from exc


def _take(values: Sequence[Any], keep: npt.NDArray[np.intp]) -> list[Any]:
    return [values[i] for i in keep]
