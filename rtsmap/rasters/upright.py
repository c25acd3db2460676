"""Rasters that do not lie north up: turned by GDAL while they are read, where it is known how.

A rotated or mirrored grid is known exactly. Ground control points are taken at their word when GDAL's
polynomial through them meets each one, in the mean, within `MOST_RESIDUAL_PX`.
"""

from __future__ import annotations

import tempfile
from math import ceil, hypot
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
from rasterio.enums import MaskFlags, Resampling
from rasterio.transform import GCPTransformer
from rasterio.vrt import WarpedVRT

from rtsmap.errors import InputError

MOST_RESIDUAL_PX = 2.0
_FEWEST_POINTS = 4
_LEAST_SPREAD = 0.25
_TOLERANCE_PX = 1e-6


def is_upright(src: Any) -> bool:
    """True for a grid with rows from north to south and columns from west to east."""
    affine = src.transform
    return bool(affine.b == 0 and affine.d == 0 and affine.a > 0 and affine.e < 0)


def is_located_by_points(src: Any) -> bool:
    """True for a raster without a grid on the ground, whose place is known by points or polynomials."""
    return bool(src.transform.is_identity and (src.gcps[0] or src.rpcs))


def upright(src: Any, name: str) -> tuple[str, str]:
    """The text of a virtual raster that shows `src` north up, and a sentence about how; else InputError."""
    if is_located_by_points(src):
        if not src.gcps[0]:
            raise InputError(
                f"{name}: is located by rational polynomials (RPC) only, which takes an elevation model; "
                "rectify it first: gdalwarp -rpc -to RPC_DEM=DEM.tif IN OUT.tif"
            )
        crs, note = src.gcps[1], _check_points(src, name)
    else:
        crs, note = src.crs, "its grid is rotated or mirrored: it is turned north up while it is read"
    return _virtual_raster(src, crs), note


def _check_points(src: Any, name: str) -> str:
    points, crs = src.gcps
    if crs is None:
        raise InputError(
            f"{name}: its ground control points have no CRS; rectify it: gdalwarp -s_srs EPSG:CODE"
        )
    rows, cols = np.array([p.row for p in points]), np.array([p.col for p in points])
    spread = min(np.ptp(rows) / src.height, np.ptp(cols) / src.width)
    if len(points) < _FEWEST_POINTS or spread < _LEAST_SPREAD:
        raise InputError(
            f"{name}: is located by {len(points)} ground control points only, too few or too close together "
            "to be sure; rectify it first: gdalwarp IN OUT.tif"
        )
    with GCPTransformer(points) as transformer:
        found = transformer.rowcol([p.x for p in points], [p.y for p in points], op=lambda value: value)
    residual_px = float(np.sqrt(np.mean((found[0] - rows) ** 2 + (found[1] - cols) ** 2)))
    if not residual_px <= MOST_RESIDUAL_PX:
        raise InputError(
            f"{name}: its {len(points)} ground control points contradict each other by {residual_px:.1f} "
            f"pixels (at most {MOST_RESIDUAL_PX:g}); rectify it first and check: gdalwarp IN OUT.tif"
        )
    return (
        f"it is located by {len(points)} ground control points, to {residual_px:.1f} pixels: it is warped by "
        "them while it is read"
    )


def _virtual_raster(src: Any, crs: Any) -> str:
    options = {"src_crs": crs, "crs": crs, "resampling": Resampling.bilinear, **_emptiness(src)}
    if not is_located_by_points(src):
        options |= _grid_around(src)
    # else GDAL sizes its kernel by the window at hand, and windows of a turned raster are blurred
    options |= {"XSCALE": 1, "YSCALE": 1, "tolerance": _TOLERANCE_PX}
    with WarpedVRT(src, **options) as warped, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upright.vrt"
        rasterio.shutil.copy(warped, path, driver="VRT")
        return path.read_text(encoding="utf-8")


def _emptiness(src: Any) -> dict[str, Any]:
    """How the ground beside the turned pixels is told from data."""
    flags, dtype = src.mask_flag_enums[0], np.dtype(src.dtypes[0])
    if MaskFlags.nodata in flags or MaskFlags.alpha in flags:
        return {}
    if dtype in {np.dtype("uint8"), np.dtype("uint16")}:
        return {"add_alpha": True}
    # GDAL takes alpha for a mask of these two types only
    return {"nodata": np.nan if dtype.kind == "f" else int(np.iinfo(dtype).max)}


def _grid_around(src: Any) -> dict[str, Any]:
    """The north-up grid around a raster's corners, its pixels as long as the raster's."""
    affine, height, width = src.transform, src.height, src.width
    corners = np.array([affine * corner for corner in ((0, 0), (width, 0), (0, height), (width, height))])
    left, top = corners[:, 0].min(), corners[:, 1].max()
    right, bottom = corners[:, 0].max(), corners[:, 1].min()
    size_x, size_y = hypot(affine.a, affine.d), hypot(affine.b, affine.e)
    return {
        "transform": type(affine)(size_x, 0, left, 0, -size_y, top),
        "width": ceil((right - left) / size_x - 1e-6),
        "height": ceil((top - bottom) / size_y - 1e-6),
    }
