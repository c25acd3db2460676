"""Links: which parts that two tiles saw are the same slump.

Two tiles are compared only on the ground that both could see, the band where their read windows
overlap. There, a part that lies mostly inside a part of the other tile is the same slump. Nothing here
depends on the order of the parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

from rtsmap.errors import OptionsError
from rtsmap.instances.detections import Detection, Side, touched_sides
from rtsmap.rasters.tiling import Tile, Window


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """What decides between one slump and two. Raises OptionsError for numbers that cannot be.

    Parts below `min_part_score` are ignored; joined slumps below `min_score` or smaller than
    `min_instance_px` are dropped. The part threshold is the lower one because a part that shows
    little of a slump scores less than the whole.

    Parts of two tiles are linked when, both cut to the shared band, they have at least
    `min_shared_px` pixels in common and these are more than `min_overlap` of the smaller one. Outlines
    that two tiles draw of one slump may lie `outline_tolerance_px` apart. Within one tile, of two parts
    that share more than `duplicate_overlap` of the smaller one the better scored stays. Mask values of
    `mask_threshold` and more count as slump. A joined slump longer than `max_extent_px` is flagged.
    """

    min_score: float = 0.5
    min_part_score: float = 0.3
    min_shared_px: int = 16
    min_overlap: float = 0.5
    outline_tolerance_px: int = 16
    duplicate_overlap: float = 0.5
    mask_threshold: int = 128
    min_instance_px: int = 1
    max_extent_px: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.min_part_score <= self.min_score <= 1:
            raise OptionsError(
                "wanted 0 <= min_part_score <= min_score <= 1, "
                f"got min_part_score={self.min_part_score}, min_score={self.min_score}"
            )
        for name in ("min_overlap", "duplicate_overlap"):
            if not 0 < getattr(self, name) < 1:
                raise OptionsError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("min_shared_px", "min_instance_px", "max_extent_px"):
            if getattr(self, name) < 1:
                raise OptionsError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.outline_tolerance_px < 0:
            raise OptionsError(f"outline_tolerance_px must be 0 or more, got {self.outline_tolerance_px}")
        if not 1 <= self.mask_threshold <= 255:
            raise OptionsError(f"mask_threshold must be within 1..255, got {self.mask_threshold}")


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a band holds of one part: `position` in the sequence it came from, `inside` True = slump."""

    position: int
    window: Window
    inside: npt.NDArray[np.bool_]
    whole: bool
    area: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", int(np.count_nonzero(self.inside)))


class MaskOrder:
    """Orders masks by their bytes, looking at them only when all else is equal."""

    __slots__ = ("mask",)

    def __init__(self, mask: npt.NDArray[np.uint8]) -> None:
        self.mask = mask

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskOrder) and np.array_equal(self.mask, other.mask)

    def __lt__(self, other: MaskOrder) -> bool:
        return self.mask.tobytes() < other.mask.tobytes()

    __hash__ = None  # type: ignore[assignment]


def part_key(part: Detection) -> tuple[Any, ...]:
    """Sorts parts by content: tile, place, score and mask, so that order of arrival has no effect."""
    return part.tile, part.window, -part.score, part.modalities, MaskOrder(part.mask)


def suppress_duplicates(parts: Sequence[Detection], options: MergeOptions) -> list[Detection]:
    """Of parts of ONE tile that show the same slump, keep the best scored; sorted by `part_key`.

    Also drops parts below `min_part_score` and parts without a slump pixel.
    """
    cuts = (
        _Cut(i, part.window, part.mask >= options.mask_threshold, whole=True)
        for i, part in enumerate(parts)
        if part.score >= options.min_part_score
    )
    usable = [cut for cut in cuts if cut.area]
    usable.sort(key=lambda c: (-parts[c.position].score, part_key(parts[c.position])))
    rivals: dict[int, list[int]] = {}
    for i, j in _touching_boxes(usable, usable):
        if i < j:
            rivals.setdefault(j, []).append(i)
    kept: list[int] = []
    for j, cut in enumerate(usable):
        better = set(rivals.get(j, ())).intersection(kept)
        if not any(_overlap(usable[i], cut) > options.duplicate_overlap for i in better):
            kept.append(j)
    return sorted((parts[usable[j].position] for j in kept), key=part_key)


