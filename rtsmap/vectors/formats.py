"""Frames of polygons to files, in the format that the suffix names; checked, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import pyproj
import shapely
from pandas.api.types import is_object_dtype

from rtsmap.atomic import refuse_odd_name, whole_file
from rtsmap.errors import InputError, RunError
from rtsmap.vectors.kinds import needs_arrow
from rtsmap.vectors.kml import write_kml
from rtsmap.vectors.repair import Shapes, is_polygonal, make_polygons_valid

DRIVERS: Mapping[str, str] = {
    ".shp": "ESRI Shapefile",
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".fgb": "FlatGeobuf",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
    ".kml": "KML",
    ".csv": "CSV",
}
"""Formats that are written, by file suffix."""

LONLAT = "EPSG:4326"
IN_LONLAT = frozenset({"GeoJSON", "KML"})
"""Formats that know no other CRS."""

WKT_COLUMN = "WKT"
"""The outline in a CSV file, under the name that GDAL and QGIS look for."""

GPKG_VERSION = {"VERSION": "1.2"}
"""Read by every GDAL and QGIS in use; nothing of later versions is needed."""

EDGE_M = 1000.0
"""Longer edges, which only coverage has, get vertices before they go to another CRS, for they bend."""

UNWRITABLE = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    pyproj.exceptions.CRSError,
    OSError,
)
"""What writing raises for a place, a layer or a CRS that a format cannot hold."""

_GEOJSON_OPTIONS = {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}


def driver_of(path: Path) -> str:
    """Name of the format that a file's suffix asks for; raises InputError for others."""
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise InputError(f"{path}: cannot tell the format from '{path.suffix}'; use {', '.join(DRIVERS)}")
    return driver


def write_frame(
    path: Path, frame: geopandas.GeoDataFrame, layer: str | None = None, *, overwrite: bool = False
) -> tuple[str, ...]:
    """Write a frame of valid polygons; whole or not at all. Returns notes on what had to change.

    GeoJSON and KML are in longitude and latitude and cut at 180 degrees. FlatGeobuf keeps its features in
    an order of its own. CSV has outlines as WKT in the frame's CRS, which it cannot name. Raises
    InputError when the suffix is unknown, the file exists and `overwrite` is false, or it cannot be
    written.
    """
    driver = driver_of(path)
    refuse_odd_name(path)
    notes: tuple[str, ...] = ()
    if driver in IN_LONLAT:
        frame, notes = in_lonlat(frame, driver)
    elif driver == "CSV":
        frame, notes = _beside_wkt(frame)
    with whole_file(path, overwrite=overwrite) as temporary:
        try:
            _write(temporary, driver, frame, layer or path.stem)
            written = _read_back(temporary, driver)
        except UNWRITABLE as exc:
            raise InputError(f"{path}: cannot be written as {driver}: {exc}") from exc
        good = int(_is_good(written).sum())
        if not len(frame) == len(written) == good:
            raise RunError(
                f"{path}: of {len(frame)} polygons {good} could be read back and were valid; "
                "nothing was written"
            )
    return notes


def in_lonlat(frame: geopandas.GeoDataFrame, what: str) -> tuple[geopandas.GeoDataFrame, tuple[str, ...]]:
    """The frame in longitude and latitude, cut at 180 degrees, and notes that begin with `what`.

    Straight edges bend there and corners are rounded to nine decimals: rings that touch may cross, and
    spikes become lines. Such polygons are repaired, and counted.
    """
    if frame.empty:
        return frame.to_crs(LONLAT), ()
    text = BytesIO()
    outlines = geopandas.GeoDataFrame(geometry=with_short_edges(frame).geometry)
    pyogrio.write_dataframe(outlines, text, driver="GeoJSON", layer_options=_GEOJSON_OPTIONS)
    _, _, wkb, _ = pyogrio.raw.read(text.getvalue(), columns=[])
    shapes = shapely.from_wkb(wkb)
    repaired, broken = make_polygons_valid(shapes), int((~_is_good(shapes)).sum())
    turned = frame.set_geometry(geopandas.GeoSeries(repaired, index=frame.index, crs=LONLAT))
    if not broken:
        return turned, ()
    return turned, (f"{what}: {broken} of {len(frame)} polygons had to be repaired in {LONLAT}",)


def with_short_edges(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """The same outlines without an edge longer than `EDGE_M`."""
    edge = EDGE_M if frame.crs.is_projected else EDGE_M / 111_000
    return frame.set_geometry(frame.geometry.segmentize(edge))


def _is_good(shapes: Shapes) -> npt.NDArray[np.bool_]:
    good: npt.NDArray[np.bool_] = shapely.is_valid(shapes) & is_polygonal(shapes)
    return good


def _write(path: Path, driver: str, frame: geopandas.GeoDataFrame, layer: str) -> None:
    if driver == "Parquet":
        # An empty column of objects has no type of its own, and would become one of nothing.
        untyped = [
            name for name in frame.columns if is_object_dtype(frame[name]) and frame[name].isna().all()
        ]
        frame.astype(dict.fromkeys(untyped, "string")).to_parquet(path, index=False)
        return
    if driver == "KML":
        write_kml(path, frame, layer)
        return
    if driver == "CSV":
        _write_csv(path, frame)
        return
    # A shapefile has one kind for both; elsewhere a layer of both kinds would need a vague type.
    multi = driver != "ESRI Shapefile" and bool((frame.geom_type == "MultiPolygon").any())
    # a shapefile gets its suffix in small letters, whatever was asked for
    written = path.with_suffix(path.suffix.lower())
    pyogrio.write_dataframe(
        frame,
        written,
        driver=driver,
        layer=layer,
        geometry_type="MultiPolygon" if multi else "Polygon",
        promote_to_multi=multi,
        encoding="UTF-8",
        layer_options=_layer_options(driver),
        dataset_options=GPKG_VERSION if driver == "GPKG" else None,
        use_arrow=needs_arrow(frame),
    )
    written.replace(path)


def _layer_options(driver: str) -> Mapping[str, str]:
    # Nine decimals are 0.1 mm: the seven of RFC 7946's default would move vertices by a centimetre.
    return _GEOJSON_OPTIONS if driver == "GeoJSON" else {}


def _beside_wkt(frame: geopandas.GeoDataFrame) -> tuple[geopandas.GeoDataFrame, tuple[str, ...]]:
    """The frame without a column that readers would take for the outline, and what it is called now."""
    new = {name: f"{name}_column" for name in frame.columns if str(name).upper() == WKT_COLUMN}
    return frame.rename(columns=new), tuple(f"CSV: your {old} is {name}" for old, name in new.items())


def _write_csv(path: Path, frame: geopandas.GeoDataFrame) -> None:
    """Outlines first, then the columns; numbers with all their digits."""
    columns = frame.drop(columns=frame.geometry.name)
    columns.insert(0, WKT_COLUMN, shapely.to_wkt(frame.geometry.to_numpy(), rounding_precision=-1))
    columns.to_csv(path, index=False, encoding="utf-8", lineterminator="\n")


def _read_back(path: Path, driver: str) -> Shapes:
    if driver == "Parquet":
        frame = geopandas.read_parquet(path)
        read: Shapes = frame.geometry.to_numpy()
    elif driver == "CSV":
        read = shapely.from_wkt(pd.read_csv(path, usecols=[WKT_COLUMN])[WKT_COLUMN].to_numpy(object))
    else:
        _, _, wkb, _ = pyogrio.raw.read(path, columns=[])
        read = shapely.from_wkb(wkb)
    return read
