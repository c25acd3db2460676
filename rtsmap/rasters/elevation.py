"""Elevation and terrain of any window of the run's grid, from an elevation model on a grid of its own.

Terrain is computed on the elevation model's grid, with a buffer, then warped. What is warped of the
gradient is a vector per pixel of that grid; on arrival it is turned and stretched to right and up on the
ground, so shading has one sun for the scene however the elevation model lies. Nothing here depends on
where a block begins or ends: blocks agree along their borders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from math import ceil

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from scipy.ndimage import binary_dilation

from rtsmap.rasters import grids, levels, reading, sources, terrain, warping
from rtsmap.rasters.levels import Level, Patch
from rtsmap.rasters.mosaic import DemFiles, ElevationModel, open_elevation
from rtsmap.rasters.sources import RasterInfo
from rtsmap.rasters.tiling import Window
from rtsmap.timing import stage

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

LOWEST_M, HIGHEST_M = -1000.0, 9000.0
"""Elevations beyond these are voids, whatever the file declares."""

_UNIT_M = {"": 1.0, "m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "ft": 0.3048}
_UNIT_M |= {"foot": 0.3048, "feet": 0.3048, "us-ft": 1200 / 3937, "us survey foot": 1200 / 3937, "cm": 0.01}
_BANDS = ("relative_elevation", "slope", "shaded_relief", "rise_right", "rise_up")
_NODE_PX = 128
_PIECE_PX = 6_000_000


@dataclass(frozen=True, slots=True)
class Relief:
    """Terrain bands by name, each (H, W) float32 with 0 where not `valid` (H, W).

    Beside the bands of `bands.TERRAIN_BANDS`: `rise_right` and `rise_up`, the gradient (rise over run).
    """

    bands: dict[str, Floats]
    valid: Bools


def metres_per_unit(info: RasterInfo) -> float:
    """Length of a raster's unit of height; an unknown one is taken as metres."""
    return _UNIT_M.get(info.unit, 1.0)


@dataclass(frozen=True, slots=True)
class Heights:
    """Elevation in metres on the run's grid, its validity, and when it was measured, all (H, W).

    `first_day` and `last_day` count from 2000-01-01; 0 where nothing tells.
    """

    elevation: Floats
    valid: Bools
    first_day: npt.NDArray[np.int16]
    last_day: npt.NDArray[np.int16]


DAY_0 = date(2000, 1, 1)
"""Day 0 of ArcticDEM's dates."""


