"""What people change in a map by hand, in QGIS say: slumps added, split in two, reshaped."""

from __future__ import annotations

import uuid
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from odc.geo.crs import CRS
from pyproj import Transformer
from shapely.affinity import translate

from rtsmap.instances.attributes import (
    centroid_lonlat,
    distances_m,
    geodesic_area_m2,
    geodesic_perimeter_m,
)
from rtsmap.vectors.repair import Shapes, make_polygons_valid

_COPIES = uuid.UUID("3f1d3c52-5a0e-5d0b-8a52-0d5f1c6b7e21")
_FIGURES = "area_m2", "perimeter_m", "centroid_lon", "centroid_lat"
_FIGURES_OF_ONE = {"n_parts": (1, "int64"), "seam_unconfirmed": (0, "bool")}
_UNMOVED_M, _UNMOVED_SHARE = 0.01, 1e-3
"""How far a centroid may lie from where its row says, in metres and in widths of the slump."""

_SAME_SIZE_SHARE = 1e-3
"""How far an area may be from what its row says, as a share of it."""

_EQUAL_AREA = "EPSG:6931"
"""Of the whole north in one piece; the edges of slumps are too short to bend there."""


def distinct_ids(ids: pd.Series[Any]) -> pd.Series[Any]:
    """The same ids, where copies of one get ids of their own: a split slump has its id twice.

    The first keeps it; an id that is missing stays so. The same rows get the same ids whenever asked.
    """
    known = ids.notna()
    copy = ids[known].groupby(ids[known]).cumcount()
    distinct = ids.copy()
    for row, number in copy[copy > 0].items():
        distinct[row] = str(uuid.uuid5(_COPIES, f"{ids[row]} {number}"))
    return distinct


def flat_and_valid(outlines: Shapes) -> Shapes:
    """The outlines without Z, those that were drawn across themselves untangled; all others as they are."""
    flat: Shapes = shapely.force_2d(outlines)
    tangled = ~shapely.is_valid(flat)
    flat[tangled] = make_polygons_valid(flat[tangled])
    return flat


def measured(footprints: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """The frame with figures of size and place for outlines that lack them, or have others' by now.

    An outline is told by its area and centroid from the one that its row was measured on. Slumps added by
    hand are of one part and no seam; id and score they lack.
    """
    crs = CRS(footprints.crs)
    whole = _whole_at_180(footprints.geometry.to_numpy(), crs)
    anew = _unlike_their_figures(footprints, whole)
    if anew.any():
        shapes = whole[anew]
        places = [centroid_lonlat(shape, crs) for shape in shapes]
        figures = (
            [geodesic_area_m2(shape, crs) for shape in shapes],
            [geodesic_perimeter_m(shape, crs) for shape in shapes],
            [lon - 360 if lon > 180 else lon for lon, _ in places],
            [lat for _, lat in places],
        )
        for name, values in zip(_FIGURES, figures, strict=True):
            footprints.loc[anew, name] = values
    # a column of whole numbers, or of yes and no, comes as one of fractions where a row is empty
    for name, (value, kind) in _FIGURES_OF_ONE.items():
        if name in footprints:
            footprints[name] = footprints[name].fillna(value).astype(kind)
    return footprints


def made_by_people(footprints: geopandas.GeoDataFrame) -> npt.NDArray[np.bool_]:
    """True for rows that were added, split in two, or given another outline than they were measured on."""
    whole = _whole_at_180(footprints.geometry.to_numpy(), CRS(footprints.crs))
    changed = _unlike_their_figures(footprints, whole)
    found = footprints[["id", "score"]].notna().all(axis=1) & ~footprints["id"].duplicated(keep=False)
    return np.asarray(changed | ~found.to_numpy())


def _unlike_their_figures(footprints: geopandas.GeoDataFrame, whole: Shapes) -> npt.NDArray[np.bool_]:
    """True for rows whose figures are missing or those of another outline; the frame gets all the columns."""
    for name in _FIGURES:
        footprints[name] = footprints[name].astype(float) if name in footprints else np.nan
    lacking = footprints[[*_FIGURES]].isna().any(axis=1).to_numpy()
    return np.asarray(lacking | _resized(footprints, whole) | _moved(footprints, whole))


def _whole_at_180(shapes: Shapes, crs: CRS) -> Shapes:
    """The outlines, those that a map in degrees cuts at 180 in one piece, which goes on beyond 180."""
    if not crs.geographic:
        return shapes
    west, _, east, _ = shapely.bounds(shapes).T
    whole = shapes.copy()
    for row in np.flatnonzero(east - west > 180):
        parts = shapely.get_parts(make_polygons_valid(shapes[[row]]))
        turns = [360 if part.bounds[2] <= 0 else 0 for part in parts]
        whole[row] = shapely.union_all(
            [translate(part, turn) for part, turn in zip(parts, turns, strict=True)]
        )
    return whole


def _resized(footprints: geopandas.GeoDataFrame, outlines: Shapes) -> npt.NDArray[np.bool_]:
    """True for rows whose outline is of another size than their figures say."""
    to_plane = Transformer.from_crs(footprints.crs, _EQUAL_AREA, always_xy=True)
    flat = shapely.transform(outlines, lambda xy: np.column_stack(to_plane.transform(*xy.T)))
    said_m2 = footprints["area_m2"].to_numpy(float)
    return np.asarray(np.abs(shapely.area(flat) - said_m2) > _SAME_SIZE_SHARE * said_m2)


def _moved(footprints: geopandas.GeoDataFrame, outlines: Shapes) -> npt.NDArray[np.bool_]:
    """True for rows whose outline lies elsewhere than their figures say."""
    centroids = shapely.get_coordinates(shapely.centroid(outlines))
    said = footprints[["centroid_lon", "centroid_lat"]].to_numpy(float)
    apart_m = distances_m(centroids, CRS(footprints.crs), said)
    allowed_m = _UNMOVED_M + _UNMOVED_SHARE * np.sqrt(footprints["area_m2"].to_numpy(float))
    return np.asarray(apart_m > allowed_m)
