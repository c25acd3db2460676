"""Grids on the ground: how long a pixel really is, the run's grid, and maps between two grids' pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Geod

from rtsmap.errors import InputError
from rtsmap.rasters.tiling import Window

Floats = npt.NDArray[np.float64]

EARTH_RADIUS_M = 6_378_137.0

_GEOD = Geod(ellps="WGS84")
_WGS84 = CRS("EPSG:4326")
_SCALE_TOLERANCE = 0.05
_UTM_HALF_WIDTH_M = 300_000
_WIDEST_SCENE_M = 3_000_000

CELL_PX = 256
"""Side of the cells in which grids of different CRS are warped."""


def told_m(metres: float) -> str:
    """A number of metres as people read it: three digits, and none with an exponent."""
    return f"{metres:,.0f}" if metres >= 1000 else f"{metres:.3g}"


@dataclass(frozen=True, slots=True)
class RunGrid:
    """The grid that a run works on; `note` says why when its CRS is not the scene's."""

    geobox: GeoBox
    note: str | None


def run_grid(native: GeoBox, resolution_m: float) -> RunGrid:
    """Grid of `resolution_m` pixels over the whole raster `native`, last row and column included.

    It keeps the raster's CRS and upper left corner, so that overviews fall onto its pixels, unless that
    CRS is in degrees or feet or its scale at the centre is off by more than 5 %. Then a local metric CRS
    is taken: UTM, polar stereographic beyond 84 degrees, or Lambert azimuthal for wide scenes.
    """
    reason = _why_not_metric(native)
    if reason is None:
        box = native.boundingbox
        left, top, right, bottom = box.left, box.top, box.right, box.bottom
        crs, note = native.crs, None
    else:
        crs = _local_crs(native)
        left, bottom, right, top = _bounds_in(native, crs)
        _refuse_beyond_crs(native, crs)
        left = floor(left / resolution_m) * resolution_m
        top = ceil(top / resolution_m) * resolution_m
        note = f"the scene's CRS {crs_name(native.crs)} {reason}; mapping in {crs_name(crs)}"
    height = max(1, ceil((top - bottom) / resolution_m - 1e-6))
    width = max(1, ceil((right - left) / resolution_m - 1e-6))
    affine = type(native.affine)(resolution_m, 0.0, left, 0.0, -resolution_m, top)
    return RunGrid(GeoBox((height, width), affine, crs), note)


def ground_pixel_m(geobox: GeoBox, rows: Any = None, cols: Any = None) -> tuple[Any, Any]:
    """Geodesic (height, width) in metres of the pixels centred at `rows`, `cols` (default: the centre).

    Raises InputError when the pixel at the centre has no extent.
    """
    row = geobox.shape[0] / 2 if rows is None else np.asarray(rows, float)
    col = geobox.shape[1] / 2 if cols is None else np.asarray(cols, float)
    height = _geodesic_m(geobox, (row - 0.5, col), (row + 0.5, col))
    width = _geodesic_m(geobox, (row, col - 0.5), (row, col + 0.5))
    if rows is None and not (height and width):
        size = geobox.resolution
        raise InputError(
            f"the raster's pixels of {size.x:g} x {size.y:g} units have no extent on the ground; its "
            "georeferencing is damaged, give it the right one (gdal_edit.py -a_ullr)"
        )
    return height, width


def to_pixels(target: GeoBox, source: GeoBox, rows: Any, cols: Any) -> tuple[Floats, Floats]:
    """Where points of `target`, in its pixel coordinates, lie in `source`: (rows, cols), NaN if nowhere."""
    xs, ys = _place(target, rows, cols)
    if target.crs != source.crs:
        xs, ys = target.crs.transformer_to_crs(source.crs)(xs, ys)
    with np.errstate(invalid="ignore"):
        xs = np.where(np.isfinite(xs), xs, np.nan)
        ys = np.where(np.isfinite(ys), ys, np.nan)
    if source.crs.geographic:
        # 181 is -179: a raster across the antimeridian goes on beyond 180
        xs = xs + 360 * np.round((_middle_x(source) - xs) / 360)
    inverse = ~source.affine
    source_rows = inverse.d * xs + inverse.e * ys + inverse.f
    return source_rows, inverse.a * xs + inverse.b * ys + inverse.c


def pixel_jacobian(target: GeoBox, source: GeoBox, rows: Any, cols: Any) -> Floats:
    """How far one pixel of `target` reaches in `source`, in its pixels, at the given points.

    Shape (..., 2, 2): [d source row, d source col] by [d target row, d target col].
    """
    rows, cols = np.asarray(rows, float), np.asarray(cols, float)
    down = np.subtract(
        to_pixels(target, source, rows + 0.5, cols), to_pixels(target, source, rows - 0.5, cols)
    )
    right = np.subtract(
        to_pixels(target, source, rows, cols + 0.5), to_pixels(target, source, rows, cols - 0.5)
    )
    return np.moveaxis(np.stack([down, right], axis=1), (0, 1), (-2, -1))


