"""Frames of polygons to files, in the format that the suffix names; checked, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pandas.api.types import is_object_dtype

from rtsmap.errors import InputError, RunError
from rtsmap.vectors.atomic import whole_file
from rtsmap.vectors.repair import Shapes, is_polygonal, make_polygons_valid

DRIVERS: Mapping[str, str] = {
    ".shp": "ESRI Shapefile",
    ".gpkg": "GPKG",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".fgb": "FlatGeobuf",
    ".parquet": "Parquet",
    ".geoparquet": "Parquet",
}
"""Formats that are written, by file suffix."""

GEOJSON_CRS = "EPSG:4326"


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

    GeoJSON is in longitude and latitude and cut at 180 degrees, as RFC 7946 wants it. FlatGeobuf
    keeps its features in an order of its own. Raises InputError when the suffix is unknown, the file
    exists and `overwrite` is false, or it cannot be written.
    """
    driver = driver_of(path)
    with whole_file(path, overwrite=overwrite) as temporary:
        try:
            _write(temporary, driver, frame, layer or path.stem)
            written = _read_back(temporary, driver)
            broken = ~_is_good(written)
            if driver == "GeoJSON" and broken.any():
                # Straight edges bend in longitude and latitude and corners are rounded: rings that
                # touch may cross, and spikes become lines.
                shapes = make_polygons_valid(written)
                repaired = frame.set_geometry(geopandas.GeoSeries(shapes, crs=GEOJSON_CRS))
                _write(temporary, driver, repaired, layer or path.stem)
                written = _read_back(temporary, driver)
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError) as exc:
            raise InputError(f"{path}: cannot be written as {driver}: {exc}") from exc
        good = int(_is_good(written).sum())
        if not len(frame) == len(written) == good:
            raise RunError(
                f"{path}: of {len(frame)} polygons {good} could be read back and were valid; "
                "nothing was written"
            )
    if not broken.any():
        return ()
    return (f"{driver}: {int(broken.sum())} of {len(frame)} polygons had to be repaired in {GEOJSON_CRS}",)


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
    # A shapefile has one kind for both; elsewhere a layer of both kinds would need a vague type.
    multi = driver != "ESRI Shapefile" and bool((frame.geom_type == "MultiPolygon").any())
    pyogrio.write_dataframe(
        frame,
        path,
        driver=driver,
        layer=layer,
        geometry_type="MultiPolygon" if multi else "Polygon",
        promote_to_multi=multi,
        encoding="UTF-8",
        layer_options=_layer_options(driver),
    )


def _layer_options(driver: str) -> dict[str, str]:
    # Nine decimals are 0.1 mm: the seven of RFC 7946's default would move vertices by a centimetre.
    return {"RFC7946": "YES", "COORDINATE_PRECISION": "9"} if driver == "GeoJSON" else {}


def _read_back(path: Path, driver: str) -> Shapes:
    if driver == "Parquet":
        frame = geopandas.read_parquet(path)
        read: Shapes = frame.geometry.to_numpy()
    else:
        _, _, wkb, _ = pyogrio.raw.read(path, columns=[])
        read = shapely.from_wkb(wkb)
    return read
