"""Tiles: windows on the run's grid. Cores partition it, read windows overlap. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from rtsmap.errors import OptionsError


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """A rectangle of pixels: rows row0..row1-1, columns col0..col1-1 of the run's grid."""

    row0: int
    col0: int
    row1: int
    col1: int

    def __post_init__(self) -> None:
        if self.row1 < self.row0 or self.col1 < self.col0:
            raise ValueError(f"window ends before it starts: {self}")

    @property
    def height(self) -> int:
        """Rows."""
        return self.row1 - self.row0

    @property
    def width(self) -> int:
        """Columns."""
        return self.col1 - self.col0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width

    @property
    def empty(self) -> bool:
        """True when the window holds no pixel."""
        return self.row0 == self.row1 or self.col0 == self.col1

    def intersection(self, other: Window) -> Window:
        """The shared rectangle; an empty window where there is none."""
        # built-in max and min take three times as long, and joining asks this of millions of pairs
        row0 = max(other.row0, self.row0)
        col0 = max(other.col0, self.col0)
        row1 = min(other.row1, self.row1)
        col1 = min(other.col1, self.col1)
        return Window(row0, col0, max(row0, row1), max(col0, col1))

    def meets(self, other: Window) -> bool:
        """True when the two have a pixel in common."""
        return (
            self.row0 < other.row1
            and other.row0 < self.row1
            and self.col0 < other.col1
            and other.col0 < self.col1
            and not (self.empty or other.empty)
        )

    def union(self, other: Window) -> Window:
        """The smallest rectangle that holds both."""
        return Window(
            min(self.row0, other.row0),
            min(self.col0, other.col0),
            max(self.row1, other.row1),
            max(self.col1, other.col1),
        )

    def contains(self, other: Window) -> bool:
        """True when `other` lies inside; an empty window does where its corners do."""
        return (
            self.row0 <= other.row0
            and self.col0 <= other.col0
            and other.row1 <= self.row1
            and other.col1 <= self.col1
        )

    def shifted(self, rows: int, cols: int) -> Window:
        """The same rectangle, moved."""
        return Window(self.row0 + rows, self.col0 + cols, self.row1 + rows, self.col1 + cols)

    def slices(self, within: Window | None = None) -> tuple[slice, slice]:
        """(row slice, column slice) into an array that starts at `within`'s corner (or at 0, 0)."""
        row, col = (within.row0, within.col0) if within else (0, 0)
        return (
            slice(self.row0 - row, self.row1 - row),
            slice(self.col0 - col, self.col1 - col),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One chip's place: `read` is what the detector sees, `core` what the tile answers for."""

    index: int
    core: Window
    read: Window

    def __post_init__(self) -> None:
        if not self.read.contains(self.core) or self.core.empty:
            raise ValueError(f"tile {self.index}: read {self.read} must hold a core, got {self.core}")


@dataclass(frozen=True, slots=True)
class TileOptions:
    """Chip side, overlap of neighbours, and where the first full chip starts, all in grid pixels."""

    chip_px: int = 256
    overlap_px: int = 64
    origin_px: int = 0

    def __post_init__(self) -> None:
        if self.chip_px < 1 or not 0 <= self.overlap_px <= self.chip_px // 2:
            raise OptionsError(
                f"chip_px={self.chip_px}, overlap_px={self.overlap_px}: "
                "the overlap must be between 0 and half a chip"
            )
        if not 0 <= self.origin_px < self.chip_px:
            raise OptionsError(f"origin_px must be within 0..chip_px-1, got {self.origin_px}")


@dataclass(frozen=True, slots=True)
class Span:
    """One axis of a tile: it reads read0..read1-1 and answers for core0..core1-1."""

    core0: int
    core1: int
    read0: int
    read1: int


def plan_spans(size: int, chip: int, overlap: int, origin: int = 0) -> tuple[Span, ...]:
    """Cover one axis of `size` pixels with spans of `chip` pixels that overlap by `overlap` or more.

    Chips are spread evenly, so the last one is full and nothing is dropped; an axis shorter than a
    chip gets one short span. With `origin` > 0 full chips begin there, and the strip before, up to
    the overlap, is covered in the same way. Cores meet in the middle of each overlap.
    """
    strip_end = origin + overlap
    if origin and strip_end < size:
        reads = _spread(0, strip_end, chip, overlap) + _spread(origin, size, chip, overlap)
    else:
        reads = _spread(0, size, chip, overlap)
    edges = [0, *((start + end) // 2 for (_, end), (start, _) in pairwise(reads)), size]
    return tuple(
        Span(core0, core1, read0, read1)
        for (core0, core1), (read0, read1) in zip(pairwise(edges), reads, strict=True)
    )


def _spread(start: int, end: int, chip: int, overlap: int) -> list[tuple[int, int]]:
    """(first, past last) pixel of as few chips as cover start..end-1 with the overlap, evenly spread."""
    slack = end - start - chip
    if slack <= 0:
        return [(start, end)]
    gaps = -(-slack // (chip - overlap))
    firsts = (start + (i * slack) // gaps for i in range(gaps + 1))
    return [(first, first + chip) for first in firsts]


def plan_tiles(shape: tuple[int, int], options: TileOptions) -> tuple[Tile, ...]:
    """Tiles over a grid of `shape` (rows, columns), row by row; cores hold each pixel exactly once."""
    height, width = shape
    if height < 1 or width < 1:
        raise OptionsError(f"cannot tile a grid of {height} x {width} pixels")
    rows = plan_spans(height, options.chip_px, options.overlap_px, options.origin_px)
    cols = plan_spans(width, options.chip_px, options.overlap_px, options.origin_px)
    return tuple(
        Tile(
            index=i * len(cols) + j,
            core=Window(r.core0, c.core0, r.core1, c.core1),
            read=Window(r.read0, c.read0, r.read1, c.read1),
        )
        for i, r in enumerate(rows)
        for j, c in enumerate(cols)
    )
