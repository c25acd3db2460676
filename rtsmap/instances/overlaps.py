"""Where scenes overlap: which footprints stand, which give way to which. shapely and numpy.

Two footprints of different scenes are the same slump when they share more than half of the smaller one. The
rules, by what stands:

- `newest`: on ground that a newer scene has mapped, only the newest one speaks, also where it saw nothing.
  Ground decides by majority: a footprint gives way when more than half of it is mapped by one newer scene.
- `best`: of footprints that are the same slump, the one with the best score, of equals the largest. One that
  the edge of its scene cuts off gives way to one that shows more, whatever its score: it tells of a part.
- `union`: all that are the same slump, as one new footprint with the outline of all.
- `keep`: every footprint; nothing gives way.

Under `newest` the larger one of what is still the same slump stands, for a scene's edge cuts slumps in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rtsmap.errors import OptionsError
from rtsmap.instances.evaluate import shared_areas
from rtsmap.instances.seams import UnionFind

RULES = ("newest", "best", "union", "keep")
_SAME = 0.5
_GOES_ON = 0.05
"""Of a slump's area, so much beyond a scene's edge is no accident of outlines."""
_AT_THE_EDGE = 0.25
"""A footprint so near to the edge, in its own widths, ends there; coverage is coarser than outlines."""
_TOUCHING = 0.1
"""Footprints so near to each other, in widths of the smaller, may be one; outlines are simplified."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Footprints of all scenes, row by row, in one plane CRS.

    `ids`, `scores` and `polygons` are those of footprints, `scene` the position of each one's scene in
    `scene_ids`, `dates` (ISO 8601, None unknown) and `mapped` (the ground that each scene has seen).
    """

    ids: Sequence[str]
    scores: npt.NDArray[np.float64]
    polygons: npt.NDArray[Any]
    scene: npt.NDArray[np.int64]
    scene_ids: Sequence[str]
    dates: Sequence[str | None]
    mapped: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of footprints, row by row.

    `superseded_by`: the id of the footprint that a row gives way to, or of the newer scene that saw nothing
    there; None where it stands. `united` are groups of rows that become one new footprint.
    """

    superseded_by: list[str | None]
    united: list[list[int]]


def reconcile(seen: Seen, rule: str) -> Verdict:
    """Apply a rule; order of scenes and footprints has no effect."""
    if rule not in RULES:
        raise OptionsError(f"overlaps '{rule}': wanted one of {', '.join(RULES)}")
    gives_way: list[str | None] = [None] * len(seen.ids)
    if rule == "keep" or not len(seen.ids):
        return Verdict(gives_way, [])
    pairs, areas = _same_slumps(seen), shapely.area(seen.polygons)
    if rule == "union":
        return Verdict(gives_way, _connected(pairs))
    if rule == "newest":
        _silence_older(seen, pairs, gives_way)
        order = sorted(range(len(seen.ids)), key=lambda i: (-areas[i], seen.ids[i]))
    else:
        cut = _cut_off(seen, pairs)
        order = sorted(
            range(len(seen.ids)), key=lambda i: (i in cut, -seen.scores[i], -areas[i], seen.ids[i])
        )
    _first_stands(seen, pairs, order, gives_way)
    return Verdict(gives_way, [])


def cut_by_joints(seen: Seen, verdict: Verdict) -> list[tuple[int, int]]:
    """Pairs of rows that stand and meet where both their scenes end: likely one slump that counts as two."""
    group = {row: k for k, rows in enumerate(verdict.united) for row in rows}
    widths = np.sqrt(shapely.area(seen.polygons))
    stands = np.array([other is None for other in verdict.superseded_by], bool)
    i, j = shapely.STRtree(seen.polygons).query(
        seen.polygons, predicate="dwithin", distance=_TOUCHING * widths
    )
    # of a pair of neighbours at least the larger one finds the other
    i, j = np.unique(np.sort(np.stack([i, j]), axis=0), axis=1)
    wanted = (seen.scene[i] != seen.scene[j]) & stands[i] & stands[j]
    wanted[wanted] = [group.get(a, -1) != group.get(b, -2) for a, b in zip(i[wanted], j[wanted], strict=True)]
    i, j = i[wanted], j[wanted]
    near = _TOUCHING * np.minimum(widths[i], widths[j])
    meet = shapely.dwithin(seen.polygons[i], seen.polygons[j], near)
    edges = shapely.boundary(seen.mapped)
    for rows in (i, j):
        meet &= shapely.dwithin(seen.polygons[rows], edges[seen.scene[rows]], near)
    return list(zip(i[meet].tolist(), j[meet].tolist(), strict=True))