@dataclass(frozen=True, slots=True)
class Links:
    """What the parts of two tiles a and b have to do with each other, as positions in their sequences.

    `pairs` (a, b) show the same slump. `rims_a` and `rims_b` show no more than the rim of a slump that
    the other tile sees better.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    rims_a: tuple[int, ...] = ()
    rims_b: tuple[int, ...] = ()


def link_parts(
    a: Sequence[Detection], b: Sequence[Detection], tile_a: Tile, tile_b: Tile, options: MergeOptions
) -> Links:
    """Compare the parts `a` of `tile_a` with the parts `b` of `tile_b`.

    Parts that `matters_to` denies may be left out. Tiles that merely abut share no ground:
    there, masks that touch across the border are linked, since not linking them would cut every slump
    on the border.
    """
    if not a or not b:
        return Links()
    band = tile_a.read.intersection(tile_b.read)
    if band.empty:
        return Links(tuple(_link_abutting(a, b, tile_a.read, tile_b.read, options)))
    cuts_a, cuts_b = _cuts(a, band, options), _cuts(b, band, options)
    pairs = _overlapping(cuts_a, cuts_b, options)
    linked_a, linked_b = {i for i, _ in pairs}, {j for _, j in pairs}
    left_a = [cut for i, cut in enumerate(cuts_a) if i not in linked_a]
    left_b = [cut for j, cut in enumerate(cuts_b) if j not in linked_b]
    return Links(
        tuple(sorted((cuts_a[i].position, cuts_b[j].position) for i, j in pairs)),
        tuple(_rims(left_a, tile_a, b, tile_b, options)),
        tuple(_rims(left_b, tile_b, a, tile_a, options)),
    )


def matters_to(part: Detection, tile: Tile, options: MergeOptions) -> bool:
    """True when a part of another tile may be linked with one of `tile`: it lies within or near it."""
    near = _grown(tile.read, max(1, options.outline_tolerance_px))
    return part.window.meets(near)


def _overlapping(a: Sequence[_Cut], b: Sequence[_Cut], options: MergeOptions) -> set[tuple[int, int]]:
    """Pairs that agree on the ground that both tiles saw."""
    shared = {(i, j): px for i, j in _touching_boxes(a, b) if (px := _shared_px(a[i], b[j]))}
    best_of_a, best_of_b = _best_partners(shared)
    links = set()
    for (i, j), shared_px in shared.items():
        if a[i].area <= b[j].area:
            pair = _Pair(a[i], b[j], shared_px, b[best_of_a[i]], a[best_of_b[j]])
        else:
            pair = _Pair(b[j], a[i], shared_px, a[best_of_b[j]], b[best_of_a[i]])
        if _mostly_inside(pair, options) or _agree_on_piece(a[i], b[j]):
            links.add((i, j))
    return links


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two cuts that share pixels, and the cuts with which the smaller and the larger share most."""

    smaller: _Cut
    larger: _Cut
    shared_px: int
    best_of_smaller: _Cut
    best_of_larger: _Cut


def _mostly_inside(pair: _Pair, options: MergeOptions) -> bool:
    """True when the smaller one lies in the larger one and is no neighbour of it.

    A few pixels prove nothing, unless the band holds all that the smaller part has: then linking it
    cannot drag in a slump from beyond the band. A neighbour is told by two signs: it shares more with
    another part, or the larger one shares more with another part, which lies right beside it.
    """
    smaller, rival = pair.smaller, pair.best_of_larger
    enough = pair.shared_px >= options.min_shared_px or smaller.whole
    if not enough or pair.shared_px <= options.min_overlap * smaller.area:
        return False
    if pair.best_of_smaller is not pair.larger:
        return False
    return rival is smaller or not _beside(smaller, rival, options.outline_tolerance_px)


def _rims(
    cuts: Sequence[_Cut], tile: Tile, others: Sequence[Detection], owner: Tile, options: MergeOptions
) -> Iterator[int]:
    """Positions of slivers at the tile's edge that show the rim of a slump of the other tile.

    A sliver thinner than the tolerance, cut off by its tile's edge, on ground for which `owner` answers,
    close to a slump of `owner`: there `owner` sees better, and draws the outline a bit further off,
    maybe so far that nothing of the slump is left in the band.
    """
    tolerance_px = options.outline_tolerance_px
    for cut in cuts:
        owned = cut.whole and owner.core.contains(cut.window)
        cut_off = touched_sides(cut.window, tile) != Side.NONE
        if owned and cut_off and min(cut.window.shape) <= tolerance_px:
            around = _cuts(others, _grown(cut.window, tolerance_px), options)
            if any(_beside(cut, other, tolerance_px) for other in around):
                yield cut.position


def _beside(a: _Cut, b: _Cut, distance_px: int) -> bool:
    """True when a pixel of `b` is at most this far from one of `a`, in rows and in columns."""
    reach = _grown(a.window, distance_px)
    common = reach.intersection(b.window)
    in_b = b.inside[common.slices(b.window)]
    if not in_b.any():
        return False
    outside = np.ones(reach.shape, bool)
    outside[a.window.slices(reach)] = ~a.inside
    distance = ndimage.distance_transform_cdt(outside, metric="chessboard")
    return bool((distance[common.slices(reach)][in_b] <= distance_px).any())


def _grown(window: Window, px: int) -> Window:
    return Window(window.row0 - px, window.col0 - px, window.row1 + px, window.col1 + px)


