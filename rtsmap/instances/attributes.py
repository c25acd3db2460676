"""Footprints: a joined slump as a polygon with the figures that mappers ask for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import atan2, ceil, degrees
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from scipy import ndimage
from shapely.geometry import MultiPolygon, Polygon

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.instances.polygons import mask_to_polygon, metres_per_unit
from rtsmap.instances.seams import Instance
from rtsmap.rasters.grids import ground_pixel_m
from rtsmap.rasters.terrain import gradients, slope_degrees
from rtsmap.rasters.tiling import Window

RIM_M = 30.0
"""Relief compares a footprint with the ground within this distance around it."""

EDGE_M = 100.0
"""Edges are cut to this length before they go to the ellipsoid, since a straight line in a projection
is not straight there."""

_WGS84 = Geod(ellps="WGS84")
_ID_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:rtsmap:footprint")


@dataclass(frozen=True, slots=True)
class Terrain:
    """Elevation under one footprint, in metres and degrees.

    `slope_deg` is the mean slope, `aspect_deg` the direction of the mean downhill gradient, clockwise
    from true north (None on level ground). `relief_m` is the mean elevation of the footprint minus
    that of the ground within `RIM_M` around it, negative for a hollow (None without such ground).
    `valid_share` is the share of the footprint's pixels that have an elevation.
    """

    elevation_min_m: float
    elevation_max_m: float
    slope_deg: float | None
    aspect_deg: float | None
    relief_m: float | None
    valid_share: float


@dataclass(frozen=True, slots=True)
class Footprint:
    """One slump on the map.

    `polygon` is in `crs`; area and perimeter (holes included in both ways) are geodesic on WGS84,
    `centroid_lon`, `centroid_lat` in degrees. `n_parts`: tiles' parts that it was joined from;
    `seam_unconfirmed`: see `Instance`; `valid_share`: share of its ground with imagery. The figures
    from the elevation model are None without one; see `Terrain` for what they mean. `scene_id` and
    `acquired` say which imagery and when it was taken, `dem_date` when the elevation was, or from when to
    when (ISO 8601); None where nothing tells.

    Raises InputError for an empty or invalid polygon and for impossible figures.
    """

    id: str
    polygon: Polygon | MultiPolygon
    crs: CRS
    score: float
    area_m2: float
    perimeter_m: float
    centroid_lon: float
    centroid_lat: float
    n_parts: int
    seam_unconfirmed: bool
    modalities: tuple[str, ...]
    valid_share: float
    elevation_min_m: float | None = None
    elevation_max_m: float | None = None
    elevation_range_m: float | None = None
    slope_deg: float | None = None
    aspect_deg: float | None = None
    relief_m: float | None = None
    scene_id: str | None = None
    acquired: str | None = None
    dem_date: str | None = None

    def __post_init__(self) -> None:
        if self.polygon.geom_type not in ("Polygon", "MultiPolygon") or self.polygon.is_empty:
            raise InputError(f"footprint {self.id}: wanted a polygon with area, got {self.polygon.wkt[:80]}")
        if not self.polygon.is_valid:
            raise InputError(f"footprint {self.id}: {shapely.is_valid_reason(self.polygon)}")
        if not (0 <= self.score <= 1 and 0 <= self.valid_share <= 1 and self.area_m2 > 0):
            raise InputError(
                f"footprint {self.id}: wanted score and valid_share within 0..1 and area_m2 > 0, "
                f"got {self.score}, {self.valid_share}, {self.area_m2}"
            )


def make_footprint(
    instance: Instance,
    geobox: GeoBox,
    *,
    scene_fingerprint: str,
    simplify_m: float = 0.0,
    min_speck_px: int = 1,
    valid_share: float = 1.0,
    terrain: Terrain | None = None,
    rank: int = 0,
    scene_id: str | None = None,
    acquired: str | None = None,
    dem_date: str | None = None,
) -> Footprint:
    """The footprint of a slump found on the grid `geobox`. For `rank` see `footprint_id`."""
    polygon = mask_to_polygon(instance.inside, instance.window, geobox, simplify_m, min_speck_px)
    lon, lat = centroid_lonlat(polygon, geobox.crs)
    on_ellipsoid = _on_ellipsoid(polygon, geobox.crs)
    heights = (terrain.elevation_min_m, terrain.elevation_max_m) if terrain else None
    return Footprint(
        id=footprint_id(scene_fingerprint, geobox, instance.pixel, rank),
        polygon=polygon,
        crs=geobox.crs,
        score=instance.score,
        area_m2=_area_m2(on_ellipsoid),
        perimeter_m=_perimeter_m(on_ellipsoid),
        centroid_lon=lon,
        centroid_lat=lat,
        n_parts=instance.n_parts,
        seam_unconfirmed=instance.seam_unconfirmed,
        modalities=instance.modalities,
        valid_share=valid_share,
        elevation_min_m=heights[0] if heights else None,
        elevation_max_m=heights[1] if heights else None,
        elevation_range_m=heights[1] - heights[0] if heights else None,
        slope_deg=terrain.slope_deg if terrain else None,
        aspect_deg=terrain.aspect_deg if terrain else None,
        relief_m=terrain.relief_m if terrain else None,
        scene_id=scene_id,
        acquired=acquired,
        dem_date=dem_date,
    )


def footprint_id(scene_fingerprint: str, geobox: GeoBox, pixel: tuple[int, int], rank: int = 0) -> str:
    """The same id for the same scene, grid and representative pixel, in every run.

    Two slumps of one run seldom have the same pixel; then the second one needs `rank` 1, and so on.
    """
    affine = ",".join(repr(float(v)) for v in geobox.affine[:6])
    name = f"{scene_fingerprint}|{_wkt(geobox.crs)}|{affine}|{pixel[0]},{pixel[1]}|{rank}"
    return str(uuid.uuid5(_ID_NAMESPACE, name))


def geodesic_area_m2(polygon: Polygon | MultiPolygon, crs: CRS) -> float:
    """Area on the WGS84 ellipsoid, holes taken off."""
    return _area_m2(_on_ellipsoid(polygon, crs))


def geodesic_perimeter_m(polygon: Polygon | MultiPolygon, crs: CRS) -> float:
    """Length of all rings on the WGS84 ellipsoid, those of holes included."""
    return _perimeter_m(_on_ellipsoid(polygon, crs))


def centroid_lonlat(polygon: Polygon | MultiPolygon, crs: CRS) -> tuple[float, float]:
    """(longitude, latitude) of the centroid in degrees; it may lie outside a bent polygon."""
    centroid = polygon.centroid
    lon, lat = _to_wgs84(crs).transform(centroid.x, centroid.y)
    return float(lon), float(lat)


def distances_m(
    places: npt.NDArray[np.float64], crs: CRS, lonlat: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Metres on the ellipsoid between places (n, 2) in a CRS and places (n, 2) in degrees; NaN of NaN."""
    # lists, because pyproj takes arrays of one for numbers, which numpy deprecates
    lon, lat = _to_wgs84(crs).transform(*places.T.tolist())
    return np.array(_WGS84.inv(lon, lat, *lonlat.T.tolist())[2])


