from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsmap.errors import OptionsError
from rtsmap.instances.overlaps import RULES, Seen, cut_by_joints, reconcile

WEST, EAST = shapely.box(0, 0, 60, 100), shapely.box(40, 0, 100, 100)


def seen(rows, dates=("2020-07-01", "2021-08-01")) -> Seen:
    """Footprints as (scene, polygon, score), of a western and an eastern scene that overlap by 20."""
    return Seen(
        ids=[f"f{i}" for i in range(len(rows))],
        scores=np.array([score for *_, score in rows], float),
        polygons=np.array([polygon for _, polygon, _ in rows], object),
        scene=np.array([scene for scene, *_ in rows], np.int64),
        scene_ids=["west", "east"],
        dates=list(dates),
        mapped=np.array([WEST, EAST], object),
    )


IN_OVERLAP = shapely.box(42, 10, 50, 20)
AGAIN = shapely.box(43, 10, 51, 20)
ALONE = shapely.box(10, 10, 20, 20)
UNSEEN = shapely.box(45, 60, 55, 70)


def test_the_newest_speaks_also_where_it_saw_nothing():
    found = seen([(0, IN_OVERLAP, 0.9), (1, AGAIN, 0.6), (0, ALONE, 0.5), (0, UNSEEN, 0.99)])
    assert reconcile(found, "newest").superseded_by == ["f1", None, None, "east"]
    older = replace(found, dates=["2022-07-01", "2021-08-01"])
    assert reconcile(older, "newest").superseded_by == [None, "f0", None, None]


def test_ground_decides_by_majority_and_a_scene_edge_cuts_no_slump_in_two():
    mostly_west, mostly_east = shapely.box(30, 10, 48, 20), shapely.box(38, 40, 58, 50)
    cut_by_the_edge = shapely.box(40, 10, 48, 20)
    found = seen([(0, mostly_west, 0.5), (0, mostly_east, 0.5), (1, cut_by_the_edge, 0.9)])
    assert reconcile(found, "newest").superseded_by == [None, "east", "f0"]


def test_undated_scenes_are_an_error_for_newest_alone():
    found = seen([(0, ALONE, 0.5)], dates=("2020-07-01", None))
    with pytest.raises(OptionsError, match=r"not known of east"):
        reconcile(found, "newest")
    for rule in ("best", "union", "keep"):
        reconcile(found, rule)


def test_best_is_the_best_score_and_union_is_all_of_it():
    found = seen([(0, IN_OVERLAP, 0.9), (1, AGAIN, 0.6), (0, ALONE, 0.5)])
    assert reconcile(found, "best").superseded_by == [None, "f0", None]
    verdict = reconcile(found, "union")
    assert verdict.united == [[0, 1]]
    assert verdict.superseded_by == [None] * 3
    assert reconcile(found, "keep").superseded_by == [None] * 3


def test_best_prefers_what_no_edge_of_a_scene_cuts_off():
    whole, cut = shapely.box(20, 10, 50, 20), shapely.box(40, 10, 50, 20)
    inside = shapely.box(46, 10, 50, 20)
    assert reconcile(seen([(0, whole, 0.5), (1, cut, 0.9)]), "best").superseded_by == [None, "f0"]
    # what ends away from the edge was not cut off: its scene saw all of it
    assert reconcile(seen([(0, whole, 0.5), (1, inside, 0.9)]), "best").superseded_by == ["f1", None]
    # cut off on both sides: the score decides
    west, east = shapely.box(30, 10, 60, 20), shapely.box(40, 10, 65, 20)
    assert reconcile(seen([(0, west, 0.5), (1, east, 0.9)]), "best").superseded_by == ["f1", None]
    assert reconcile(seen([(0, west, 0.9), (1, east, 0.5)]), "best").superseded_by == [None, "f0"]


def test_footprints_of_one_scene_never_give_way_to_each_other():
    found = seen([(0, IN_OVERLAP, 0.9), (0, AGAIN, 0.6)], dates=("2022-07-01", "2021-08-01"))
    for rule in RULES:
        verdict = reconcile(found, rule)
        assert verdict.superseded_by == [None, None]
        assert verdict.united == []


