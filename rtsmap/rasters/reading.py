"""Pixels of a raster file, with their validity.

Reading goes in three steps. A `Level` is chosen, the part of it under the target is read with its validity,
and both are warped onto the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterioWindow
from scipy.ndimage import binary_dilation

from rtsmap.errors import BandError, InputError
from rtsmap.rasters import grids
from rtsmap.rasters.levels import (
    LEAST_VALID_SHARE,
    Bools,
    Floats,
    Level,
    Patch,
    level_for,
    level_geobox,
    whole_offset,
)
from rtsmap.rasters.opening import (
    GDAL_ERRORS,
    borrowed,
    opened,
    patiently,
)
from rtsmap.rasters.sources import RasterInfo, alpha_band, probe
from rtsmap.rasters.tiling import Window
from rtsmap.rasters.warping import Warped, nothing, warp
from rtsmap.timing import stage

_STRIP_PX = 16_000_000
_WARP_PX = 8_000_000


@stage("reading")
def read_level(info: RasterInfo, bands: Sequence[int], level: Level, window: Window) -> Patch:
    """Read `window`, in pixels of the level, with the raster's own validity; in bounded memory.

    What cannot be read is tried again; in the end ReadError.
    """
    place = level_geobox(info, level), window
    options = {} if level.overview is None else {"overview_level": level.overview}

    def read() -> Patch:
        with borrowed(info.dataset, **options) as src:
            if level.boxcar == 1:
                return Patch(*_read_pixels(src, info, bands, window), *place)
            return Patch(*_read_boxcar(src, info, bands, window, level.boxcar), *place)

    return patiently(read, info.dataset, info.path)


def read_native(info: RasterInfo, bands: Sequence[int], window: Window | None = None) -> Patch:
    """Read pixels as they are; `window` None means all."""
    return read_level(info, bands, Level(), window or Window(0, 0, *info.geobox.shape))


def read_picture(path: Path | str) -> tuple[tuple[str, ...], Floats, Bools]:
    """Names of bands, pixels and validity (C, H, W) of a small raster, which may have no place on Earth."""
    try:
        with opened(str(path)) as src:
            names = tuple(name or "" for name in src.descriptions)
            pixels = src.read().astype(np.float32)
            valid = (src.read_masks() > 0) & np.isfinite(pixels)
    except GDAL_ERRORS as exc:
        raise InputError(f"{path}: cannot be read as a raster ({exc})") from exc
    return names, np.where(valid, pixels, np.float32(0)), valid


def read_onto(
    path: Path | str | RasterInfo,
    bands: Sequence[int],
    geobox: GeoBox,
    *,
    resampling: str | None = None,
    level: Level | None = None,
) -> tuple[Floats, Bools]:
    """Read bands onto a grid: (pixels (C, H, W) float32, valid (H, W) bool); invalid pixels hold 0.

    `resampling` is "average", "bilinear" or "nearest"; None averages downwards and interpolates upwards.
    A target pixel is the weighted mean of the valid pixels under it, and valid when these have at least
    half of the weight. Where fill is not declared and an overview is read, pixels beside fill are invalid
    too, for the overview has mixed fill into them.
    """
    info = path if isinstance(path, RasterInfo) else probe(path)
    height, width = geobox.shape
    window = Window(1, 1, height + 1, width + 1)
    return read_window(
        info,
        bands,
        geobox.pad(1),
        window,
        resampling=resampling or natural_resampling(info, geobox),
        level=level or level_for(info, geobox),
    )


def natural_resampling(info: RasterInfo, geobox: GeoBox) -> str:
    """Average onto a grid that is coarser than the raster or equal, bilinear onto a finer one."""
    return "average" if grids.shrink_ratio(geobox, info.geobox) > 0.999 else "bilinear"


def read_window(
    info: RasterInfo, bands: Sequence[int], grid: GeoBox, window: Window, *, resampling: str, level: Level
) -> tuple[Floats, Bools]:
    """`read_onto` for a window of a larger grid: the same pixels whatever the window they are read with."""
    if any(not 1 <= band <= info.count for band in bands) or not bands:
        raise BandError(f"{info.path}: cannot read bands {tuple(bands)}; the file has 1..{info.count}")
    if not (info.fill_is_zero and level.overview is not None):
        return _read_in_strips(info, bands, grid, window, resampling=resampling, level=level)[:2]
    wide = grids.padded_window(window, 1, grid)
    pixels, valid, fill = _read_in_strips(info, bands, grid, wide, resampling=resampling, level=level)
    if fill is not None:
        valid &= ~binary_dilation(fill, np.ones((3, 3), bool))
    rows, cols = window.slices(wide)
    valid = valid[rows, cols]
    return np.where(valid, pixels[:, rows, cols], np.float32(0)), valid


def _read_in_strips(
    info: RasterInfo, bands: Sequence[int], grid: GeoBox, window: Window, *, resampling: str, level: Level
) -> Warped:
    """Read and warp some rows at a time, few enough to bound the memory."""
    source_grid = level_geobox(info, level)
    if (same := _window_of_same_pixels(source_grid, grid, window)) is not None:
        patch = read_level(info, bands, level, same)
        return patch.pixels, patch.valid, patch.fill
    hull = _hull(grid, window, source_grid, resampling)
    margin_px = grids.kernel_margin_px(grid, source_grid)
    whole = grids.covering_window(grids.window_geobox(grid, hull), source_grid, margin_px)
    strips = max(1, -(-whole.height * whole.width // _WARP_PX))
    rows = max(1, -(-window.height // strips))
    if grid.crs != source_grid.crs and resampling != "bilinear":
        rows = -(-rows // grids.CELL_PX) * grids.CELL_PX
    parts = []
    for row in range(window.row0, window.row1, rows):
        strip = Window(row, window.col0, min(row + rows, window.row1), window.col1)
        hull = _hull(grid, strip, source_grid, resampling)
        source = grids.covering_window(grids.window_geobox(grid, hull), source_grid, margin_px)
        if source.empty:
            parts.append(nothing(len(bands), strip.shape))
        else:
            parts.append(warp(read_level(info, bands, level, source), grid, strip, resampling))
    if len(parts) == 1:
        return parts[0]
    fills = [np.zeros(valid.shape, np.bool_) if fill is None else fill for _, valid, fill in parts]
    return (
        np.concatenate([pixels for pixels, _, _ in parts], axis=1),
        np.concatenate([valid for _, valid, _ in parts]),
        np.concatenate(fills),
    )


def _window_of_same_pixels(source: GeoBox, grid: GeoBox, window: Window) -> Window | None:
    """Where the pixels of the source are those of the window: the pixels under it; else None."""
    if window.height * window.width > _WARP_PX:
        return None
    offset = whole_offset(source, grids.window_geobox(grid, window))
    if offset is None:
        return None
    there = Window(offset[0], offset[1], offset[0] + window.height, offset[1] + window.width)
    return there if Window(0, 0, *source.shape).contains(there) else None


def _hull(grid: GeoBox, window: Window, source: GeoBox, resampling: str) -> Window:
    """What must be read to warp a window: all cells that it touches, where that goes by cells."""
    return window if resampling == "bilinear" else grids.warp_hull(grid, window, source)


def _read_pixels(
    src: Any, info: RasterInfo, bands: Sequence[int], window: Window
) -> tuple[Floats, Bools, Bools | None]:
    """Pixels with 0 where they are not data, validity, and undeclared fill (None: there is none)."""
    where = RasterioWindow(window.col0, window.row0, window.width, window.height)
    data = src.read(list(bands), window=where)
    valid = np.ones(window.shape, np.bool_)
    if info.has_alpha:
        valid &= _is_opaque(src.read(alpha_band(src), window=where))
    elif info.has_mask:
        valid &= src.read_masks(1, window=where) >= 128
    elif info.nodata is not None:
        empty = _equals_nodata(data, info.nodata)
        # 0 or 255 in one band may be dark or bright ground, -9999 is no ground at all
        valid &= ~(empty.any(axis=0) if info.nodata < 0 else empty.all(axis=0))
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    fill = None
    if info.believable is not None:
        lowest, highest = info.believable
        strange = valid & ((data < lowest) | (data > highest)).any(axis=0)
        if strange.any():
            fill = strange
            valid &= ~strange
    if info.fill_is_zero and info.nodata != 0 and len(bands) >= min(3, info.count) and not data.all():
        zeros = valid & ~data.any(axis=0)
        if zeros.any():
            fill = zeros
            valid &= ~zeros
    if not valid.all():
        data[:, ~valid] = 0
    return data.astype(np.float32), valid, fill


def _is_opaque(alpha: npt.NDArray[Any]) -> Bools:
    """Alpha of at least one half of what GDAL writes for opaque; anything above 0 of other types."""
    whole = {"uint8": 255, "uint16": 65535, "int16": 32767}.get(alpha.dtype.name)
    return np.asarray(alpha > 0 if whole is None else alpha > whole // 2, np.bool_)


def _equals_nodata(data: npt.NDArray[Any], nodata: float) -> Bools:
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):
            value = data.dtype.type(nodata)
        return np.asarray(np.isclose(data, value, rtol=1e-6, atol=0) | (data == value), np.bool_)
    return np.asarray(data == nodata, np.bool_)


def _read_boxcar(
    src: Any, info: RasterInfo, bands: Sequence[int], window: Window, boxcar: int
) -> tuple[Floats, Bools, Bools | None]:
    """Means of `boxcar` x `boxcar` pixels, read in strips of whole blocks so that each block comes once."""
    size = Window(0, 0, src.height, src.width)
    wide = Window(window.row0 * boxcar, window.col0 * boxcar, window.row1 * boxcar, window.col1 * boxcar)
    wide = wide.intersection(size)
    pixels = np.zeros((len(bands), *window.shape), np.float32)
    share = np.zeros(window.shape, np.float32)
    filled = np.zeros(window.shape, np.bool_)
    rows = max(1, _STRIP_PX // max(1, wide.width * len(bands)) // boxcar)
    for row in range(0, window.height, rows):
        end = min(row + rows, window.height)
        top, bottom = (window.row0 + row) * boxcar, (window.row0 + end) * boxcar
        strip = Window(top, wide.col0, min(bottom, size.row1), wide.col1)
        values, valid, fill = _read_pixels(src, info, bands, strip)
        inside = _block_sizes(strip, boxcar)
        count = inside if valid.all() else _block_sums(valid[None].astype(np.float32), boxcar)[0]
        pixels[:, row:end] = _block_sums(values, boxcar) / np.maximum(count, 1)
        share[row:end] = count / inside
        if fill is not None:
            filled[row:end] = _block_sums(fill[None].astype(np.float32), boxcar)[0] > 0
    valid = share >= LEAST_VALID_SHARE
    pixels[:, ~valid] = 0
    return pixels, valid, filled if filled.any() else None


def _block_sums(values: Floats, size: int) -> Floats:
    """Sums over size x size blocks of (C, H, W); blocks at the far edges may be cut."""
    count, height, width = values.shape
    down, right = -height % size, -width % size
    if down or right:
        values = np.pad(values, ((0, 0), (0, down), (0, right)))
    rows = _add_up(np.moveaxis(values.reshape(count, -1, size, width + right), 2, 0))
    return _add_up(np.moveaxis(rows.reshape(count, rows.shape[1], -1, size), 3, 0))


def _add_up(parts: Floats) -> Floats:
    """Sum along the first axis; several times faster than numpy's for strided axes of a few."""
    total: Floats = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _block_sizes(window: Window, size: int) -> Floats:
    """Pixels in each of the blocks that `_block_sums` adds up; `window` begins with a whole block."""
    rows = np.minimum(size, window.height - np.arange(0, window.height, size))
    cols = np.minimum(size, window.width - np.arange(0, window.width, size))
    return np.asarray(np.outer(rows, cols), np.float32)
