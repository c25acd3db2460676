"""The map itself: a GeoPackage with footprints, coverage, the record of the run, and styles for QGIS."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely
from odc.geo.crs import CRS
from pandas.api.types import is_numeric_dtype

from rtsmap.atomic import whole_file
from rtsmap.errors import InputError, RunError, why
from rtsmap.instances.attributes import Footprint
from rtsmap.instances.coverage import CoverageArea
from rtsmap.vectors.edits import distinct_ids, flat_and_valid, measured
from rtsmap.vectors.formats import GPKG_VERSION, UNWRITABLE
from rtsmap.vectors.handiwork import keep_handiwork
from rtsmap.vectors.kinds import needs_arrow, with_kinds
from rtsmap.vectors.labels import MAP_LAYER, look_first
from rtsmap.vectors.qgis_style import coverage_qml, footprint_qml, style_rows
from rtsmap.vectors.verdicts import COMMENT_COLUMN, REVIEW_COLUMN, column_of, plain_verdicts
from rtsmap.wording import count_of

FOOTPRINT_LAYER = MAP_LAYER
COVERAGE_LAYER = "coverage"
RECORD_TABLE = "run_record"
STYLE_TABLE = "layer_styles"
GEOMETRY_COLUMN = "geom"
PORTION = 20_000
"""Footprints that are in memory at once, and written together."""

FOOTPRINT_COLUMNS: Mapping[str, str] = {
    "id": "object",
    "score": "float64",
    "area_m2": "float64",
    "perimeter_m": "float64",
    "centroid_lon": "float64",
    "centroid_lat": "float64",
    "n_parts": "int64",
    "seam_unconfirmed": "bool",
    "modalities": "object",
    "valid_share": "float64",
    "elevation_min_m": "float64",
    "elevation_max_m": "float64",
    "elevation_range_m": "float64",
    "slope_deg": "float64",
    "aspect_deg": "float64",
    "relief_m": "float64",
    "scene_id": "object",
    "acquired": "object",
    "dem_date": "object",
}
"""Attributes of a footprint in the order of the file; `Footprint` says what they mean.

