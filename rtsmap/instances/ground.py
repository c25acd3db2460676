"""Which ground a map is about: inside an area of interest, and not excluded. numpy and shapely.

A footprint belongs to the ground when a point of it, `polygon.representative_point()`, lies there. So
of two maps of neighbouring areas each slump is on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import InputError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.instances.coverage import LEFT_OUT, CoverageArea
from rtsmap.instances.polygons import only_polygons
from rtsmap.rasters.tiling import Tile, Window

OUTSIDE = "outside the area of interest"
EXCLUDED = "excluded"

BORDER_M = 500.0
"""Ground so far beyond is looked at too, so that slumps on the border are seen whole."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Parts of a grid that together are all of it: `wanted`, `outside` the area of interest, `excluded`."""

    geobox: GeoBox
    wanted: BaseGeometry
    outside: BaseGeometry
    excluded: BaseGeometry

    def unwanted_tiles(self, tiles: Iterable[Tile], reach_m: float) -> frozenset[int]:
        """Indexes of the tiles that read nothing within `reach_m` of the wanted ground."""
        listed = list(tiles)
        boxes = shapely.box(*np.array([_bounds(tile.read, self.geobox) for tile in listed]).T)
        tree = shapely.STRtree(shapely.get_parts(self.wanted))
        near = set(tree.query(boxes, predicate="dwithin", distance=reach_m)[0].tolist())
        return frozenset(tile.index for i, tile in enumerate(listed) if i not in near)

    def is_near(self, window: Window, reach_m: float) -> bool:
        """Whether a window has ground within `reach_m` of what is wanted."""
        shapely.prepare(self.wanted)
        return bool(shapely.dwithin(self.wanted, shapely.box(*_bounds(window, self.geobox)), reach_m))

    def holds(self, polygon: BaseGeometry) -> bool:
        """Whether a footprint in the grid's CRS belongs to the wanted ground."""
        shapely.prepare(self.wanted)
        return bool(shapely.intersects(self.wanted, polygon.representative_point()))

    def wants(self, window: Window) -> npt.NDArray[np.bool_]:
        """Which pixels of a window have their centre on the wanted ground (h, w)."""
        box = shapely.box(*_bounds(window, self.geobox))
        shapely.prepare(self.wanted)
        if shapely.contains(self.wanted, box):
            return np.ones(window.shape, np.bool_)
        near = shapely.intersection(self.wanted, box)
        shapely.prepare(near)
        rows, cols = np.mgrid[window.row0 : window.row1, window.col0 : window.col1]
        affine = self.geobox.affine
        x, y = affine.a * (cols + 0.5) + affine.c, affine.e * (rows + 0.5) + affine.f
        inside: npt.NDArray[np.bool_] = shapely.contains_xy(near, x, y)
        return inside

    def divide(self, areas: Sequence[CoverageArea]) -> list[CoverageArea]:
        """The same coverage where the ground is wanted; all other is left out, with the reason."""
        kept = [
            (shapely.intersection(area.polygon, self.wanted), area.status, area.reason)
            for area in areas
            if area.status != LEFT_OUT
        ]
        left_out = [(self.outside, LEFT_OUT, OUTSIDE), (self.excluded, LEFT_OUT, EXCLUDED)]
        return [
            CoverageArea(polygon, status, reason, geodesic_area_m2(polygon, self.geobox.crs))
            for polygon, status, reason in (
                (only_polygons(geometry), s, r) for geometry, s, r in kept + left_out
            )
            if not polygon.is_empty
        ]


def ground_of(
    geobox: GeoBox, aoi: BaseGeometry | None = None, excluded: BaseGeometry | None = None
) -> Ground:
    """The ground inside `aoi` (None: everywhere) and not `excluded`, both in the grid's CRS.

    Raises InputError where that leaves nothing of the grid.
    """
    extent = shapely.box(*_bounds(Window(0, 0, *geobox.shape), geobox))
    inside = extent if aoi is None else only_polygons(shapely.intersection(extent, aoi))
    if inside.is_empty:
        raise InputError("the area of interest does not meet the scene; check that its CRS is the right one")
    nothing = shapely.MultiPolygon()
    shut = nothing if excluded is None else only_polygons(shapely.intersection(inside, excluded))
    # not without `shut`: its corners are rounded, which leaves spikes where outlines run together
    wanted = inside if excluded is None else only_polygons(shapely.difference(inside, excluded))
    if wanted.is_empty:
        raise InputError("all of the scene, or of the area of interest, is excluded; nothing is left to map")
    return Ground(geobox, wanted, only_polygons(shapely.difference(extent, inside)), shut)


def _bounds(window: Window, geobox: GeoBox) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) on the ground."""
    affine = geobox.affine
    left, right = (affine.a * col + affine.c for col in (window.col0, window.col1))
    bottom, top = (affine.e * row + affine.f for row in (window.row1, window.row0))
    return left, bottom, right, top