def shrink_ratio(target: GeoBox, source: GeoBox) -> float:
    """Pixels of `source` along the shorter side of one pixel of `target`, at the target's centre."""
    jacobian = pixel_jacobian(target, source, target.shape[0] / 2, target.shape[1] / 2)
    if not np.isfinite(jacobian).all():
        return 1.0
    return float(np.linalg.svd(jacobian, compute_uv=False)[-1])


def covering_window(target: GeoBox, source: GeoBox, margin_px: int) -> Window:
    """Pixels of `source` that `target` covers, widened by `margin_px` and clipped; may be empty."""
    count = 33
    source_rows, source_cols = to_pixels(target, source, *_perimeter(target, count))
    if not (np.isfinite(source_rows).any() and np.isfinite(source_cols).any()):
        return Window(0, 0, 0, 0)
    # The edge of a warped rectangle bends between two of the points, by far less than their distance.
    bend_px = _bend_px(source_rows, source_cols, count)
    row0, row1 = _span(source_rows, margin_px + bend_px, source.shape[0])
    col0, col1 = _span(source_cols, margin_px + bend_px, source.shape[1])
    return Window(row0, col0, row1, col1)


def lies_across_edge(target: GeoBox, source: GeoBox) -> bool:
    """Whether a raster in degrees goes so far around the Earth that both its ends lie under `target`."""
    around_px = 360 / source.affine.a
    if not source.crs.geographic or source.shape[1] < around_px / 2:
        return False
    _, cols = to_pixels(target, source, *_perimeter(target, 33))
    cols = cols[np.isfinite(cols)]
    return bool(cols.size and np.ptp(cols) > around_px / 2)


def window_geobox(geobox: GeoBox, window: Window) -> GeoBox:
    """The part of `geobox` under `window`."""
    affine = geobox.affine * type(geobox.affine).translation(window.col0, window.row0)
    return GeoBox(window.shape, affine, geobox.crs)


def crs_name(crs: CRS) -> str:
    """EPSG code, or else the name in quotes."""
    epsg = crs.epsg
    return f"EPSG:{epsg}" if epsg else f"'{crs.proj.name}'"


def _perimeter(geobox: GeoBox, count: int) -> tuple[Floats, Floats]:
    """(rows, cols) of `count` points along each of the four edges, edge by edge."""
    height, width = geobox.shape
    across, along = np.linspace(0, width, count), np.linspace(0, height, count)
    top, bottom = np.zeros(count), np.full(count, height)
    left, right = np.zeros(count), np.full(count, width)
    return np.concatenate([top, bottom, along, along]), np.concatenate([across, across, left, right])


