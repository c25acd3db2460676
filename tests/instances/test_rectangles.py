"""Dissolved rectangles are what GEOS' general union makes of them."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rtsmap.instances.rectangles import dissolve_boxes

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))


def unit_boxes(mask):
    rows, cols = np.nonzero(mask)
    return np.stack([rows, cols, rows + 1, cols + 1], axis=1)


def run_boxes(mask):
    """One box for each run of True pixels along a row: neighbours then meet in parts of an edge."""
    boxes = []
    for row, line in enumerate(np.pad(mask, ((0, 0), (1, 1))).astype(int)):
        steps = np.diff(line)
        boxes += [
            (row, a, row + 1, b) for a, b in zip(*(np.flatnonzero(steps == s) for s in (1, -1)), strict=True)
        ]
    return np.array(boxes, dtype=int).reshape(-1, 4)


def general_union(boxes):
    row0, col0, row1, col1 = boxes.T
    return shapely.union_all(shapely.box(col0, row0, col1, row1))


@settings(max_examples=300, deadline=None)
@given(mask=masks)
def test_union_equals_the_general_one_and_is_valid(mask):
    wanted = general_union(unit_boxes(mask))
    for boxes in (unit_boxes(mask), run_boxes(mask)):
        got = dissolve_boxes(boxes)
        assert got.geom_type == "MultiPolygon"
        assert shapely.is_valid(got), shapely.is_valid_reason(got)
        assert shapely.equals(got, wanted)


@settings(max_examples=100, deadline=None)
@given(mask=masks, seed=st.integers(0, 1000))
def test_order_of_the_boxes_does_not_matter(mask, seed):
    boxes = run_boxes(mask)
    shuffled = np.random.default_rng(seed).permutation(boxes)
    assert dissolve_boxes(boxes).normalize() == dissolve_boxes(shuffled).normalize()


def test_checkerboard_parts_touch_in_corners_only():
    board = np.indices((8, 8)).sum(axis=0) % 2 == 0
    got = dissolve_boxes(unit_boxes(board))
    assert len(got.geoms) == 32
    assert shapely.is_valid(got)


def test_island_in_a_lake_on_an_island():
    mask = np.zeros((11, 11), dtype=bool)
    for ring, inside in enumerate([True, False, True, False, True]):
        mask[ring : 11 - ring, ring : 11 - ring] = inside
    got = dissolve_boxes(run_boxes(mask))
    assert sorted(len(part.interiors) for part in got.geoms) == [0, 1, 1]
    assert got.area == mask.sum()


def test_nothing_is_an_empty_multipolygon():
    assert dissolve_boxes(np.empty((0, 4), dtype=int)).is_empty
