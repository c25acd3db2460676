"""How good a map is: slumps found, outlines, areas, false alarms; with intervals over groups of ground.

Everything is a ratio of sums over polygons, and every polygon belongs to a group (a scene, a block of
ground), from which intervals are drawn: slumps of one valley are not independent of each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from rtsmap.errors import OptionsError
from rtsmap.instances.evaluate import Matches, evaluate
from rtsmap.instances.intervals import group_intervals

IOUS = (0.1, 0.3, 0.5)
SIZE_CLASSES_M2 = (0.0, 2_500.0, 10_000.0, 40_000.0, float("inf"))
"""Bounds of the size classes by area."""

Tally = Counter[str]
"""Sums over the polygons of a group."""


@dataclass(frozen=True, slots=True)
class JudgedMap:
    """One map and the truth of the same ground, in one metric, planar CRS.

    `predicted` and `truth` are valid shapely polygons, `scores` one number for each predicted one,
    `ground_by_group` the ground that was looked at, `group_of` names the group of a polygon or part of it.
    """

    predicted: Sequence[BaseGeometry]
    scores: Sequence[float]
    truth: Sequence[BaseGeometry]
    ground_by_group: Mapping[str, BaseGeometry]
    group_of: Callable[[BaseGeometry], str]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its 95 % interval; the interval is None with fewer than two groups."""

    value: float
    interval: tuple[float, float] | None


def score_maps(
    maps: Iterable[JudgedMap], *, outline_tolerance_m: float = 8.0, resamples: int = 1000, seed: int = 0
) -> dict[str, Figure]:
    """Figures by name, over all maps together.

    `precision_30`, `recall_30`, `f1_30` and so on at each IoU of `IOUS` in percent; `panoptic_quality`
    (at IoU 0.5); `pixel_iou`; `outline_f1`, shares of outlines within `outline_tolerance_m` of the
    other's (the boundary F measure of Perazzi et al. 2016); `area_ratio`, mapped area over true area;
    `recall_30_<class>` by true size and `precision_30_<class>` by mapped size; `false_per_100_km2` (IoU 0.3),
    the same over groups without a slump, `false_per_100_km2_empty`, and over whole maps without a slump,
    `false_per_100_km2_empty_maps`. Shares of nothing are NaN, except on maps that rightly show nothing.
    """
    if not 0 < outline_tolerance_m < math.inf or resamples < 1:
        raise OptionsError(f"outline_tolerance_m={outline_tolerance_m} and resamples={resamples}: wanted > 0")
    by_group: dict[str, Tally] = {}
    for judged in maps:
        for group, tally in _tallies(judged, outline_tolerance_m).items():
            by_group.setdefault(group, Counter()).update(tally)
    if not by_group:
        raise OptionsError("no ground to judge: wanted at least one map whose coverage says 'mapped'")
    keys = sorted({key for tally in by_group.values() for key in tally})
    table = np.array([[tally[key] for key in keys] for tally in by_group.values()], dtype=float)
    shows_nothing = not any(tally["predicted"] or tally["true"] for tally in by_group.values())
    # draws of empty ground alone say nothing of maps that show something
    of_nothing = 1.0 if shows_nothing else float("nan")

    def figures_of(groups: npt.NDArray[np.int64]) -> dict[str, float]:
        return _figures(dict(zip(keys, table[groups].sum(axis=0), strict=True)), of_nothing)

    values = figures_of(np.arange(len(table)))
    intervals = group_intervals(len(table), figures_of, resamples=resamples, seed=seed)
    return {name: Figure(value, intervals.get(name)) for name, value in values.items()}


