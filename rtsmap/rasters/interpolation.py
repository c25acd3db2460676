"""Bilinear interpolation from one grid onto another, all planes of a patch at once. numpy and scipy.

Where the pixels of a window lie in the other grid is computed on nodes at fixed places of the run's grid and
interpolated between them, so that a pixel has one place whatever the window it is asked for with. GDAL's
warper does the same work for each plane anew, and takes longer to begin than to finish with small windows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from scipy.sparse import csr_array

from rtsmap.rasters import grids
from rtsmap.rasters.tiling import Window

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_NODE_PX = 32
_BEND_PX = 0.01
"""Where the way from grid to grid bends more than this between two nodes, every pixel is computed."""

_STRIP_PX = 1 << 16


def interpolate(
    planes: Floats, source: GeoBox, window: Window, grid: GeoBox, target: Window
) -> tuple[Floats, Floats]:
    """Planes (C, h, w), on `window` of the grid `source`, at the pixels of `target` of `grid`.

    Gives values (C, H, W) and the share (H, W), 0..1, of each pixel's weight that lies on the window: pixels
    beyond its edge count neither to the one nor to the other. Where nothing does, values are 0.
    """
    count, height, width = planes.shape
    table = np.ascontiguousarray(planes.reshape(count, -1).T)
    values = np.empty((count, *target.shape), np.float32)
    share = np.ones(target.shape, np.float32)
    for strip, (rows, cols) in _placed(grid, target, source):
        # whole numbers are taken off: fractions stay the same to the last bit
        from_first = rows - (window.row0 + 0.5), cols - (window.col0 + 0.5)
        weights, beyond = _weights(*from_first, (height, width))
        here = strip.slices(target)
        values[:, here[0], here[1]] = (weights @ table).T.reshape(count, *strip.shape)
        if beyond is not None:
            share[here] -= beyond
    return values, share


def places(grid: GeoBox, window: Window, source: GeoBox) -> tuple[Doubles, Doubles]:
    """Where the centres of a window's pixels lie in `source`: (rows, cols), each (H, W); NaN if nowhere."""
    parts = [found for _, found in _placed(grid, window, source)]
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([cols for _, cols in parts])


def _placed(grid: GeoBox, window: Window, source: GeoBox) -> Iterator[tuple[Window, tuple[Doubles, Doubles]]]:
    """`places`, some rows at a time."""
    rows, cols = _nodes(window.row0, window.row1), _nodes(window.col0, window.col1)
    nodes = grids.to_pixels(grid, source, *np.meshgrid(rows, cols, indexing="ij"))
    bent = any(_bend(plane) > _BEND_PX for plane in nodes)
    wide = None if bent else [_between(plane, cols, (window.col0, window.col1), 1) for plane in nodes]
    for strip in _strips(window):
        if wide is None:
            centres = np.arange(strip.row0, strip.row1) + 0.5, np.arange(strip.col0, strip.col1) + 0.5
            yield strip, grids.to_pixels(grid, source, *np.meshgrid(*centres, indexing="ij"))
        else:
            first, second = (_between(plane, rows, (strip.row0, strip.row1), 0) for plane in wide)
            yield strip, (first, second)


def _strips(window: Window) -> Iterator[Window]:
    """Some rows at a time: what is computed for them stays in the processor's cache."""
    rows = max(1, _STRIP_PX // window.width)
    for row in range(window.row0, window.row1, rows):
        yield Window(row, window.col0, min(row + rows, window.row1), window.col1)


def _nodes(start: int, end: int) -> Doubles:
    """Nodes around pixels start..end-1."""
    return np.arange(start // _NODE_PX, -(-end // _NODE_PX) + 1, dtype=np.float64) * _NODE_PX


def _between(values: Doubles, nodes: Doubles, span: tuple[int, int], axis: int) -> Doubles:
    """Values at nodes along an axis, interpolated at the centres of pixels span[0]..span[1]-1."""
    place = (np.arange(*span) + 0.5 - nodes[0]) / _NODE_PX
    before = place.astype(np.int64)
    share = np.expand_dims(place - before, 1 - axis)
    # products and sums of single numbers only: a matrix product would round by the size of the window
    found: Doubles = np.take(values, before, axis)
    found *= 1 - share
    following = np.take(values, before + 1, axis)
    following *= share
    found += following
    return found


def _bend(nodes: Doubles) -> float:
    """How far nodes lie from the middle of their neighbours, at most; infinite where one is nowhere."""
    if not np.isfinite(nodes).all():
        return np.inf
    bends = [np.abs(np.diff(nodes, 2, axis=axis)).max(initial=0.0) for axis in (0, 1)]
    twist = np.abs(np.diff(np.diff(nodes, axis=0), axis=1)).max(initial=0.0)
    return float(max(*bends, twist))


def _weights(rows: Doubles, cols: Doubles, shape: tuple[int, int]) -> tuple[csr_array, Floats | None]:
    """A matrix from pixels (h * w) to those of the strip, and the weight of each that lies beyond them.

    `rows` and `cols` (H, W) count from the centre of the first pixel. None: all lies within.
    """
    height, width = shape
    first_row, last_row, first_col, last_col = rows.min(), rows.max(), cols.min(), cols.max()
    within = first_row >= 0 and last_row < height - 1 and first_col >= 0 and last_col < width - 1
    inside = None
    if not within:
        with np.errstate(invalid="ignore"):
            inside = (rows >= -0.5) & (rows < height - 0.5) & (cols >= -0.5) & (cols < width - 0.5)
        rows, cols = np.where(inside, rows, 0.0), np.where(inside, cols, 0.0)
    top, left = np.floor(rows), np.floor(cols)
    down, right = (rows - top).astype(np.float32), (cols - left).astype(np.float32)
    data = np.empty((*rows.shape, 4), np.float32)
    np.multiply(down, right, out=data[..., 3])
    np.subtract(down, data[..., 3], out=data[..., 2])
    np.subtract(right, data[..., 3], out=data[..., 1])
    np.subtract(1 - down, data[..., 1], out=data[..., 0])
    top *= width
    top += left
    indices = np.empty(data.shape, np.int32)
    indices[..., 0] = top
    for tap, step in enumerate((1, width, width + 1), 1):
        np.add(indices[..., 0], step, out=indices[..., tap])
    beyond = None if inside is None else _cut_off(data, indices, inside, left, shape)
    starts = np.arange(0, 4 * rows.size + 1, 4, dtype=np.int32)
    matrix = csr_array((data.reshape(-1), indices.reshape(-1), starts), shape=(rows.size, height * width))
    return matrix, beyond


def _cut_off(
    data: Floats, indices: npt.NDArray[np.int32], inside: Bools, left: Doubles, shape: tuple[int, int]
) -> Floats:
    """Take out, in place, what lies beyond the pixels; gives its weight."""
    height, width = shape
    col = left.astype(np.int32)
    row = (indices[..., 0] - col) // width
    edge = (row < 0) | (row >= height - 1) | (col < 0) | (col >= width - 1) | ~inside
    r, c = row[edge][:, None] + [0, 0, 1, 1], col[edge][:, None] + [0, 1, 0, 1]
    missing = (r < 0) | (r >= height) | (c < 0) | (c >= width) | ~inside[edge][:, None]
    taps = data[edge]
    beyond = np.zeros(inside.shape, np.float32)
    beyond[edge] = np.where(missing, taps, 0).sum(axis=1)
    beyond[~inside] = 1
    data[edge] = np.where(missing, 0, taps)
    indices[edge] = np.where(missing, 0, indices[edge])
    return beyond