@pytest.mark.parametrize("rule", ["newest", "best"])
def test_what_lies_whole_on_ground_is_not_overlaid_with_all_its_corners(rule, monkeypatch):
    ragged = EAST.difference(shapely.union_all([shapely.box(x, 90, x + 1, 91) for x in range(42, 98, 2)]))
    found = seen([(0, IN_OVERLAP, 0.9), (1, AGAIN, 0.6)])
    found = replace(found, mapped=np.array([ragged.union(WEST), ragged], object))
    for name in ("intersection", "difference"):
        monkeypatch.setattr(shapely, name, _few_corners(getattr(shapely, name)))
    reconcile(found, rule)


def _few_corners(overlay):
    def checked(one, other):
        assert np.all(shapely.get_num_coordinates(other) < 20)
        return overlay(one, other)

    return checked


def test_an_unknown_rule_is_refused():
    with pytest.raises(OptionsError, match="newest, best, union, keep"):
        reconcile(seen([]), "oldest")


boxes = st.builds(
    lambda x, y, w, h: shapely.box(x, y, x + w, y + h),
    st.integers(0, 80),
    st.integers(0, 80),
    st.integers(1, 20),
    st.integers(1, 20),
)


@given(st.lists(st.tuples(st.integers(0, 1), boxes, st.floats(0, 1)), max_size=12), st.randoms())
@settings(max_examples=80, deadline=None)
def test_order_has_no_effect_and_what_stands_shows_no_slump_twice(rows, random):
    found = seen(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    mixed = Seen(
        ids=[found.ids[i] for i in order],
        scores=found.scores[order],
        polygons=found.polygons[order],
        scene=found.scene[order],
        scene_ids=found.scene_ids,
        dates=found.dates,
        mapped=found.mapped,
    )
    for rule in ("newest", "best"):
        one = dict(zip(found.ids, reconcile(found, rule).superseded_by, strict=True))
        assert one == dict(zip(mixed.ids, reconcile(mixed, rule).superseded_by, strict=True))
        standing = [i for i, name in enumerate(found.ids) if one[name] is None]
        for i in standing:
            for j in standing:
                a, b = found.polygons[i], found.polygons[j]
                if found.scene[i] != found.scene[j]:
                    assert a.intersection(b).area <= 0.5 * min(a.area, b.area)
        # what something gives way to stands itself, or is a scene
        assert {name for name in one.values() if name} <= {found.ids[i] for i in standing} | {"east", "west"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("overlap", [0, 1, 20])
def test_what_a_joint_of_scenes_cuts_in_two_is_told(rule, overlap):
    """Parts of one picture share no ground, or so little that neither half is the same as the other."""
    east = shapely.box(60 - overlap, 0, 120, 100)
    west_half, east_half = shapely.box(20, 10, 60, 20), shapely.box(60 - overlap, 10, 100, 20)
    apart = [(0, shapely.box(40, 50, 54, 60), 0.9), (1, shapely.box(66, 50, 80, 60), 0.9)]
    found = seen([(0, west_half, 0.9), (1, east_half, 0.6), *apart])
    found = replace(found, mapped=np.array([WEST, east], object))
    assert cut_by_joints(found, reconcile(found, rule)) == [(0, 1)]
    seen_whole = replace(found, mapped=np.array([WEST, shapely.box(0, 0, 120, 100)], object))
    assert cut_by_joints(seen_whole, reconcile(seen_whole, rule)) == []


def test_what_gives_way_or_is_united_is_not_cut():
    found = seen([(0, shapely.box(30, 10, 60, 20), 0.9), (1, shapely.box(40, 10, 65, 20), 0.8)])
    for rule, pairs in (("best", []), ("union", []), ("keep", [(0, 1)])):
        assert cut_by_joints(found, reconcile(found, rule)) == pairs
    nothing = seen([])
    assert cut_by_joints(nothing, reconcile(nothing, "best")) == []
