"""From a raster's own grid to another.

GDAL warps pixels and validity alike, and the quotient of the two is the average of valid pixels only: nothing
leaks in from nodata.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject

from rtsmap.rasters import grids
from rtsmap.rasters.interpolation import interpolate
from rtsmap.rasters.levels import LEAST_VALID_SHARE, Bools, Floats, Patch, whole_offset
from rtsmap.rasters.tiling import Window
from rtsmap.timing import stage

Warped = tuple[Floats, Bools, Bools | None]
_WARP_MEMORY_MB = 512


@stage("warping")
def warp(patch: Patch, grid: GeoBox, window: Window, resampling: str) -> Warped:
    """Warp onto a window of a grid, by the weight of the valid part: (pixels, valid, fill's weight > 0).

    Averages between two CRS go by fixed cells of the grid, and the patch must cover `grids.warp_hull`: GDAL
    approximates the way from one CRS to the other by the extent it is given, so that pixels would depend
    on the window.
    """
    target = grids.window_geobox(grid, window)
    if (offset := whole_offset(patch.geobox, target)) is not None:
        return _copy(patch, target, offset)
    if resampling == "bilinear":
        return _interpolate(patch, grid, window)
    if patch.geobox.crs == grid.crs:
        return _warp(patch, target, resampling)
    pixels, valid, _ = nothing(len(patch.pixels), window.shape)
    fill = None if patch.fill is None else np.zeros(window.shape, np.bool_)
    margin_px = grids.kernel_margin_px(grid, patch.geobox)
    for cell in grids.cells(grid, window):
        target = grids.window_geobox(grid, cell)
        source = grids.covering_window(target, patch.geobox, margin_px)
        if source.empty:
            continue
        cell_pixels, cell_valid, cell_fill = _warp(_crop(patch, source), target, resampling)
        shared = cell.intersection(window)
        to, start = shared.slices(window), shared.slices(cell)
        valid[to] = cell_valid[start]
        for plane, cell_plane in zip(pixels, cell_pixels, strict=True):
            plane[to] = cell_plane[start]
        if fill is not None and cell_fill is not None:
            fill[to] = cell_fill[start]
    return pixels, valid, fill


def _interpolate(patch: Patch, grid: GeoBox, window: Window) -> Warped:
    """Bilinear: a pixel is the mean of the valid ones of the four around it, by their weight."""
    count, place = len(patch.pixels), (patch.level, patch.window, grid, window)
    if patch.valid.all():
        pixels, share = interpolate(patch.pixels, *place)
        if share.min(initial=1.0) == 1:
            fill = None if patch.fill is None else np.zeros(window.shape, np.bool_)
            return pixels, np.ones(window.shape, np.bool_), fill
    found, share = interpolate(_weighed(patch), *place)
    weight = found[count]
    # all four: the same to the last bit as where nothing is missing in the whole patch
    weight[weight > 1 - 1e-6] = 1
    valid = (share > 0) & (weight >= (LEAST_VALID_SHARE - 1e-4) * share)
    pixels = np.where(valid, found[:count] / np.where(valid, weight, 1), np.float32(0))
    return pixels, valid, None if patch.fill is None else found[count + 1] > 0.01 * share


def _weighed(patch: Patch) -> Floats:
    """Pixels with 0 where they are not data, then the weights of data, and of fill if any."""
    count = len(patch.pixels)
    planes = np.empty((count + 1 + (patch.fill is not None), *patch.valid.shape), np.float32)
    np.multiply(patch.pixels, patch.valid, out=planes[:count])
    planes[count] = patch.valid
    if patch.fill is not None:
        planes[count + 1] = patch.fill
    return planes


def _crop(patch: Patch, window: Window) -> Patch:
    rows, cols = window.slices()
    fill = None if patch.fill is None else patch.fill[rows, cols]
    place = window.shifted(patch.window.row0, patch.window.col0)
    return Patch(patch.pixels[:, rows, cols], patch.valid[rows, cols], fill, patch.level, place)


def _warp(patch: Patch, geobox: GeoBox, resampling: str) -> Warped:
    count, planes = len(patch.pixels), _weighed(patch)
    warped = np.zeros((len(planes), *geobox.shape), np.float32)
    reproject(
        planes,
        warped,
        src_transform=patch.geobox.affine,
        src_crs=_rasterio_crs(patch.geobox.crs),
        dst_transform=geobox.affine,
        dst_crs=_rasterio_crs(geobox.crs),
        resampling=Resampling[resampling],
        warp_mem_limit=_WARP_MEMORY_MB,
        # Without these GDAL sizes its kernel by the window at hand, and blocks would differ.
        XSCALE=1,
        YSCALE=1,
    )
    share = warped[count]
    valid = share >= LEAST_VALID_SHARE - 1e-4
    pixels = np.where(valid, warped[:count] / np.where(valid, share, 1), np.float32(0))
    return pixels, valid, None if patch.fill is None else warped[count + 1] > 0.01


@lru_cache(maxsize=64)
def _rasterio_crs(crs: CRS) -> Any:
    return rasterio.CRS.from_wkt(crs.to_wkt())


def _copy(patch: Patch, geobox: GeoBox, offset: tuple[int, int]) -> Warped:
    target = Window(0, 0, *geobox.shape)
    source = Window(0, 0, *patch.valid.shape).shifted(-offset[0], -offset[1])
    shared = target.intersection(source)
    to, start = shared.slices(), shared.slices(source)
    pixels = np.zeros((len(patch.pixels), *target.shape), np.float32)
    valid = np.zeros(target.shape, np.bool_)
    for plane, given in zip(pixels, patch.pixels, strict=True):
        plane[to] = given[start] * patch.valid[start]
    valid[to] = patch.valid[start]
    if patch.fill is None:
        return pixels, valid, None
    fill = np.zeros(target.shape, np.bool_)
    fill[to] = patch.fill[start]
    return pixels, valid, fill


def nothing(count: int, shape: tuple[int, int]) -> Warped:
    """What is warped from beside a raster: no data."""
    return np.zeros((count, *shape), np.float32), np.zeros(shape, np.bool_), None
