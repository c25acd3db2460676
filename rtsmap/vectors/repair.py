"""Polygons made valid: rings untangled, lines and points that come of it left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rtsmap.instances.polygons import only_polygons

Shapes = npt.NDArray[Any]
"""One-dimensional array of shapely geometries, where None is a missing one."""


def is_polygonal(shapes: Shapes) -> npt.NDArray[np.bool_]:
    """True for polygons and multipolygons, empty or not."""
    kinds = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)
    result: npt.NDArray[np.bool_] = np.isin(shapely.get_type_id(shapes), kinds)
    return result


def make_polygons_valid(shapes: Shapes) -> Shapes:
    """Valid shapes; of collections their polygons; multipolygons of one part as that polygon.

    Shapes without any area are returned as they are; None for those whose coordinates are no numbers, or too
    large to compute with.
    """
    shapes = shapes.copy()
    invalid = ~shapely.is_missing(shapes) & ~shapely.is_valid(shapes)
    shapes[invalid] = [_made_valid(shape) for shape in shapes[invalid]]
    kind = shapely.get_type_id(shapes)
    collections = kind == shapely.GeometryType.GEOMETRYCOLLECTION
    shapes[collections] = [only_polygons(shape) for shape in shapes[collections]]
    single = (shapely.get_type_id(shapes) == shapely.GeometryType.MULTIPOLYGON) & (
        shapely.get_num_geometries(shapes) == 1
    )
    shapes[single] = shapely.get_geometry(shapes[single], 0)
    return shapes


def _made_valid(shape: BaseGeometry) -> BaseGeometry | None:
    """Ground that two parts of a multipolygon cover is covered; made valid as one, it would be a hole."""
    try:
        return shapely.union_all(
            [only_polygons(shapely.make_valid(part)) for part in shapely.get_parts(shape)]
        )
    except shapely.errors.GEOSException:
        return None
