"""Dissolving rectangles of whole pixels, exactly and in time that grows with their number.

A general polygon union takes minutes for the million runs of pixels that a ragged scene has. Here
the common edges cancel in one sort, and what is left is walked into rings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

Integers = npt.NDArray[np.int64]

Boxes = Integers
"""(n, 4) rectangles of pixels: row0, col0, row1, col1, ends excluded."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Parallel pieces of outline: on `line`, from `start` to `end` (start < end).

    `sign` is +1 where the inside lies at greater coordinates than the line, -1 where at smaller.
    """

    line: Integers
    start: Integers
    end: Integers
    sign: Integers


def dissolve_boxes(boxes: Boxes) -> BaseGeometry:
    """The multipolygon covered by boxes that do not overlap, with x = column and y = row.

    It is valid: areas that touch in a corner only are separate parts.
    """
    if not len(boxes):
        return shapely.MultiPolygon()
    rows, cols = boxes[:, [0, 2]], boxes[:, [1, 3]]
    base = int(cols.max()) + 1
    return _polygons(_rings(_outline(rows, cols), _outline(cols, rows), base), base)


def boxes_of(mask: npt.NDArray[np.bool_]) -> Boxes:
    """One box for each run of True pixels along a row."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    edges = np.flatnonzero(np.diff(padded.ravel()))
    row, col = np.divmod(edges, width + 2)
    # an edge before pixel n of the row lies at n; starts and ends take turns
    return np.stack([row[::2], col[::2], row[::2] + 1, col[1::2]], axis=1)


def _outline(lines: Integers, spans: Integers) -> Edges:
    """Edges on the near and far line of each box that no neighbour shares.

    Along a line, near edges count +1 and far edges -1, so that common edges sum to zero.
    """
    line = np.concatenate([lines[:, 0], lines[:, 0], lines[:, 1], lines[:, 1]])
    place = np.concatenate([spans[:, 0], spans[:, 1], spans[:, 0], spans[:, 1]])
    change = np.repeat(np.array([1, -1, -1, 1]), len(lines))
    order = np.lexsort((place, line))
    line, place, change = line[order], place[order], change[order]
    first = np.flatnonzero(np.append(True, (np.diff(line) != 0) | (np.diff(place) != 0)))
    change = np.add.reduceat(change, first)
    turns = first[change != 0]
    sign = np.cumsum(change[change != 0])
    here = np.flatnonzero(sign)
    return Edges(line[turns[here]], place[turns[here]], place[turns[here + 1]], sign[here])


def _rings(across: Edges, down: Edges, base: int) -> list[list[int]]:
    """Rings of corners (row * base + column), walked with the inside to the right.

    Where two parts touch in a corner the walk keeps to its own part; where a part touches itself,
    the loop is cut off as a ring of its own.
    """
    rightward = across.sign > 0
    across_from = across.line * base + np.where(rightward, across.start, across.end)
    across_to = across.line * base + np.where(rightward, across.end, across.start)
    upward = down.sign > 0
    down_from = np.where(upward, down.end, down.start) * base + down.line
    down_to = np.where(upward, down.start, down.end) * base + down.line
    after_across = len(across_from) + _successor(across_to, -across.sign, down_from, down.sign)
    after_down = _successor(down_to, down.sign, across_from, across.sign)
    successor = np.concatenate([after_across, after_down]).tolist()
    corners = np.concatenate([across_from, down_from]).tolist()
    return _walk(successor, corners)


def _successor(corner: Integers, wanted: Integers, starts: Integers, signs: Integers) -> Integers:
    """Index of the edge that starts at each corner; where two do, the one with the wanted sign."""
    order = np.lexsort((signs, starts))
    low = np.searchsorted(starts[order], corner, side="left")
    two = np.searchsorted(starts[order], corner, side="right") - low == 2
    found: Integers = order[low + (two & (wanted > 0))]
    return found


def _walk(successor: list[int], corners: list[int]) -> list[list[int]]:
    rings: list[list[int]] = []
    seen = bytearray(len(successor))
    for first in range(len(successor)):
        path: list[int] = []
        place: dict[int, int] = {}
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            corner = corners[edge]
            if corner in place:
                loop = path[place[corner] :]
                rings.append(loop)
                del path[place[corner] :]
                for passed in loop:
                    del place[passed]
            place[corner] = len(path)
            path.append(corner)
            edge = successor[edge]
        if path:
            rings.append(path)
    return rings


def _polygons(rings: list[list[int]], base: int) -> BaseGeometry:
    corners = np.array([corner for ring in rings for corner in ring])
    row, col = np.divmod(corners, base)
    of_ring = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    loops = shapely.linearrings(np.column_stack([col, row]).astype(float), indices=of_ring)
    is_shell = shapely.is_ccw(loops)
    shells, holes = loops[is_shell], loops[~is_shell]
    owner = _owners(shapely.polygons(shells), shapely.polygons(holes))
    order = np.argsort(owner, kind="stable")
    groups = np.split(holes[order], np.searchsorted(owner[order], np.arange(1, len(shells))))
    return shapely.MultiPolygon(
        [shapely.polygons(shell, holes=own) for shell, own in zip(shells, groups, strict=True)]
    )


def _owners(shells: npt.NDArray[Any], holes: npt.NDArray[Any]) -> Integers:
    """For each hole the smallest shell around it."""
    if not len(holes):
        return np.array([], dtype=np.int64)
    shell, hole = shapely.STRtree(holes).query(shells, predicate="covers")
    order = np.lexsort((shapely.area(shells)[shell], hole))
    _, first = np.unique(hole[order], return_index=True)
    owners: Integers = shell[order][first]
    return owners