def terrain_window(window: Window, geobox: GeoBox) -> Window:
    """Pixels whose elevation `terrain_attributes` wants for a slump on `window`: its rim included."""
    rows, cols = _rim_px(geobox)
    grown = Window(window.row0 - rows, window.col0 - cols, window.row1 + rows, window.col1 + cols)
    return grown.intersection(Window(0, 0, *geobox.shape))


@lru_cache(maxsize=16)
def _rim_px(geobox: GeoBox) -> tuple[int, int]:
    """Rows and columns that the rim may take."""
    height_m, width_m = ground_pixel_m(geobox)
    return ceil(RIM_M / height_m) + 1, ceil(RIM_M / width_m) + 1


def instance_terrain(
    instance: Instance,
    geobox: GeoBox,
    window: Window,
    elevation: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
) -> Terrain | None:
    """Terrain of a slump from the elevation on `window`, best the one that `terrain_window` gives."""
    mask = np.zeros(window.shape, bool)
    seen = instance.window.intersection(window)
    mask[seen.slices(window)] = instance.inside[seen.slices(instance.window)]
    row = (instance.window.row0 + instance.window.row1) / 2
    col = (instance.window.col0 + instance.window.col1) / 2
    height_m, width_m = (float(size) for size in ground_pixel_m(geobox, row, col))
    return terrain_attributes(elevation, valid, mask, (height_m, width_m), grid_north_deg(geobox, row, col))


