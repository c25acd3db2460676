"""Seams: slumps joined from the parts that tiles saw, and what a joined slump looks like.

Links (`linking.py`) are followed through any number of tiles. Where tiles disagree about a pixel, the
tile that sees it further from its own edge has the louder voice. All results depend on the content of
the parts alone, never on the order in which they arrive.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rtsmap.errors import GridMismatchError, OptionsError
from rtsmap.instances.detections import Detection, crop_mask
from rtsmap.instances.linking import (
    Links,
    MaskOrder,
    MergeOptions,
    boxes,
    link_parts,
    matters_to,
    part_key,
    suppress_duplicates,
)
from rtsmap.rasters.tiling import Tile, Window

__all__ = [
    "Instance",
    "Links",
    "MergeOptions",
    "PartLinks",
    "TileMap",
    "UnionFind",
    "distance_weights",
    "instance_key",
    "is_wanted",
    "join_parts",
    "link_parts",
    "matters_to",
    "merge_detections",
    "part_key",
    "suppress_duplicates",
    "warn_if_oversized",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Instance:
    """One slump, joined from the parts that tiles saw.

    `mask` (h, w) uint8 is a probability on `window` (pixels of the run's grid); values of
    `mask_threshold` and more are slump and reach all four sides of the window. `pixel` (row, column)
    is a slump pixel near the centroid. `seam_unconfirmed`: tiles that answer for some of this
    ground looked at it and saw no slump. `oversized`: longer than
    `MergeOptions.max_extent_px`, which real slumps are not.
    """

    score: float
    window: Window
    mask: npt.NDArray[np.uint8]
    n_parts: int
    seam_unconfirmed: bool
    oversized: bool
    modalities: tuple[str, ...]
    pixel: tuple[int, int]
    mask_threshold: int = 128

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """(h, w), True = slump."""
        return self.mask >= self.mask_threshold

    @property
    def area_px(self) -> int:
        """Pixels of slump."""
        return int(np.count_nonzero(self.inside))


class TileMap:
    """The tiles that were looked at, found by index or by place. Order of the tiles has no effect."""

    def __init__(self, tiles: Iterable[Tile]) -> None:
        self._tiles = sorted(tiles, key=lambda tile: tile.index)
        self._by_index = {tile.index: tile for tile in self._tiles}
        if len(self._by_index) != len(self._tiles):
            raise OptionsError("two tiles have the same index; every tile needs its own")
        self._reads = shapely.STRtree(boxes([tile.read for tile in self._tiles]))

    def __getitem__(self, index: int) -> Tile:
        return self._by_index[index]

    def __len__(self) -> int:
        return len(self._tiles)

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Other tiles whose read windows overlap this one's, or touch it along an edge or corner."""
        found = self._reads.query(boxes([tile.read])[0])
        return [self._tiles[i] for i in sorted(found) if self._tiles[i].index != tile.index]

    def pairs(self) -> Iterator[tuple[Tile, Tile]]:
        """Every pair of neighbours once, lower index first."""
        for tile in self._tiles:
            for other in self.neighbours(tile):
                if tile.index < other.index:
                    yield tile, other

    def answering_for(self, window: Window) -> list[Tile]:
        """Tiles whose core holds a pixel of `window`."""
        found = self._reads.query(boxes([window])[0])
        tiles = [self._tiles[i] for i in sorted(found)]
        return [tile for tile in tiles if tile.core.meets(window)]


class UnionFind:
    """Which integers belong together. Memory grows with the integers that were linked, nothing else."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, item: int) -> int:
        """The smallest integer of the set that holds `item`."""
        root = item
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(item, item)) != root and item != root:
            self._parent[item] = root
            item = parent
        return root

    def union(self, a: int, b: int) -> None:
        """Put two integers, and all that belongs to them, together."""
        low, high = sorted((self.find(a), self.find(b)))
        self._parent.setdefault(low, low)
        self._parent[high] = low

    def components(self) -> list[list[int]]:
        """Sets of linked integers, each ascending, ordered by their smallest."""
        sets: dict[int, list[int]] = {}
        for item in sorted(self._parent):
            sets.setdefault(self.find(item), []).append(item)
        return [sets[root] for root in sorted(sets)]


class PartLinks(UnionFind):
    """Which numbered parts of a run are one slump, and which are no more than a rim of one."""

    def __init__(self) -> None:
        super().__init__()
        self._rims: set[int] = set()

    def add(self, numbers_a: Sequence[int], numbers_b: Sequence[int], links: Links) -> None:
        """Take in what `link_parts` found, given the numbers of the parts that it was given."""
        for i, j in links.pairs:
            self.union(numbers_a[i], numbers_b[j])
        self._rims.update(numbers_a[i] for i in links.rims_a)
        self._rims.update(numbers_b[j] for j in links.rims_b)

    def only_rims(self) -> set[int]:
        """Smallest numbers of the sets (single parts too) in which every part is a rim: no slumps."""
        whole = [root for root, *others in self.components() if self._rims.issuperset((root, *others))]
        single = {number for number in self._rims if number not in self._parent}
        return single.union(whole)


def join_parts(parts: Sequence[Detection], tiles: TileMap, options: MergeOptions) -> Instance:
    """One slump from the parts that were linked (or from a single one).

    Where several tiles with a part saw a pixel, its probability is their mean, weighted with the
    distance to the edge of each read window; the score is the parts' mean weighted with their areas.
    """
    parts = sorted(parts, key=part_key)
    window, mask = _joined_mask(parts, tiles, options)
    inside = mask >= options.mask_threshold
    areas = [int(np.count_nonzero(part.mask >= options.mask_threshold)) for part in parts]
    score = math.fsum(part.score * area for part, area in zip(parts, areas, strict=True)) / sum(areas)
    row, col = _pixel_near_centroid(inside)
    return Instance(
        score=min(score, 1.0),
        window=window,
        mask=mask,
        n_parts=len(parts),
        seam_unconfirmed=_unconfirmed(window, inside, {part.tile for part in parts}, tiles, options),
        oversized=max(window.shape) > options.max_extent_px,
        modalities=tuple(sorted({name for part in parts for name in part.modalities})),
        pixel=(window.row0 + row, window.col0 + col),
        mask_threshold=options.mask_threshold,
    )


def is_wanted(instance: Instance, options: MergeOptions) -> bool:
    """True when the joined slump is good and large enough to be reported."""
    return instance.score >= options.min_score and instance.area_px >= options.min_instance_px


def instance_key(instance: Instance) -> tuple[Any, ...]:
    """Sorts instances by content, from the top left of the grid."""
    return instance.window, -instance.score, instance.n_parts, instance.pixel, MaskOrder(instance.mask)


def merge_detections(
    detections: Iterable[Detection], tiles: Iterable[Tile], options: MergeOptions
) -> list[Instance]:
    """All slumps of a run whose parts fit in memory, sorted by `instance_key`.

    `tiles` are those that were looked at: one that was skipped or failed must be left out, so that
    its silence is not taken for a "no". Warns in the log about oversized instances.
    """
    tile_map = TileMap(tiles)
    kept: list[Detection] = []
    by_tile: dict[int, list[Detection]] = {}
    numbers: dict[int, range] = {}
    for tile, group in groupby(sorted(detections, key=part_key), key=lambda part: part.tile):
        by_tile[tile] = suppress_duplicates(list(group), options)
        numbers[tile] = range(len(kept), len(kept) + len(by_tile[tile]))
        kept.extend(by_tile[tile])
    links = PartLinks()
    for a, b in tile_map.pairs():
        if a.index in by_tile and b.index in by_tile:
            found = link_parts(by_tile[a.index], by_tile[b.index], a, b, options)
            links.add(numbers[a.index], numbers[b.index], found)
    linked = links.components()
    alone = set(range(len(kept))).difference(*linked)
    rims = links.only_rims()
    groups = [group for group in [*linked, *([i] for i in alone)] if group[0] not in rims]
    joined = [join_parts([kept[i] for i in group], tile_map, options) for group in groups]
    instances = sorted((i for i in joined if is_wanted(i, options)), key=instance_key)
    for instance in instances:
        warn_if_oversized(instance)
    return instances


def warn_if_oversized(instance: Instance) -> None:
    """Say in the log that a slump is longer than slumps are."""
    if instance.oversized:
        logger.warning(
            "a slump of %d x %d pixels at row %d, column %d is longer than max_extent_px, so probably "
            "not one slump; look at it before you use it",
            *instance.window.shape,
            *instance.pixel,
        )


def _joined_mask(
    parts: Sequence[Detection], tiles: TileMap, options: MergeOptions
) -> tuple[Window, npt.NDArray[np.uint8]]:
    """The common probability, cropped to slump pixels."""
    window = _hull([part.window for part in parts])
    mask = _highest(parts, window) if len(parts) > 1 else parts[0].mask
    corner = window.row0, window.col0
    by_tile = [(tiles[i].read, list(group)) for i, group in groupby(parts, key=lambda part: part.tile)]
    if len(by_tile) > 1:
        united = mask.copy()
        for cell in _cells([read for read, _ in by_tile], window):
            votes = [(read, own) for read, own in by_tile if read.contains(cell)]
            if len(votes) > 1 and united[cell.slices(window)].any():
                mask[cell.slices(window)] = _weighted_mean(votes, cell)
    cropped = crop_mask(mask, corner, options.mask_threshold)
    if cropped is None and len(by_tile) > 1:
        # Parts linked by a few pixels that a third tile outvotes: the ground was seen, so keep it.
        cropped = crop_mask(united, corner, options.mask_threshold)
    if cropped is None:
        raise GridMismatchError(
            f"{len(parts)} parts at {window} hold no pixel of {options.mask_threshold} or more; "
            "pass parts through suppress_duplicates first, which drops such parts"
        )
    return cropped


def _cells(reads: Sequence[Window], window: Window) -> Iterator[Window]:
    """Cut the window along every edge of the read windows: each tile sees a cell whole or not at all."""
    rows = {window.row0, window.row1, *(edge for read in reads for edge in (read.row0, read.row1))}
    cols = {window.col0, window.col1, *(edge for read in reads for edge in (read.col0, read.col1))}
    inner_rows = sorted(row for row in rows if window.row0 <= row <= window.row1)
    inner_cols = sorted(col for col in cols if window.col0 <= col <= window.col1)
    for row0, row1 in pairwise(inner_rows):
        for col0, col1 in pairwise(inner_cols):
            yield Window(row0, col0, row1, col1)


def _weighted_mean(
    votes: Sequence[tuple[Window, Sequence[Detection]]], cell: Window
) -> npt.NDArray[np.uint8]:
    """Mean probability on a cell that all tiles saw, each weighted with the distance to its edge."""
    total = np.zeros(cell.shape, np.float32)
    weights = np.zeros(cell.shape, np.float32)
    for read, own in votes:
        weight = distance_weights(read, cell)
        total += weight * _highest(own, cell)
        weights += weight
    mean: npt.NDArray[np.uint8] = np.rint(total / weights).astype(np.uint8)
    return mean


def distance_weights(read: Window, seen: Window) -> npt.NDArray[np.float32]:
    """Pixels to the nearest edge of the read window, rows times columns: equal where cores meet."""
    rows = np.arange(seen.row0, seen.row1, dtype=np.float32) + 0.5
    cols = np.arange(seen.col0, seen.col1, dtype=np.float32) + 0.5
    from_row = np.minimum(rows - read.row0, read.row1 - rows)
    from_col = np.minimum(cols - read.col0, read.col1 - cols)
    weights: npt.NDArray[np.float32] = np.outer(from_row, from_col)
    return weights


def _highest(parts: Sequence[Detection], window: Window) -> npt.NDArray[np.uint8]:
    """The parts' greatest probability at each pixel of the window."""
    mask = np.zeros(window.shape, np.uint8)
    for part in parts:
        common = part.window.intersection(window)
        there = mask[common.slices(window)]
        np.maximum(there, part.mask[common.slices(part.window)], out=there)
    return mask


def _hull(windows: Sequence[Window]) -> Window:
    hull = windows[0]
    for window in windows[1:]:
        hull = hull.union(window)
    return hull


def _pixel_near_centroid(inside: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The True pixel nearest to the centroid, the first of equals."""
    row, col = (_mean_index(inside.sum(axis=axis)) for axis in (1, 0))
    # of four that are as near, the first
    nearest_px = math.ceil(row - 0.5), math.ceil(col - 0.5)
    if inside[nearest_px]:
        return nearest_px
    reach = 8
    while True:
        row0, col0 = max(int(row) - reach, 0), max(int(col) - reach, 0)
        rows, cols = np.nonzero(inside[row0 : int(row) + reach + 2, col0 : int(col) + reach + 2])
        squared = (rows + row0 - row) ** 2 + (cols + col0 - col) ** 2
        # One in a corner of this square may be further off than one just outside the square.
        if len(rows) and squared.min() <= reach**2:
            nearest = int(np.argmin(squared))
            return int(rows[nearest]) + row0, int(cols[nearest]) + col0
        reach *= 2


def _mean_index(counts: npt.NDArray[Any]) -> float:
    return float((counts * np.arange(len(counts))).sum() / counts.sum())


def _unconfirmed(
    window: Window,
    inside: npt.NDArray[np.bool_],
    seen_by: set[int],
    tiles: TileMap,
    options: MergeOptions,
) -> bool:
    """True when tiles that looked hold slump pixels in their cores, but have no part in the slump."""
    enough_px = min(options.min_shared_px, int(np.count_nonzero(inside)))
    silent = [t.core for t in tiles.answering_for(window) if t.index not in seen_by]
    grounds = [core.intersection(window).slices(window) for core in silent]
    return sum(int(np.count_nonzero(inside[ground])) for ground in grounds) >= enough_px
