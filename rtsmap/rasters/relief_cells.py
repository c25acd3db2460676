"""Relief computed once: in cells of a fixed division of the run's grid, the latest of which are kept.

Tiles overlap, and second looks come back to ground that tiles have shown. What a pixel holds depends on its
cell alone, so it is the same to the last bit whichever window asks for it, and whether its cell was kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from mmap import mmap
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from rtsmap.errors import RtsmapError
from rtsmap.rasters.bands import TERRAIN_BANDS
from rtsmap.rasters.elevation import Floats, Relief
from rtsmap.rasters.tiling import Window

CELL_PX = 512
KEPT_CELLS = 64
"""218 MB: all of 4,096 x 4,096 px, where second looks find what tiles have had computed."""


class ReliefCells:
    """The terrain bands of windows of a grid of `shape`, put together from cells that `relief` computes.

    Several threads may share one: a cell that one of them computes is waited for by the others. At most
    `kept` cells are held, those asked for last. Where a cell cannot be read the window is computed by itself,
    for what is damaged may lie beside it; so are windows beyond the grid.
    """

    def __init__(
        self, relief: Callable[[Window], Relief], shape: tuple[int, int], kept: int = KEPT_CELLS
    ) -> None:
        self._relief = relief
        self._all = Window(0, 0, *shape)
        self._kept = kept
        self._cells: OrderedDict[Window, Future[Relief]] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process without its cells."""
        return ReliefCells, (self._relief, self._all.shape, self._kept)

    def relief(self, window: Window) -> Relief:
        """Terrain bands (H, W) float32 by name, 0 where not valid (H, W), True = data."""
        if window.empty or not self._all.contains(window):
            return self._relief(window)
        bands: dict[str, Floats] = {name: np.empty(window.shape, np.float32) for name in TERRAIN_BANDS}
        valid = np.empty(window.shape, np.bool_)
        for cell in self._touched(window):
            try:
                found = self._cell(cell)
            except (RtsmapError, OSError):
                return self._relief(window)
            shared = cell.intersection(window)
            to, start = shared.slices(window), shared.slices(cell)
            valid[to] = found.valid[start]
            for name, band in bands.items():
                band[to] = found.bands[name][start]
        return Relief(bands, valid)

    def forget(self) -> None:
        """Let go of all cells; those asked for again are computed again."""
        with self._lock:
            self._cells.clear()

    def _touched(self, window: Window) -> Iterator[Window]:
        for row in range(window.row0 // CELL_PX * CELL_PX, window.row1, CELL_PX):
            for col in range(window.col0 // CELL_PX * CELL_PX, window.col1, CELL_PX):
                yield Window(row, col, row + CELL_PX, col + CELL_PX).intersection(self._all)

    def _cell(self, cell: Window) -> Relief:
        with self._lock:
            is_new = cell not in self._cells
            kept = self._cells.setdefault(cell, Future())
            self._cells.move_to_end(cell)
            while len(self._cells) > self._kept:
                self._cells.popitem(last=False)
        if is_new:
            try:
                whole = self._relief(cell)
            except BaseException as exc:
                with self._lock:
                    self._cells.pop(cell, None)
                kept.set_exception(exc)
                raise
            bands = {name: _apart(whole.bands[name]) for name in TERRAIN_BANDS}
            kept.set_result(Relief(bands, _apart(whole.valid)))
        return kept.result()


def _apart(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy on pages of its own: among arrays that live for a moment it would hold on to their memory."""
    copy = np.frombuffer(mmap(-1, values.nbytes), values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