class ElevationReader:
    """Reads one elevation model onto windows of the run's grid. Safe to use from several threads."""

    def __init__(self, dem: DemFiles | ElevationModel, geobox: GeoBox) -> None:
        model = open_elevation(dem, geobox)
        self._info = replace(model.info, believable=_stored_heights(model.info))
        self._model = model
        self._model_notes = model.notes
        self._paths = tuple(tile.path for tile in model.tiles)
        self._grid = geobox
        self._to_m = metres_per_unit(self._info)
        self._level = _terrain_level(self._info, geobox)
        self._level_grid = levels.level_geobox(self._info, self._level)
        self._pixel_m = self._ground_pixel_m()
        self._margin_px = grids.kernel_margin_px(geobox, self._level_grid)
        self._found: set[str] = set()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are read."""
        return self._paths

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed or found so far, in sentences."""
        path, info = self._info.path, self._info
        notes = [f"{path}: {note}" for note in info.notes]
        if info.unit not in _UNIT_M:
            notes.append(f"{path}: unit of height '{info.unit}' is unknown; taken as metres")
        elif self._to_m != 1:
            notes.append(f"{path}: heights in '{info.unit}' are converted to metres")
        if grids.covering_window(self._grid, info.geobox, 0).empty:
            notes.append(f"{path}: does not overlap the scene; it is mapped without terrain")
        elif max(self._pixel_m) > terrain.RADIUS_M:
            notes.append(
                f"{path}: its pixels of {max(self._pixel_m):.0f} m are wider than the "
                f"{terrain.RADIUS_M:.0f} m within which relative elevation looks; that band will be 0"
            )
        return (*notes, *self._model_notes, *sorted(self._found))

    def elevation(self, window: Window) -> tuple[Floats, Bools]:
        """Elevation in metres on the run's grid: (elevation (H, W), valid (H, W))."""
        source = self._source_window(window, self._margin_px)
        if source.empty:
            return np.zeros(window.shape, np.float32), np.zeros(window.shape, np.bool_)
        pixels, valid, _ = warping.warp(self._read(source), self._grid, window, "bilinear")
        return pixels[0], valid

    def heights(self, window: Window) -> Heights:
        """Elevation, and when it was measured."""
        elevation, valid = self.elevation(window)
        first, last = self._days(window)
        if first.any():
            first, last = np.where(valid, first, 0), np.where(valid, last, 0)
        return Heights(elevation, valid, first, last)

    def _days(self, window: Window) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]]:
        """First and last day of the data, from rasters of dates or else from the names of strips."""
        if self._model.dates is not None:
            first, last = (self._day_raster(info, window) for info in self._model.dates)
            return first, last
        days = [
            (date.fromisoformat(taken) - DAY_0).days
            for tile, taken in self._model.taken
            if not grids.covering_window(grids.window_geobox(self._grid, window), tile.geobox, 0).empty
        ]
        whole = len(self._model.taken) == len(self._model.tiles)
        first_day, last_day = (min(days), max(days)) if days and whole else (0, 0)
        # one number for all pixels: cells that are kept stay small
        first, last = (np.broadcast_to(np.int16(day), window.shape) for day in (first_day, last_day))
        return first, last

    def _day_raster(self, info: sources.RasterInfo, window: Window) -> npt.NDArray[np.int16]:
        # an overview of dates holds dates, while averages of them would be days on which nothing was measured
        level = replace(levels.level_for(info, self._grid), boxcar=1)
        days, valid = reading.read_window(info, [1], self._grid, window, resampling="nearest", level=level)
        return np.where(valid & (days[0] > 0), np.rint(days[0]), 0).astype(np.int16)

    @stage("terrain")
    def relief(self, window: Window) -> Relief:
        """Relative elevation, slope, shaded relief and the gradient on the run's grid."""
        margin_px = ceil(terrain.BUFFER_M / min(self._pixel_m)) + 5
        source = self._source_window(window, margin_px)
        if source.empty:
            nothing: dict[str, Floats] = {name: np.zeros(window.shape, np.float32) for name in _BANDS}
            return Relief(nothing, np.zeros(window.shape, np.bool_))
        if source.height * source.width > _PIECE_PX and max(window.shape) > 64:
            return self._relief_in_halves(window)
        planes, valid, _ = warping.warp(self._native_relief(source), self._grid, window, "bilinear")
        dz_dx, dz_dy = self._on_the_ground(planes[1], planes[2], window)
        bands = {
            "relative_elevation": planes[0],
            "slope": terrain.slope_degrees(dz_dx, dz_dy),
            "shaded_relief": terrain.shaded_relief(dz_dx, dz_dy),
            "rise_right": dz_dx,
            "rise_up": dz_dy,
        }
        if valid.all():
            return Relief(bands, valid)
        zero = np.float32(0)
        return Relief({name: np.where(valid, band, zero) for name, band in bands.items()}, valid)

    def _source_window(self, window: Window, margin_px: int) -> Window:
        return grids.covering_window(grids.window_geobox(self._grid, window), self._level_grid, margin_px)

    def _relief_in_halves(self, window: Window) -> Relief:
        if window.height >= window.width:
            middle, axis = (window.row0 + window.row1) // 2, 0
            halves = (replace(window, row1=middle), replace(window, row0=middle))
        else:
            middle, axis = (window.col0 + window.col1) // 2, 1
            halves = (replace(window, col1=middle), replace(window, col0=middle))
        first, second = (self.relief(half) for half in halves)
        return Relief(
            {name: np.concatenate([first.bands[name], second.bands[name]], axis) for name in first.bands},
            np.concatenate([first.valid, second.valid], axis),
        )

    def _native_relief(self, window: Window) -> Patch:
        """Planes on the elevation model's grid: relative elevation, rise per column, rise per row."""
        patch = self._read(window)
        elevation = patch.pixels[0]
        relative, _ = terrain.relative_elevation(elevation, patch.valid, self._pixel_m)
        per_col, upwards = terrain.gradients(elevation, patch.valid, (1.0, 1.0))
        valid = patch.valid & np.isfinite(per_col) & np.isfinite(upwards)
        planes = np.stack([relative, per_col.astype(np.float32), -upwards.astype(np.float32)])
        return replace(patch, pixels=np.where(valid, planes, np.float32(0)), valid=valid, fill=None)

    def _on_the_ground(self, per_col: Floats, per_row: Floats, window: Window) -> tuple[Floats, Floats]:
        """Turn gradients in pixels of the elevation model into rise over run, right and up the run's grid.

        How the two grids lie to each other is computed on nodes at fixed places of the run's grid.
        """
        rows, row_weights = _nodes(window.row0, window.row1)
        cols, col_weights = _nodes(window.col0, window.col1)
        mesh = np.meshgrid(rows, cols, indexing="ij")
        reach = np.nan_to_num(grids.pixel_jacobian(self._grid, self._level_grid, *mesh))
        height_m, width_m = grids.ground_pixel_m(self._grid, *mesh)
        down, right = reach[..., :, 0] / height_m[..., None], reach[..., :, 1] / width_m[..., None]

        def spread(values: npt.NDArray[np.float64]) -> Floats:
            wide = (values @ col_weights.T).astype(np.float32)
            return np.asarray(row_weights.astype(np.float32) @ wide)

        dz_dx = per_row * spread(right[..., 0]) + per_col * spread(right[..., 1])
        dz_dy = -(per_row * spread(down[..., 0]) + per_col * spread(down[..., 1]))
        return dz_dx, dz_dy

    def _read(self, window: Window) -> Patch:
        """Elevation in metres with voids found; in pixels of the level."""
        patch = reading.read_level(self._info, [1], self._level, window)
        elevation = (patch.pixels * self._info.scale + self._info.offset) * self._to_m
        valid = patch.valid
        if patch.fill is not None:
            self._found.add(
                f"{self._info.path}: elevations beyond {LOWEST_M:.0f}..{HIGHEST_M:.0f} m are taken as voids"
            )
            if self._level.overview is not None:
                # whoever made the overview has mixed the voids into the pixels beside them
                valid = valid & ~binary_dilation(patch.fill, np.ones((3, 3), bool))
        pixels = np.where(valid, elevation, 0).astype(np.float32)
        return replace(patch, pixels=pixels, valid=valid, fill=None)

    def _ground_pixel_m(self) -> tuple[float, float]:
        """Size of a pixel (height, width) at the centre of the scene, one for the whole run."""
        height, width = self._grid.shape
        row, col = grids.to_pixels(self._grid, self._level_grid, height / 2, width / 2)
        sizes = tuple(float(v) for v in grids.ground_pixel_m(self._level_grid, row, col))
        if all(np.isfinite(size) and size > 0 for size in sizes):
            return sizes[0], sizes[1]
        gsd = self._info.ground_sample_distance_m
        return gsd, gsd