def _same_slumps(seen: Seen) -> dict[int, list[tuple[int, float]]]:
    """For each footprint those of other scenes that show the same slump, with the area in common."""
    i, j = shapely.STRtree(seen.polygons).query(seen.polygons, predicate="intersects")
    apart = seen.scene[i] != seen.scene[j]
    i, j = i[apart], j[apart]
    common = shapely.area(shapely.intersection(seen.polygons[i], seen.polygons[j]))
    smaller = np.minimum(shapely.area(seen.polygons[i]), shapely.area(seen.polygons[j]))
    found: dict[int, list[tuple[int, float]]] = {}
    same = common > _SAME * smaller
    for a, b, area in zip(i[same], j[same], common[same], strict=True):
        found.setdefault(int(a), []).append((int(b), float(area)))
    return found


def _cut_off(seen: Seen, pairs: dict[int, list[tuple[int, float]]]) -> set[int]:
    """Footprints that end where their scene's ground ends, while another scene shows the slump going on."""
    sides = [(row, other) for row, others in pairs.items() for other, _ in others]
    if not sides:
        return set()
    rows, others = np.array(sides).T
    # ground may have very many corners, and most pairs lie whole on it
    shapely.prepare(seen.mapped)
    reaches_out = ~shapely.covers(seen.mapped[seen.scene[rows]], seen.polygons[others])
    rows, others = rows[reaches_out], others[reaches_out]
    beyond = shapely.difference(seen.polygons[others], seen.mapped[seen.scene[rows]])
    goes_on = shapely.area(beyond) > _GOES_ON * shapely.area(seen.polygons[others])
    near = _AT_THE_EDGE * np.sqrt(shapely.area(seen.polygons[rows]))
    at_the_edge = shapely.distance(seen.polygons[rows], beyond) <= near
    return set(rows[goes_on & at_the_edge].tolist())


def _silence_older(
    seen: Seen, pairs: dict[int, list[tuple[int, float]]], gives_way: list[str | None]
) -> None:
    """Footprints on ground that a newer scene has mapped give way to what that scene saw there."""
    undated = [seen.scene_ids[k] for k, date in enumerate(seen.dates) if date is None]
    if undated:
        raise OptionsError(
            f"overlaps 'newest' needs to know when scenes were taken; not known of {', '.join(undated[:5])}. "
            "Name the dates in a table of scenes, or choose --overlaps best"
        )
    ranked = sorted(range(len(seen.dates)), key=lambda k: _freshest(seen, k))
    age = np.argsort(ranked)
    rows, grounds = shapely.STRtree(seen.mapped).query(seen.polygons)
    newer = age[grounds] < age[seen.scene[rows]]
    rows, grounds = rows[newer], grounds[newer]
    shares = shared_areas(seen.polygons[rows], seen.mapped[grounds])
    speaks: dict[int, int] = {}
    for row, ground, share in zip(rows.tolist(), grounds.tolist(), shares.tolist(), strict=True):
        is_newest = row not in speaks or age[ground] < age[speaks[row]]
        if share > _SAME * seen.polygons[row].area and is_newest:
            speaks[row] = ground
    for row, ground in speaks.items():
        shown = [(area, seen.ids[other]) for other, area in pairs.get(row, []) if seen.scene[other] == ground]
        gives_way[row] = max(shown)[1] if shown else seen.scene_ids[ground]


def _freshest(seen: Seen, scene: int) -> tuple[Any, ...]:
    """Sorts scenes from the newest; of the same day by id."""
    date = seen.dates[scene] or ""
    return tuple(-ord(letter) for letter in date.ljust(40)), seen.scene_ids[scene]


def _first_stands(
    seen: Seen,
    pairs: dict[int, list[tuple[int, float]]],
    order: Sequence[int],
    gives_way: list[str | None],
) -> None:
    """Go through footprints in order; what is the same as one that stands gives way to it."""
    standing: set[int] = set()
    for row in (row for row in order if gives_way[row] is None):
        above = [(area, seen.ids[other]) for other, area in pairs.get(row, []) if other in standing]
        if above:
            gives_way[row] = max(above)[1]
        else:
            standing.add(row)


def _connected(pairs: dict[int, list[tuple[int, float]]]) -> list[list[int]]:
    """Groups of two and more."""
    links = UnionFind()
    for row, others in pairs.items():
        for other, _ in others:
            links.union(row, other)
    return links.components()