def terrain_attributes(
    elevation: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    mask: npt.NDArray[np.bool_],
    pixel_size_m: tuple[float, float],
    grid_north_deg: float = 0.0,
) -> Terrain | None:
    """Figures of the elevation under `mask`; None where it has no valid pixel there.

    All arrays are (h, w) and show the mask with its surroundings. `pixel_size_m` is (height, width);
    `grid_north_deg` is where the top of the grid points, clockwise from true north.
    """
    if not elevation.shape == valid.shape == mask.shape:
        raise GridMismatchError(
            f"elevation {elevation.shape}, valid {valid.shape} and mask {mask.shape} disagree"
        )
    known = mask & valid
    if not known.any():
        return None
    heights = elevation[known].astype(np.float64)
    slope, aspect = _slope_and_aspect(elevation, valid, known, pixel_size_m, grid_north_deg)
    rim = valid & ~mask & (_distance_m(mask, pixel_size_m) <= RIM_M)
    return Terrain(
        elevation_min_m=float(heights.min()),
        elevation_max_m=float(heights.max()),
        slope_deg=slope,
        aspect_deg=aspect,
        relief_m=float(heights.mean() - elevation[rim].astype(np.float64).mean()) if rim.any() else None,
        valid_share=np.count_nonzero(known) / np.count_nonzero(mask),
    )


def grid_north_deg(geobox: GeoBox, row: float, col: float) -> float:
    """Where the top of the grid points at a pixel, in degrees clockwise from true north."""
    to_wgs84 = _to_wgs84(geobox.crs)
    lower = to_wgs84.transform(*(geobox.affine * (col, row + 0.5)))
    upper = to_wgs84.transform(*(geobox.affine * (col, row - 0.5)))
    return float(_WGS84.inv(*lower, *upper)[0]) % 360


def _slope_and_aspect(
    elevation: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    pixel_size_m: tuple[float, float],
    north_deg: float,
) -> tuple[float | None, float | None]:
    dz_dx, dz_dy = gradients(elevation, valid, pixel_size_m)
    usable = known & np.isfinite(dz_dx) & np.isfinite(dz_dy)
    if not usable.any():
        return None, None
    dx, dy = dz_dx[usable], dz_dy[usable]
    slope = float(slope_degrees(dx, dy).mean(dtype=np.float64))
    # Steep pixels speak louder: the directions of nearly level ones are noise.
    east, north = -float(dx.mean()), -float(dy.mean())
    if np.hypot(east, north) < 1e-6:
        return slope, None
    return slope, (degrees(atan2(east, north)) + north_deg) % 360


def _distance_m(mask: npt.NDArray[np.bool_], pixel_size_m: Sequence[float]) -> npt.NDArray[np.float64]:
    distance: npt.NDArray[np.float64] = ndimage.distance_transform_edt(~mask, sampling=pixel_size_m)
    return distance


@lru_cache(maxsize=16)
def _to_wgs84(crs: CRS) -> Transformer:
    return Transformer.from_crs(_wkt(crs), "EPSG:4326", always_xy=True)


@lru_cache(maxsize=16)
def _wkt(crs: CRS) -> str:
    return str(crs.to_wkt())


def _on_ellipsoid(polygon: Polygon | MultiPolygon, crs: CRS) -> Polygon | MultiPolygon:
    dense = shapely.segmentize(polygon, EDGE_M / metres_per_unit(crs))
    to_wgs84 = _to_wgs84(crs)
    return shapely.transform(dense, lambda xy: np.column_stack(to_wgs84.transform(*xy.T)))


def _area_m2(degrees: Polygon | MultiPolygon) -> float:
    return sum(
        _ring_area_m2(ring) * sign
        for piece in shapely.get_parts(degrees)
        for sign, ring in [(1, piece.exterior), *((-1, hole) for hole in piece.interiors)]
    )


def _perimeter_m(degrees: Polygon | MultiPolygon) -> float:
    rings = shapely.get_rings(shapely.get_parts(degrees))
    return sum(_WGS84.line_length(*shapely.get_coordinates(ring).T) for ring in rings)


def _ring_area_m2(ring: Any) -> float:
    area, _ = _WGS84.polygon_area_perimeter(*shapely.get_coordinates(ring).T)
    return abs(float(area))