def _tallies(judged: JudgedMap, tolerance_m: float) -> dict[str, Tally]:
    """Sums of every group of one map."""
    tallies: dict[str, Tally] = {group: Counter() for group in judged.ground_by_group}
    groups_of = _grouping(judged)
    groups_p, groups_t = groups_of(judged.predicted), groups_of(judged.truth)

    def add(groups: Sequence[str], key: str, amounts: Iterable[float]) -> None:
        for group, amount in zip(groups, amounts, strict=True):
            tallies.setdefault(group, Counter())[key] += amount  # type: ignore[assignment]

    add(groups_p, "predicted", [1] * len(groups_p))
    add(groups_t, "true", [1] * len(groups_t))
    areas_p = shapely.area(judged.predicted)
    add(groups_p, "predicted_m2", areas_p)
    areas_t = shapely.area(judged.truth)
    add(groups_t, "true_m2", areas_t)
    for matches in evaluate(judged.predicted, judged.truth, judged.scores, IOUS):
        _add_matches(add, matches, (groups_p, groups_t), (areas_p, areas_t))
    for which, groups, areas in (("predicted", groups_p, areas_p), ("true", groups_t, areas_t)):
        for group, area in zip(groups, areas, strict=True):
            add([group], f"{which}_{size_class(area)}", [1])
    _add_overlaps(add, judged, groups_of)
    add(groups_p, "outline_m", shapely.length(judged.predicted))
    add(groups_p, "near_outline_m", _near(judged.predicted, judged.truth, tolerance_m))
    add(groups_t, "true_outline_m", shapely.length(judged.truth))
    add(groups_t, "near_true_outline_m", _near(judged.truth, judged.predicted, tolerance_m))
    for group, ground in judged.ground_by_group.items():
        tally = tallies[group]
        tally["ground_m2"] += ground.area
        if not tally["true"]:
            tally["empty_ground_m2"] += ground.area
            tally["false_on_empty"] += tally["predicted"]
        if not judged.truth:
            tally["empty_map_m2"] += ground.area
            tally["false_on_empty_map"] += tally["predicted"]
    return tallies


_Add = Callable[[Sequence[str], str, Iterable[float]], None]
_Shapes = Sequence[BaseGeometry] | npt.NDArray[Any]
_GroupsOf = Callable[[_Shapes], list[str]]


def _grouping(judged: JudgedMap) -> _GroupsOf:
    """The groups of polygons: all that hangs together is of one, or ratios would have their parts in two."""
    places = _dissolved([*judged.predicted, *judged.truth])
    names = [judged.group_of(place) for place in places]
    tree = shapely.STRtree(places)

    def groups_of(polygons: _Shapes) -> list[str]:
        if not len(polygons):
            return []
        inner = shapely.point_on_surface(np.array(polygons, dtype=object))
        return [names[place] for place in tree.nearest(inner)]

    return groups_of


def _add_matches(
    add: _Add,
    matches: Matches,
    groups: tuple[Sequence[str], Sequence[str]],
    areas: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
) -> None:
    groups_p, groups_t = groups
    areas_p, areas_t = areas
    percent = round(100 * matches.iou_threshold)
    add([groups_p[pair.predicted] for pair in matches.pairs], f"right_{percent}", [1] * len(matches.pairs))
    add([groups_t[pair.truth] for pair in matches.pairs], f"found_{percent}", [1] * len(matches.pairs))
    add(
        [groups_t[pair.truth] for pair in matches.pairs],
        f"iou_{percent}",
        [pair.iou for pair in matches.pairs],
    )
    for pair in matches.pairs:
        add([groups_t[pair.truth]], f"found_{percent}_{size_class(areas_t[pair.truth])}", [1])
        add([groups_p[pair.predicted]], f"right_{percent}_{size_class(areas_p[pair.predicted])}", [1])


def _add_overlaps(add: _Add, judged: JudgedMap, groups_of: _GroupsOf) -> None:
    """Areas of the dissolved maps, so that ground under two polygons counts once."""
    mapped, true = _dissolved(judged.predicted), _dissolved(judged.truth)
    groups_m, groups_t = groups_of(mapped), groups_of(true)
    add(groups_m, "cover_m2", shapely.area(mapped))
    add(groups_t, "true_cover_m2", shapely.area(true))
    # pair by pair: parts of a dissolved map share no ground, and one overlay with all of it costs too much
    one, other = shapely.STRtree(mapped).query(true)
    both = shapely.area(shapely.intersection(true[one], mapped[other]))
    add([groups_t[number] for number in one], "both_m2", both)


