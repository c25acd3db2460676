"""Versions of a raster to read from: an overview, and whole pixels of it to average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rtsmap.rasters import grids
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.tiling import Window

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
LEAST_VALID_SHARE = 0.5
"""Of its area that a pixel needs as data to be data, when it is made of several."""


@dataclass(frozen=True, slots=True)
class Level:
    """A version of a raster: overview `overview` (None: full resolution), `boxcar` pixels averaged to one.

    The means are taken over valid pixels, from the raster's upper left corner on.
    """

    overview: int | None = None
    boxcar: int = 1


@dataclass(frozen=True, slots=True)
class Patch:
    """Pixels (C, H, W) float32 on `window` of the grid `level`; `valid` (H, W) True = data.

    `fill` True = undeclared fill.
    """

    pixels: Floats
    valid: Bools
    fill: Bools | None
    level: GeoBox
    window: Window

    @property
    def geobox(self) -> GeoBox:
        """The grid of these pixels."""
        return grids.window_geobox(self.level, self.window)


def choose_level(info: RasterInfo, ratio: float, leave: float = 2.0) -> Level:
    """The version of the raster to warp from when `ratio` of its pixels make one target pixel.

    The coarsest overview still as fine as the target, 2 % slack for odd sizes, and of it as many whole
    pixels averaged as leave the warper at least `leave` a side.
    """
    factor, overview = _coarsest_overview(info, ratio)
    return Level(overview, max(1, int(ratio / factor / leave + 1e-6)))


def level_for(info: RasterInfo, geobox: GeoBox) -> Level:
    """`choose_level` for reading onto a grid; where whole pixels make one of the grid's, all at once.

    All blocks of one grid must be read with one level.
    """
    ratio = grids.shrink_ratio(geobox, info.geobox)
    factor, overview = _coarsest_overview(info, ratio)
    whole = Level(overview, max(1, round(ratio / factor)))
    if whole_offset(level_geobox(info, whole), geobox) is not None:
        return whole
    return choose_level(info, ratio)


def _coarsest_overview(info: RasterInfo, ratio: float) -> tuple[int, int | None]:
    fitting = [(factor, i) for i, factor in enumerate(info.overviews) if factor <= ratio * 1.02]
    return max(fitting, default=(1, None))


def level_geobox(info: RasterInfo, level: Level) -> GeoBox:
    """Grid of a level; its last row and column may reach beyond the raster."""
    height, width = info.geobox.shape
    rows, cols = info.overview_shapes[level.overview] if level.overview is not None else (height, width)
    native = info.geobox.affine
    x_size, y_size = native.a * width / cols * level.boxcar, native.e * height / rows * level.boxcar
    affine = type(native)(x_size, 0.0, native.c, 0.0, y_size, native.f)
    return GeoBox((-(-rows // level.boxcar), -(-cols // level.boxcar)), affine, info.crs)


def whole_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """(row, col) of the target's corner in a source of the same pixels; None where pixels differ."""
    if source.crs != target.crs:
        return None
    height, width = target.shape
    rows, cols = grids.to_pixels(target, source, [0, height], [0, width])
    row, col = round(rows[0]), round(cols[0])
    drifts = (rows[0] - row, cols[0] - col, rows[1] - row - height, cols[1] - col - width)
    return (row, col) if max(abs(drift) for drift in drifts) < 1e-4 else None
