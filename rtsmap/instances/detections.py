"""What a detector gives back, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rtsmap.errors import GridMismatchError
from rtsmap.rasters.chips import Chip
from rtsmap.rasters.tiling import Tile, Window


class Side(IntFlag):
    """Sides of a tile's read window that a mask touches."""

    NONE = 0
    TOP = 1
    RIGHT = 2
    BOTTOM = 4
    LEFT = 8


@dataclass(frozen=True, slots=True)
class Detection:
    """One slump, or the part of it that one tile saw.

    `window` is in pixels of the run's grid and is cropped to the mask; `mask` (h, w) uint8 is a
    probability, 0..255, of which 128 and more counts as slump; `tile` is the index of the tile;
    `sides` are the sides of the tile's read window that the mask touches; `modalities` names those
    with data under the mask. Raises GridMismatchError when mask and window disagree.
    """

    score: float
    window: Window
    mask: npt.NDArray[np.uint8]
    tile: int
    sides: Side = Side.NONE
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mask.shape != self.window.shape or self.mask.dtype != np.uint8:
            raise GridMismatchError(
                f"detection in tile {self.tile}: mask {self.mask.dtype} {self.mask.shape} "
                f"does not fit window {self.window.shape} (wanted uint8)"
            )
        if not 0.0 <= self.score <= 1.0:
            raise GridMismatchError(f"detection in tile {self.tile}: score {self.score} not in 0..1")


class Detector(Protocol):
    """Anything that finds slumps on chips. It may keep a device, but no state between calls.

    One that has an attribute `calls_at_once` is called from so many threads at the same time; one that has a
    method `give_up` is told by it that nobody waits for these calls any more.
    """

    def detect(self, chips: Sequence[Chip]) -> list[list[Detection]]:
        """One list of detections for each chip, in the same order."""
        ...


def touched_sides(window: Window, tile: Tile) -> Side:
    """Sides of the tile's read window that a cropped mask window reaches."""
    sides = Side.NONE
    if window.row0 == tile.read.row0:
        sides |= Side.TOP
    if window.col1 == tile.read.col1:
        sides |= Side.RIGHT
    if window.row1 == tile.read.row1:
        sides |= Side.BOTTOM
    if window.col0 == tile.read.col0:
        sides |= Side.LEFT
    return sides


def crop_mask(
    mask: npt.NDArray[np.uint8], corner: tuple[int, int], threshold: int = 1
) -> tuple[Window, npt.NDArray[np.uint8]] | None:
    """Crop a mask whose upper left pixel is grid pixel `corner` (row, column) to values >= threshold.

    Returns the window on the grid and the cropped copy, or None for a mask with no such value.
    """
    rows = np.flatnonzero((mask >= threshold).any(axis=1))
    cols = np.flatnonzero((mask >= threshold).any(axis=0))
    if not len(rows):
        return None
    r0, r1, c0, c1 = int(rows[0]), int(rows[-1]) + 1, int(cols[0]), int(cols[-1]) + 1
    window = Window(corner[0] + r0, corner[1] + c0, corner[0] + r1, corner[1] + c1)
    return window, mask[r0:r1, c0:c1].copy()