def _bounds_in(geobox: GeoBox, crs: CRS) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) of a raster in another CRS."""
    xs, ys = geobox.crs.transformer_to_crs(crs)(*_place(geobox, *_perimeter(geobox, 129)))
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise InputError(f"a part of the raster lies outside the domain of {crs_name(crs)}")
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _refuse_beyond_crs(native: GeoBox, crs: CRS) -> None:
    """Refuse a raster, in Web Mercator say, that goes on beyond 180 degrees: no way back leads there."""
    height, width = native.shape
    xs, ys = _place(native, height / 2, np.array([0.5, width - 0.5]))
    back_xs, _ = crs.transformer_to_crs(native.crs)(*native.crs.transformer_to_crs(crs)(xs, ys))
    if not (native.crs.geographic or (np.abs(back_xs - xs) < native.boundingbox.span_x / 2).all()):
        raise InputError(
            f"a part of the raster lies beyond 180 degrees in {crs_name(native.crs)}, where nothing of it "
            "can be found; cut it there in two with gdal_translate -projwin, and map both"
        )


def _span(values: Floats, margin_px: int, size: int) -> tuple[int, int]:
    start = min(max(floor(float(np.nanmin(values))) - margin_px, 0), size)
    end = min(max(ceil(float(np.nanmax(values))) + margin_px, start), size)
    return start, end


def _bend_px(rows: Floats, cols: Floats, count: int) -> int:
    bends = [
        np.abs(side[:-2] - 2 * side[1:-1] + side[2:])
        for values in (rows, cols)
        for side in values.reshape(-1, count)
    ]
    largest = np.nanmax(np.concatenate(bends), initial=0.0)
    return ceil(min(float(largest), 1e6) / 4)


def kernel_margin_px(target: GeoBox, source: GeoBox) -> int:
    """Pixels of `source` around a window of `target` that its outermost pixels may need."""
    return 3 + ceil(1.5 * max(1.0, shrink_ratio(target, source)))


def padded_window(window: Window, margin_px: int, grid: GeoBox) -> Window:
    """`window` widened on all sides, as far as the grid reaches."""
    wide = Window(
        max(window.row0 - margin_px, 0),
        max(window.col0 - margin_px, 0),
        window.row1 + margin_px,
        window.col1 + margin_px,
    )
    return wide.intersection(Window(0, 0, *grid.shape))


def cells(grid: GeoBox, window: Window) -> Iterator[Window]:
    """The cells of a fixed division of `grid` that `window` touches."""
    hull = _cell_hull(grid, window)
    for row in range(hull.row0, hull.row1, CELL_PX):
        for col in range(hull.col0, hull.col1, CELL_PX):
            yield Window(row, col, row + CELL_PX, col + CELL_PX).intersection(hull)


def warp_hull(grid: GeoBox, window: Window, source: GeoBox) -> Window:
    """What must be read to warp a window: the window, or between two CRS all `cells` that it touches."""
    return window if grid.crs == source.crs else _cell_hull(grid, window)


def _cell_hull(grid: GeoBox, window: Window) -> Window:
    if window.empty:
        return window
    wide = Window(
        window.row0 // CELL_PX * CELL_PX,
        window.col0 // CELL_PX * CELL_PX,
        -(-window.row1 // CELL_PX) * CELL_PX,
        -(-window.col1 // CELL_PX) * CELL_PX,
    )
    return wide.intersection(Window(0, 0, *grid.shape))


def _middle_x(geobox: GeoBox) -> float:
    height, width = geobox.shape
    return float((geobox.affine * (width / 2, height / 2))[0])


def _place(geobox: GeoBox, rows: Any, cols: Any) -> tuple[Floats, Floats]:
    affine = geobox.affine
    rows, cols = np.asarray(rows, float), np.asarray(cols, float)
    return affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f


def _geodesic_m(geobox: GeoBox, start: tuple[Any, Any], end: tuple[Any, Any]) -> Any:
    lons, lats = _lonlat(geobox, *np.broadcast_arrays(*start))
    end_lons, end_lats = _lonlat(geobox, *np.broadcast_arrays(*end))
    return _GEOD.inv(lons, lats, end_lons, end_lats)[2]


def _lonlat(geobox: GeoBox, rows: Any, cols: Any) -> tuple[Any, Any]:
    xs, ys = _place(geobox, rows, cols)
    return geobox.crs.transformer_to_crs(_WGS84)(xs, ys)  # type: ignore[no-any-return]


def _why_not_metric(native: GeoBox) -> str | None:
    if native.crs.geographic:
        return "is in degrees"
    unit_m = native.crs.proj.axis_info[0].unit_conversion_factor
    if abs(unit_m - 1) > 1e-9:
        return f"is in units of {unit_m:.4f} m"
    height_m, width_m = ground_pixel_m(native)
    resolution = native.resolution
    scales = (abs(resolution.y) / height_m, abs(resolution.x) / width_m)
    if all(abs(scale - 1) <= _SCALE_TOLERANCE for scale in scales):
        return None
    worst = max(scales, key=lambda scale: abs(scale - 1))
    return f"draws lengths {worst:.2f} times too long here"


def _local_crs(native: GeoBox) -> CRS:
    height, width = native.shape
    lon, lat = (float(v) for v in _lonlat(native, height / 2, width / 2))
    if not (np.isfinite(lon) and np.isfinite(lat)):
        raise InputError(f"the raster's centre lies outside the domain of its CRS {crs_name(native.crs)}")
    half_m = _half_extent_m(native, lon, lat)
    if half_m > _WIDEST_SCENE_M:
        raise InputError(
            f"the raster spans about {2 * half_m / 1000:.0f} km, too much for one metric grid; "
            "cut it into regions with gdal_translate -projwin"
        )
    if half_m > _UTM_HALF_WIDTH_M:
        return CRS(f"+proj=laea +lat_0={lat:.4f} +lon_0={lon:.4f} +datum=WGS84 +units=m +no_defs")
    if abs(lat) > 84:
        return CRS("EPSG:3413" if lat > 0 else "EPSG:3031")
    zone = min(int((lon + 180) // 6) + 1, 60)
    return CRS(f"EPSG:{32600 + zone if lat >= 0 else 32700 + zone}")


def _half_extent_m(native: GeoBox, lon: float, lat: float) -> float:
    height, width = native.shape
    rows = np.array([0, 0, height, height, 0, height, height / 2, height / 2])
    cols = np.array([0, width, 0, width, width / 2, width / 2, 0, width])
    lons, lats = _lonlat(native, rows, cols)
    distances = _GEOD.inv(np.full(8, lon), np.full(8, lat), lons, lats)[2]
    return float(np.nanmax(np.where(np.isfinite(distances), distances, np.nan)))
