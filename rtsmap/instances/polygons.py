"""Masks to polygons: exact outlines with holes, then fewer corners, always valid."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.affinity import affine_transform
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import GridMismatchError
from rtsmap.instances.rectangles import boxes_of, dissolve_boxes
from rtsmap.rasters.tiling import Window

MAX_AREA_CHANGE = 0.01
"""Simplifying may change the area of a footprint by this share; more corners are kept where it would."""

METRES_PER_DEGREE = 111_320.0


def mask_to_polygon(
    mask: npt.NDArray[np.bool_],
    window: Window,
    geobox: GeoBox,
    simplify_m: float = 0.0,
    min_speck_px: int = 1,
) -> Polygon | MultiPolygon:
    """Outline of a mask in the CRS of `geobox`; a MultiPolygon when it has several pieces.

    `mask` (h, w), True = slump, lies on `window` of the grid. Pixels belong together along edges, not
    corners. Pieces and holes smaller than `min_speck_px` pixels are left out, but never the largest
    piece. Without simplifying the polygon covers exactly the pixels of the mask.

    Raises GridMismatchError for an empty mask, or one that does not fit the window.
    """
    if mask.shape != window.shape or not mask.any():
        raise GridMismatchError(
            f"mask {mask.shape} with {np.count_nonzero(mask)} True pixels on {window} of shape "
            f"{window.shape}: wanted equal shapes and at least one True pixel"
        )
    transform = geobox.affine * Affine.translation(window.col0, window.row0)
    pieces = _outlines(mask, transform)
    if min_speck_px > 1:
        pieces = _without_specks(pieces, min_speck_px * abs(transform.determinant))
    polygon = pieces[0] if len(pieces) == 1 else MultiPolygon(pieces)
    return simplify(polygon, simplify_m / metres_per_unit(geobox.crs))


def only_polygons(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry: where outlines touch, overlays also give points and lines."""
    if geometry.geom_type in {"Polygon", "MultiPolygon"}:
        return geometry
    parts = shapely.get_parts(geometry)
    return shapely.union_all([only_polygons(part) for part in parts[shapely.get_dimensions(parts) == 2]])


def simplify(polygon: Polygon | MultiPolygon, tolerance: float) -> Polygon | MultiPolygon:
    """Fewer corners, none moved by more than `tolerance` (in the polygon's unit).

    The result is valid and its area differs by at most `MAX_AREA_CHANGE`: where the full tolerance
    would break that, smaller ones are tried, and in the end the polygon is returned as it came.
    """
    for share in (1.0, 0.5, 0.25):
        if tolerance <= 0:
            break
        simpler = polygon.simplify(tolerance * share)
        if (
            simpler.is_valid
            and simpler.geom_type == polygon.geom_type
            and abs(simpler.area - polygon.area) <= MAX_AREA_CHANGE * polygon.area
        ):
            return simpler
    return polygon


def metres_per_unit(crs: Any) -> float:
    """Length of the CRS's unit; for degrees, that of a degree of latitude."""
    if crs.geographic:
        return METRES_PER_DEGREE
    return float(crs.proj.axis_info[0].unit_conversion_factor)


def _outlines(mask: npt.NDArray[np.bool_], transform: Affine) -> list[Polygon]:
    """One polygon for each edge-connected piece, from the top left; valid because corners do not join."""
    whole = affine_transform(dissolve_boxes(boxes_of(mask)), transform.to_shapely())
    return list(shapely.orient_polygons(shapely.get_parts(whole)))


def _without_specks(pieces: list[Polygon], smallest: float) -> list[Polygon]:
    # Half a pixel's worth of slack would be wrong, a rounding error's is needed.
    smallest *= 1 - 1e-9
    largest = max(pieces, key=lambda piece: piece.area)
    kept = [piece for piece in pieces if piece is largest or piece.area >= smallest]
    return [
        Polygon(piece.exterior, [ring for ring in piece.interiors if Polygon(ring).area >= smallest])
        for piece in kept
    ]