def _agree_on_piece(a: _Cut, b: _Cut) -> bool:
    """True when one connected piece of `a` and one of `b` have more in common than apart.

    A winding slump may reach into a band with several pieces of which the other tile sees only one
    as the same slump, so that most of both cuts disagrees and this piece alone proves the link.
    """
    common = a.window.intersection(b.window)
    labels_a, sizes_a = _pieces(a)
    labels_b, sizes_b = _pieces(b)
    in_a, in_b = labels_a[common.slices(a.window)], labels_b[common.slices(b.window)]
    both = (in_a > 0) & (in_b > 0)
    keys, counts = np.unique(in_a[both].astype(np.int64) * len(sizes_b) + in_b[both], return_counts=True)
    union = sizes_a[keys // len(sizes_b)] + sizes_b[keys % len(sizes_b)] - counts
    return bool((2 * counts > union).any())


def _pieces(cut: _Cut) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Edge-connected pieces: labels from 1, and pixels by label."""
    labels, _ = ndimage.label(cut.inside)
    return labels, np.bincount(labels.ravel())


def _best_partners(shared: Mapping[tuple[int, int], int]) -> tuple[dict[int, int], dict[int, int]]:
    """For each cut of either side the one it shares most pixels with; the first of equals."""
    best_of_a: dict[int, int] = {}
    best_of_b: dict[int, int] = {}
    for i, j in sorted(shared):
        if i not in best_of_a or shared[i, j] > shared[i, best_of_a[i]]:
            best_of_a[i] = j
        if j not in best_of_b or shared[i, j] > shared[best_of_b[j], j]:
            best_of_b[j] = i
    return best_of_a, best_of_b


def _link_abutting(
    a: Sequence[Detection], b: Sequence[Detection], read_a: Window, read_b: Window, options: MergeOptions
) -> list[tuple[int, int]]:
    """Links of parts with edge neighbours across a border without overlap; none at a mere corner."""
    links = set()
    for rows, cols in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        line = read_a.shifted(rows, cols).intersection(read_b)
        cuts_a = [_moved(c, rows, cols) for c in _cuts(a, line.shifted(-rows, -cols), options)]
        cuts_b = _cuts(b, line, options)
        links |= {
            (cuts_a[i].position, cuts_b[j].position)
            for i, j in _touching_boxes(cuts_a, cuts_b)
            if _shared_px(cuts_a[i], cuts_b[j])
        }
    return sorted(links)


def _moved(cut: _Cut, rows: int, cols: int) -> _Cut:
    return _Cut(cut.position, cut.window.shifted(rows, cols), cut.inside, cut.whole)


def _cut(position: int, part: Detection, band: Window, options: MergeOptions) -> _Cut:
    window = part.window.intersection(band)
    inside = part.mask[window.slices(part.window)] >= options.mask_threshold
    return _Cut(position, window, inside, whole=window == part.window)


def _cuts(parts: Sequence[Detection], band: Window, options: MergeOptions) -> list[_Cut]:
    """The parts that have slump in the band, cut to it."""
    cuts = (_cut(i, part, band, options) for i, part in enumerate(parts) if part.window.meets(band))
    return [cut for cut in cuts if cut.area]


def _shared_px(a: _Cut, b: _Cut) -> int:
    common = a.window.intersection(b.window)
    both = a.inside[common.slices(a.window)] & b.inside[common.slices(b.window)]
    return int(np.count_nonzero(both))


def _overlap(a: _Cut, b: _Cut) -> float:
    """Shared pixels over those of the smaller one."""
    return _shared_px(a, b) / min(a.area, b.area)


def _corners(windows: Sequence[Window]) -> npt.NDArray[np.float64]:
    """(4, n): first column, first row, past last column, past last row."""
    corners = [(w.col0, w.row0, w.col1, w.row1) for w in windows]
    return np.array(corners, dtype=np.float64).reshape(-1, 4).T


def boxes(windows: Sequence[Window]) -> npt.NDArray[Any]:
    """Windows as shapely boxes: x is the column, y the row."""
    made: npt.NDArray[Any] = shapely.box(*_corners(windows))
    return made


def _touching_boxes(a: Sequence[_Cut], b: Sequence[_Cut]) -> list[tuple[int, int]]:
    """Pairs whose windows have pixels in common, sorted."""
    if not a or not b:
        return []
    windows_a, windows_b = [cut.window for cut in a], [cut.window for cut in b]
    i, j = shapely.STRtree(boxes(windows_b)).query(boxes(windows_a))
    corners_a, corners_b = _corners(windows_a)[:, i], _corners(windows_b)[:, j]
    # The tree also finds boxes that have no more than an edge in common.
    low, high = np.maximum(corners_a[:2], corners_b[:2]), np.minimum(corners_a[2:], corners_b[2:])
    meets = (low < high).all(axis=0)
    return sorted(zip(i[meets].tolist(), j[meets].tolist(), strict=True))
