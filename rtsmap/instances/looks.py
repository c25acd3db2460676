"""Second looks: a slump that tiles found is seen again on a chip centred on it, which decides.

What a network says of a slump depends on where in the chip it lies, so a map made of tiles depends on
where the tiles fall. A look is placed by the slump itself: on the chip around its centroid, at one of
a coarse grid of positions fixed in the CRS, so that nearly the same outline, found on whatever tile,
is looked at on the same chip. The outline seen there has its own centroid, and looks follow it until
they stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import shapely
from odc.geo.geobox import GeoBox

from rtsmap.instances.detections import Detection, Side, touched_sides
from rtsmap.instances.linking import MergeOptions, boxes, suppress_duplicates
from rtsmap.instances.seams import Instance, TileMap, instance_key, join_parts
from rtsmap.rasters.tiling import Tile, Window

MAX_LOOKS = 6
"""Outlines settle after two or three looks; what has not by now goes to and fro."""

_STEPS_A_CHIP = 8
_FILLED = 0.75
_SAME_SLUMP_IOU = 0.3


class Verdict(Enum):
    """What looks said of a slump: they go on, agreed, cannot show it whole, or do not see it."""

    OPEN = "open"
    SETTLED = "settled"
    UNDECIDED = "undecided"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class LookGrid:
    """Where looks may lie: on a run's grid of `shape` (rows, columns), at multiples of an eighth of a chip.

    Multiples count from the CRS's origin; `first_px` (row, column) is where the run's first pixel lies from
    there. A grid smaller than a chip gets the one look that there is.
    """

    shape: tuple[int, int]
    chip_px: int
    first_px: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, geobox: GeoBox, chip_px: int) -> LookGrid:
        """Looks on a geobox: overlapping scenes of one CRS and resolution have the same places."""
        affine = geobox.affine
        first = round(affine.f / affine.e), round(affine.c / affine.a)
        return cls((int(geobox.shape[0]), int(geobox.shape[1])), chip_px, first)

    def window(self, outline: Window, inside: npt.NDArray[np.bool_]) -> Window | None:
        """The look at an outline: `inside` (h, w) on `outline`, True = slump; None if it is too large.

        What fills more than three quarters of a chip is looked at on one of twice the size.
        """
        for chip_px in (self.chip_px, 2 * self.chip_px):
            if max(outline.shape) <= _FILLED * chip_px:
                break
        else:
            return None
        rows, cols = np.nonzero(inside)
        row0, row1 = self._span(outline.row0 + float(rows.mean()), chip_px, 0)
        col0, col1 = self._span(outline.col0 + float(cols.mean()), chip_px, 1)
        return Window(row0, col0, row1, col1)

    def _span(self, centre: float, chip_px: int, axis: int) -> tuple[int, int]:
        step, first, size = max(1, chip_px // _STEPS_A_CHIP), self.first_px[axis], self.shape[axis]
        start = round((centre + first - chip_px / 2) / step) * step - first
        start = max(0, min(start, size - chip_px))
        return start, min(start + chip_px, size)


@dataclass(slots=True)
class Trail:
    """The looks at one slump, from `candidate`, as joined from tiles, to where they settle."""

    candidate: Instance
    _seen: list[tuple[Tile, Detection]] = field(default_factory=list)
    _verdict: Verdict = Verdict.OPEN

    def next_look(self, grid: LookGrid) -> Window | None:
        """Where to look next; None when no further look is needed."""
        if self._verdict is not Verdict.OPEN:
            return None
        window = grid.window(*self._outline())
        if window is None or len(self._seen) == MAX_LOOKS:
            self._verdict = Verdict.UNDECIDED
        elif any(tile.read == window for tile, _ in self._seen):
            self._verdict = Verdict.SETTLED
            # several looks that lead to one another: the most certain one, wherever the trail came in
            first = next(i for i, (tile, _) in enumerate(self._seen) if tile.read == window)
            del self._seen[:first]
        else:
            return window
        return None

    def take(self, tile: Tile, found: Sequence[Detection], options: MergeOptions) -> None:
        """Hear what was found on the look `tile`, whose read window is what `next_look` gave."""
        chosen = _same_slump(*self._outline(), found, options)
        if chosen is None:
            self._verdict = Verdict.LOST
        else:
            self._seen.append((tile, chosen))

    def give_up(self) -> None:
        """The look failed: what the tiles saw stays."""
        self._verdict = Verdict.UNDECIDED

    def result(self, grid: LookGrid, options: MergeOptions) -> Instance | None:
        """The slump as the last look saw it; as the tiles did where looks show only a part; None if lost."""
        if self._verdict is Verdict.LOST:
            return None
        if self._verdict is not Verdict.SETTLED:
            return self.candidate
        tile, chosen = min(self._seen, key=lambda seen: (-seen[1].score, seen[0].read))
        if _is_cut_off(chosen, tile, grid):
            return self.candidate
        seen = join_parts([chosen], TileMap([tile]), options)
        return replace(seen, score=chosen.score, n_parts=self.candidate.n_parts)

    def _outline(self) -> tuple[Window, npt.NDArray[np.bool_]]:
        """Window and slump pixels (True) of the last look, or of the candidate."""
        if not self._seen:
            return self.candidate.window, self.candidate.inside
        last = self._seen[-1][1]
        return last.window, last.mask >= self.candidate.mask_threshold


def distinct(instances: Iterable[Instance], options: MergeOptions) -> list[Instance]:
    """Of instances that share more than `duplicate_overlap` of the smaller one the best scored.

    Sorted by `instance_key`; the order in which they come has no effect.
    """
    ranked = sorted(instances, key=lambda instance: (-instance.score, instance_key(instance)))
    if not ranked:
        return []
    windows = boxes([instance.window for instance in ranked])
    tree = shapely.STRtree(windows)
    kept: set[int] = set()
    for i, instance in enumerate(ranked):
        better = kept.intersection(tree.query(windows[i]).tolist())
        if not any(_overlap(ranked[j], instance) > options.duplicate_overlap for j in better):
            kept.add(i)
    return sorted((ranked[i] for i in kept), key=instance_key)


def _same_slump(
    window: Window, inside: npt.NDArray[np.bool_], found: Sequence[Detection], options: MergeOptions
) -> Detection | None:
    """The detection that is most likely the slump with this outline; None if none is."""
    best, best_match = None, 0.0
    for part in suppress_duplicates(found, replace(options, min_part_score=0.0)):
        part_inside = part.mask >= options.mask_threshold
        shared = _shared_px(window, inside, part.window, part_inside)
        iou = shared / (np.count_nonzero(inside) + np.count_nonzero(part_inside) - shared)
        if iou >= _SAME_SLUMP_IOU and iou * part.score > best_match:
            best, best_match = part, iou * part.score
    return best


def _is_cut_off(part: Detection, tile: Tile, grid: LookGrid) -> bool:
    """True when the look's edge, where it is not the grid's, cuts the slump."""
    read, (height, width) = tile.read, grid.shape
    edges = {
        Side.TOP: read.row0 > 0,
        Side.LEFT: read.col0 > 0,
        Side.BOTTOM: read.row1 < height,
        Side.RIGHT: read.col1 < width,
    }
    touched = touched_sides(part.window, tile)
    return any(inner and side in touched for side, inner in edges.items())


def _overlap(a: Instance, b: Instance) -> float:
    """Shared pixels over those of the smaller one."""
    return _shared_px(a.window, a.inside, b.window, b.inside) / min(a.area_px, b.area_px)


def _shared_px(a: Window, a_inside: npt.NDArray[np.bool_], b: Window, b_inside: npt.NDArray[np.bool_]) -> int:
    common = a.intersection(b)
    return int(np.count_nonzero(a_inside[common.slices(a)] & b_inside[common.slices(b)]))
