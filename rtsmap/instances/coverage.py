"""What of a scene was looked at: mapped, no data, failed or left out, as dissolved areas. numpy, shapely."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import GridMismatchError
from rtsmap.instances.attributes import geodesic_area_m2
from rtsmap.instances.rectangles import Boxes, dissolve_boxes
from rtsmap.rasters.tiling import Tile, Window

MAPPED = "mapped"
NO_DATA = "no data"
FAILED = "failed"
LEFT_OUT = "left out"
STATUSES = (MAPPED, NO_DATA, FAILED, LEFT_OUT)

NO_PIXELS = "no optical data"
"""Reason given for pixels without data inside a tile, whatever became of the tile."""


@dataclass(frozen=True, slots=True)
class TileCoverage:
    """What became of one tile's core: a status of `STATUSES`, and the reason where it is not mapped.

    `valid` (True = data), if given, covers the core in cells of `stride` x `stride` pixels from its
    upper left corner (the last ones may be cut); its False cells are no data whatever the status.
    """

    status: str
    reason: str = ""
    valid: npt.NDArray[np.bool_] | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"coverage status '{self.status}': wanted one of {', '.join(STATUSES)}")
        if self.valid is not None and (self.valid.dtype != np.bool_ or self.valid.ndim != 2):
            raise GridMismatchError(
                f"coverage mask: wanted bool (h, w), got {self.valid.dtype} {self.valid.shape}"
            )


@dataclass(frozen=True, slots=True)
class CoverageArea:
    """All ground with one status and reason: polygon in the grid's CRS, geodesic area."""

    polygon: BaseGeometry
    status: str
    reason: str
    area_m2: float


def coverage_areas(
    tiles: Iterable[Tile], statuses: Iterable[TileCoverage], geobox: GeoBox
) -> list[CoverageArea]:
    """Dissolve the tiles' cores by status and reason; together they are the grid, without overlap.

    `statuses` are in the order of `tiles`; both may be streams. Time and memory grow with the number
    of tiles and of runs of cells in those with gaps.
    """
    boxes: dict[tuple[str, str], list[Boxes]] = defaultdict(list)
    for tile, coverage in zip(tiles, statuses, strict=True):
        for key, part in _core_boxes(tile, coverage):
            boxes[key].append(part)
    return [
        _dissolve(np.concatenate(boxes[key]), *key, geobox)
        for key in sorted(boxes, key=lambda key: (STATUSES.index(key[0]), key[1]))
    ]


def core_cells(valid: npt.NDArray[np.bool_], tile: Tile, stride: int = 4) -> npt.NDArray[np.bool_] | None:
    """Cells of a tile's core, for `TileCoverage`, from the validity of its whole read window.

    A cell is True when at least half of its pixels are. None, which costs nothing to keep, stands
    for a core without a gap.
    """
    core = valid[tile.core.slices(within=tile.read)]
    if core.all():
        return None
    rows, cols = (np.arange(0, size, stride) for size in core.shape)
    counts = np.add.reduceat(np.add.reduceat(core, rows, axis=0, dtype=np.int64), cols, axis=1)
    pixels = np.outer(np.diff([*rows, core.shape[0]]), np.diff([*cols, core.shape[1]]))
    cells: npt.NDArray[np.bool_] = 2 * counts >= pixels
    return cells


def _core_boxes(tile: Tile, coverage: TileCoverage) -> Iterable[tuple[tuple[str, str], Boxes]]:
    whole = (coverage.status, coverage.reason)
    core = tile.core
    if coverage.valid is None:
        yield whole, np.array([[core.row0, core.col0, core.row1, core.col1]])
        return
    rows, cols = _cell_edges(core, coverage.stride)
    if coverage.valid.shape != (len(rows) - 1, len(cols) - 1):
        raise GridMismatchError(
            f"coverage mask of tile {tile.index}: a core of {core.shape} in cells of {coverage.stride} px "
            f"wants {(len(rows) - 1, len(cols) - 1)}, got {coverage.valid.shape}"
        )
    for key, cells in ((whole, coverage.valid), ((NO_DATA, NO_PIXELS), ~coverage.valid)):
        if cells.any():
            yield key, _runs(cells, rows, cols)


def _cell_edges(core: Window, stride: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return (
        np.append(np.arange(core.row0, core.row1, stride), core.row1),
        np.append(np.arange(core.col0, core.col1, stride), core.col1),
    )


def _runs(cells: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], cols: npt.NDArray[np.int64]) -> Boxes:
    """One box for each run of True cells along a row."""
    steps = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, start = np.nonzero(steps == 1)
    _, end = np.nonzero(steps == -1)
    return np.stack([rows[row], cols[start], rows[row + 1], cols[end]], axis=1)


def _dissolve(boxes: Boxes, status: str, reason: str, geobox: GeoBox) -> CoverageArea:
    # United in whole pixels, where every corner is exact, and only then put on the ground.
    polygon = affine_transform(dissolve_boxes(boxes), geobox.affine.to_shapely())
    return CoverageArea(polygon, status, reason, geodesic_area_m2(polygon, geobox.crs))