`modalities` is a list with commas; numbers that need an elevation model are empty without one.
"""

COVERAGE_COLUMNS: Mapping[str, str] = {"status": "object", "reason": "object", "area_m2": "float64"}
_NUMBERS = [name for name, kind in FOOTPRINT_COLUMNS.items() if kind != "object"]
_NEEDED = {FOOTPRINT_LAYER: ("id", "score", "area_m2"), COVERAGE_LAYER: ("status", "reason")}

SUPERSEDED = "superseded_by"
"""Column of a map of many scenes: the footprint, or the scene, that a footprint gives way to."""


@dataclass(frozen=True, slots=True)
class Written:
    """How many footprints a map that was written holds, and what became of the one that it replaced."""

    footprints: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MapLayers:
    """Everything in a map, as it stands in the file."""

    footprints: geopandas.GeoDataFrame
    coverage: geopandas.GeoDataFrame
    run_record: Mapping[str, Any]


def write_map(
    path: Path | str,
    footprints: Iterable[Footprint],
    crs: CRS,
    coverage: Sequence[CoverageArea],
    run_record: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Written:
    """Write a map, whole or not at all.

    Footprints are written as they come, in portions of `PORTION` that are sorted from the top left, so that
    no more are in memory. `run_record` must be what JSON can hold; paths and numpy numbers are turned into
    it. What people have put into a map that is replaced is not lost: see `rtsmap.vectors.handiwork`. Raises
    InputError when `path` exists and `overwrite` is false, or cannot be written.
    """
    coverage_frame = _frame(
        [area.polygon for area in coverage],
        {name: [getattr(area, name) for area in coverage] for name in COVERAGE_COLUMNS},
        COVERAGE_COLUMNS,
        crs,
    )
    frames = (to_geodataframe(portion, crs) for portion in _portions(iter(footprints)))
    return _write_all(path, frames, coverage_frame, run_record, overwrite=overwrite)


def write_layers(
    path: Path | str, layers: MapLayers, *, overwrite: bool = False, carry: bool = True
) -> tuple[str, ...]:
    """Write the layers of a map as they are; see `write_map`. Gives notes.

    Unless `carry`, the map has the reviews of its layers alone, whatever is in one that is replaced.
    """
    return _write_all(
        path, [layers.footprints], layers.coverage, layers.run_record, overwrite=overwrite, carry=carry
    ).notes


def _portions(footprints: Iterator[Footprint]) -> Iterator[list[Footprint]]:
    """At least one portion, so that an empty map has its layer."""
    portion = list(islice(footprints, PORTION))
    while True:
        yield sorted(portion, key=_from_top_left)
        if not (portion := list(islice(footprints, PORTION))):
            return


def _write_all(
    path: Path | str,
    footprints: Iterable[geopandas.GeoDataFrame],
    coverage: geopandas.GeoDataFrame,
    run_record: Mapping[str, Any],
    *,
    overwrite: bool,
    carry: bool = True,
) -> Written:
    """Write footprints frame by frame, then all else."""
    path, count = Path(path), 0
    if path.suffix.lower() != ".gpkg":
        raise InputError(
            f"{path}: a map is a GeoPackage; name it with .gpkg and use export for other formats"
        )
    with whole_file(path, overwrite=overwrite) as temporary:
        # what frames raise while they are made is none of writing's
        for frame in footprints:
            with _told_of(path):
                _write_spatial(temporary, FOOTPRINT_LAYER, frame, "Thaw slumps found by rtsmap")
            count += len(frame)
        with _told_of(path):
            _write_spatial(temporary, COVERAGE_LAYER, coverage, "What was mapped, and what was not")
            _write_table(temporary, RECORD_TABLE, _record_rows(run_record), "How this map was made")
            styles = {FOOTPRINT_LAYER: footprint_qml(), COVERAGE_LAYER: coverage_qml()}
            rows = style_rows(styles, GEOMETRY_COLUMN)
            _write_table(temporary, STYLE_TABLE, rows, "Styles of QGIS", FID="id")
        own = {*FOOTPRINT_COLUMNS, *COVERAGE_COLUMNS, SUPERSEDED}
        notes = keep_handiwork(path, temporary, carry=carry, columns_of_maps=own)
        _check_written(temporary, count, len(coverage), len(run_record))
    return Written(count, notes)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except UNWRITABLE as exc:
        raise InputError(f"{path}: cannot be written: {exc}") from exc


def read_map(path: Path | str, layer: str = FOOTPRINT_LAYER) -> geopandas.GeoDataFrame:
    """Read the footprints of a map, or its `coverage`; raises InputError when it is not there.

    Figures of size and place are those of the outlines, also of slumps that were added, split or reshaped by
    hand; see `rtsmap.vectors.edits`. Slumps that were added lack id and score. Z is dropped, and outlines
    whose edges cross are untangled. Reviews are in small letters, whatever people typed.
    """
    path = Path(path)
    if layer not in _NEEDED:
        raise InputError(f"{path}: no layer '{layer}' is known in maps; there are {', '.join(_NEEDED)}")
    _check_is_map(path, layer)
    frame = _read(path, layer)
    missing = [name for name in _NEEDED[layer] if name not in frame.columns]
    if missing or not isinstance(frame, geopandas.GeoDataFrame) or frame.crs is None:
        what = f"no column '{missing[0]}'" if missing else "no geometry with a CRS"
        raise InputError(f"{path}: layer '{layer}' has {what}, so this is not a whole map of rtsmap")
    if nowhere := int(frame.geometry.isna().sum()):
        raise InputError(
            f"{path}: layer '{layer}' has {count_of(nowhere, 'row')} without geometry; "
            "delete what is empty in a GIS"
        )
    if layer != FOOTPRINT_LAYER:
        return frame
    for name in ("id", *_NUMBERS):
        if name in frame and frame[name].notna().any() and is_numeric_dtype(frame[name]) != (name != "id"):
            wanted = "texts" if name == "id" else "numbers"
            raise InputError(f"{path}: the column '{name}' of layer '{layer}' holds no {wanted} any more")
    outlines = flat_and_valid(frame.geometry.to_numpy())
    if emptied := int((~(shapely.area(outlines) > 0)).sum()):
        raise InputError(
            f"{path}: {count_of(emptied, 'footprint')} with an outline without area; "
            "delete what is empty in a GIS"
        )
    frame.geometry = outlines
    frame["id"] = distinct_ids(frame["id"])
    names = {column_of(frame.columns, wanted): wanted for wanted in (REVIEW_COLUMN, COMMENT_COLUMN)}
    frame = frame.rename(columns=names)
    if REVIEW_COLUMN in frame:
        frame[REVIEW_COLUMN] = pd.Series(plain_verdicts(frame[REVIEW_COLUMN]), frame.index, "object")
    return measured(frame)


def read_run_record(path: Path | str) -> dict[str, Any]:
    """Read the record of the run that made a map."""
    path = Path(path)
    _check_is_map(path, RECORD_TABLE)
    rows = _read(path, RECORD_TABLE)
    try:
        return {str(key): json.loads(value) for key, value in zip(rows["key"], rows["value"], strict=True)}
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        reason = f"{type(exc).__name__}: {exc}"
        raise InputError(f"{path}: the record of its run cannot be read ({reason})") from exc


def is_of_many(record: Mapping[str, Any]) -> bool:
    """True for the record of a map of many scenes."""
    return "plan" not in record and isinstance(record.get("scenes"), list)


def model_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Identity of the model that made a map, of one scene or of many; empty where the record lacks it."""
    found: Mapping[str, Any] = record.get("plan", record).get("model", {})
    return found


def refuse_many(path: Path, record: Mapping[str, Any], what: str) -> None:
    """Refuse a map of many scenes for what takes one scene."""
    if is_of_many(record):
        raise InputError(
            f"{path}: is a map of {len(record['scenes'])} scenes, and {what} is of one; the map of each lies "
            "in the run directory: RUN/SCENE/map.gpkg"
        )