def _near(outlines: Sequence[BaseGeometry], others: Sequence[BaseGeometry], distance_m: float) -> list[float]:
    """Length of each polygon's outline within a distance of any outline of the others."""
    lines, other_lines = shapely.boundary(outlines), shapely.boundary(others)
    if not len(lines) or not len(other_lines):
        return [0.0] * len(lines)
    tree = shapely.STRtree(other_lines)
    lengths = []
    for line in lines:
        close = tree.query(line, predicate="dwithin", distance=distance_m)
        zone = shapely.union_all(shapely.buffer(other_lines[close], distance_m))
        lengths.append(float(shapely.length(shapely.intersection(line, zone))))
    return lengths


def _figures(sums: Mapping[str, float], of_nothing: float) -> dict[str, float]:
    """Figures from sums; shares of nothing are `of_nothing`."""

    def of(key: str) -> float:
        return sums.get(key, 0.0)

    def share(part: float, whole: float) -> float:
        return part / whole if whole else of_nothing

    figures = {}
    for iou in IOUS:
        at = round(100 * iou)
        figures[f"precision_{at}"] = share(of(f"right_{at}"), of("predicted"))
        figures[f"recall_{at}"] = share(of(f"found_{at}"), of("true"))
        figures[f"f1_{at}"] = share(2 * of(f"found_{at}"), of("predicted") + of("true"))
    figures["panoptic_quality"] = share(2 * of("iou_50"), of("predicted") + of("true"))
    both = of("both_m2")
    figures["pixel_iou"] = share(both, of("cover_m2") + of("true_cover_m2") - both)
    near, outline = of("near_outline_m"), of("outline_m")
    near_true, true_outline = of("near_true_outline_m"), of("true_outline_m")
    # the harmonic mean of both shares, and 0 as F1 is where no outline is near another
    whole = near * true_outline + near_true * outline
    figures["outline_f1"] = share(2 * near * near_true, whole or outline + true_outline)
    figures["area_ratio"] = share(of("predicted_m2"), of("true_m2"))
    for name in SIZE_CLASS_NAMES:
        figures[f"recall_30_{name}"] = share(of(f"found_30_{name}"), of(f"true_{name}"))
        figures[f"precision_30_{name}"] = share(of(f"right_30_{name}"), of(f"predicted_{name}"))
    wrong = of("predicted") - of("right_30")
    figures["false_per_100_km2"] = _per_100_km2(wrong, of("ground_m2"))
    figures["false_per_100_km2_empty"] = _per_100_km2(of("false_on_empty"), of("empty_ground_m2"))
    figures["false_per_100_km2_empty_maps"] = _per_100_km2(of("false_on_empty_map"), of("empty_map_m2"))
    return figures


def _per_100_km2(count: float, ground_m2: float) -> float:
    return count / ground_m2 * 1e8 if ground_m2 else float("nan")


def _class_names() -> tuple[str, ...]:
    bounds = [f"{bound / 1e4:g}" for bound in SIZE_CLASSES_M2[1:-1]]
    return (f"below_{bounds[0]}_ha", *map("{}_to_{}_ha".format, bounds, bounds[1:]), f"above_{bounds[-1]}_ha")


SIZE_CLASS_NAMES = _class_names()
"""Size classes by area, smallest first."""


def size_class(area_m2: float) -> str:
    """The class of `SIZE_CLASS_NAMES` that an area belongs to."""
    return SIZE_CLASS_NAMES[int(np.searchsorted(SIZE_CLASSES_M2, area_m2, side="right")) - 1]


def _dissolved(polygons: Sequence[BaseGeometry]) -> npt.NDArray[Any]:
    parts: npt.NDArray[Any] = shapely.get_parts(shapely.union_all(polygons))
    return parts