def _stored_heights(info: sources.RasterInfo) -> tuple[float, float]:
    """`LOWEST_M` and `HIGHEST_M` as the file would store them."""
    scale = (info.scale or 1.0) * metres_per_unit(info)
    ends = [height / scale - info.offset / (info.scale or 1.0) for height in (LOWEST_M, HIGHEST_M)]
    return min(ends), max(ends)


def _terrain_level(info: sources.RasterInfo, geobox: GeoBox) -> Level:
    """Full resolution, or whole pixels averaged up to the width of the run's pixels and a tenth more.

    The tenth makes 2 m under a grid of 4 m the same case in every CRS, for none is quite true to scale.
    """
    ratio = 1.1 * grids.shrink_ratio(geobox, info.geobox)
    return levels.choose_level(info, ratio, leave=1.0) if ratio >= 2 else Level()


def _nodes(start: int, end: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Node positions around pixels start..end-1 and the weights (pixels, nodes) of linear interpolation."""
    first, last = start // _NODE_PX, -(-end // _NODE_PX)
    nodes = np.arange(first, last + 1, dtype=np.float64) * _NODE_PX
    place = (np.arange(start, end) + 0.5) / _NODE_PX - first
    left = np.minimum(place.astype(int), max(len(nodes) - 2, 0))
    weights = np.zeros((end - start, len(nodes)))
    rows = np.arange(end - start)
    weights[rows, left] = 1 - (place - left)
    weights[rows, left + 1] = place - left
    return nodes, weights