def read_layers(path: Path | str) -> MapLayers:
    """Read everything in a map."""
    return MapLayers(read_map(path), read_map(path, COVERAGE_LAYER), read_run_record(path))


def to_geodataframe(footprints: Sequence[Footprint], crs: CRS) -> geopandas.GeoDataFrame:
    """Footprints as a frame with the columns of `FOOTPRINT_COLUMNS`, in the order given.

    Raises InputError when one is in another CRS than `crs`.
    """
    strangers = [footprint.id for footprint in footprints if footprint.crs != crs]
    if strangers:
        raise InputError(f"{len(strangers)} footprints are not in {crs}, the first is {strangers[0]}")
    columns = {name: [getattr(footprint, name) for footprint in footprints] for name in FOOTPRINT_COLUMNS}
    columns["modalities"] = [",".join(names) for names in columns["modalities"]]
    return _frame([footprint.polygon for footprint in footprints], columns, FOOTPRINT_COLUMNS, crs)


def _frame(
    polygons: Sequence[Any], columns: Mapping[str, list[Any]], dtypes: Mapping[str, str], crs: CRS
) -> geopandas.GeoDataFrame:
    # Types are given, not guessed, so that an empty map has the columns of a full one.
    series = {name: pd.Series(columns[name], dtype=dtype) for name, dtype in dtypes.items()}
    return geopandas.GeoDataFrame(series, geometry=geopandas.GeoSeries(polygons, crs=crs.proj))


def _from_top_left(footprint: Footprint) -> tuple[float, float, str]:
    left, _, _, top = footprint.polygon.bounds
    return -top, left, footprint.id


def _write_spatial(path: Path, layer: str, frame: geopandas.GeoDataFrame, description: str) -> None:
    if path.exists() and layer in pyogrio.list_layers(path)[:, 0]:
        pyogrio.write_dataframe(frame, path, layer=layer, append=True, promote_to_multi=True)
        return
    pyogrio.write_dataframe(
        frame,
        path,
        layer=layer,
        driver="GPKG",
        geometry_type="MultiPolygon",
        promote_to_multi=True,
        dataset_options=None if path.exists() else GPKG_VERSION,
        layer_options={"GEOMETRY_NAME": GEOMETRY_COLUMN, "DESCRIPTION": description},
        use_arrow=needs_arrow(frame),
    )


def _write_table(
    path: Path, table: str, columns: Mapping[str, list[Any]], description: str, **layer_options: str
) -> None:
    options = {"DESCRIPTION": description, **layer_options}
    frame = pd.DataFrame(dict(columns))
    pyogrio.write_dataframe(frame, path, layer=table, driver="GPKG", layer_options=options)


def _record_rows(record: Mapping[str, Any]) -> dict[str, list[Any]]:
    values = [
        json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, sort_keys=True)
        for value in record.values()
    ]
    return {
        "key": pd.Series([str(key) for key in record], dtype="object"),
        "value": pd.Series(values, dtype="object"),
    }


def _plain(value: Any) -> Any:
    """What JSON can hold; numbers that are not finite become null, anything unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    # names of files may be no text, which cannot be stored
    return str(value).encode(errors="backslashreplace").decode()


def _check_is_map(path: Path, layer: str) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    look_first(path, layer)
    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
    except _UNREADABLE as exc:
        raise InputError(f"{path}: cannot be read as a GeoPackage: {why(exc)}") from exc
    if layer not in layers:
        raise InputError(f"{path}: no layer '{layer}', so this is not a map of rtsmap; it has {layers}")


_UNREADABLE = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyogrio.errors.CRSError,
    pyproj.exceptions.CRSError,
    shapely.errors.GEOSException,
    RuntimeError,
    ValueError,
)


def _read(path: Path, layer: str) -> Any:
    """A layer as a frame; pyogrio itself trusts the file."""
    try:
        frame = pyogrio.read_dataframe(path, layer=layer)
        return with_kinds(frame, path, layer, but={*FOOTPRINT_COLUMNS, *COVERAGE_COLUMNS})
    except _UNREADABLE as exc:
        raise InputError(f"{path}: layer '{layer}' cannot be read; the file is damaged: {exc}") from exc


def _check_written(path: Path, footprints: int, areas: int, entries: int) -> None:
    """Read the file back before anybody relies on it."""
    with closing(sqlite3.connect(path)) as database:
        (verdict,) = database.execute("PRAGMA quick_check").fetchone()
        found = {
            table: database.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]  # noqa: S608
            for table in (FOOTPRINT_LAYER, COVERAGE_LAYER, RECORD_TABLE)
        }
    wanted = {FOOTPRINT_LAYER: footprints, COVERAGE_LAYER: areas, RECORD_TABLE: entries}
    if verdict != "ok" or found != wanted:
        raise RunError(f"{path.name} was not written as asked: {verdict}, rows {found}, wanted {wanted}")
