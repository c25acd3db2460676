from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rtsmap.errors import LabelError, OptionsError
from rtsmap.instances.evaluate import evaluate, match_polygons
from tests.strategies import law

squares = st.builds(
    lambda x, y, width, height: shapely.box(x, y, x + width, y + height),
    *(st.integers(0, 12), st.integers(0, 12), st.integers(1, 8), st.integers(1, 8)),
)
maps = st.lists(squares, max_size=8)


def iou(a, b):
    return a.intersection(b).area / a.union(b).area


def squares_in_a_row(count, shift=0.0):
    return [shapely.box(10 * i + shift, 0, 10 * i + 8 + shift, 8) for i in range(count)]


def test_a_map_agrees_with_itself():
    polygons = squares_in_a_row(5)
    marks = match_polygons(polygons, polygons)
    assert (marks.precision, marks.recall, marks.f1, marks.mean_iou, marks.panoptic_quality) == (
        1,
        1,
        1,
        1,
        1,
    )


def test_figures_of_a_known_case():
    # two of three true ones found with IoU 2/3 (shift of 1.6 on 8), one false
    truth = squares_in_a_row(3)
    predicted = [*squares_in_a_row(2, shift=1.6), shapely.box(100, 100, 108, 108)]
    marks = match_polygons(predicted, truth, 0.5)
    assert (marks.true_positives, marks.false_positives, marks.false_negatives) == (2, 1, 1)
    assert marks.precision == marks.recall == marks.f1 == pytest.approx(2 / 3)
    assert marks.mean_iou == pytest.approx(2 / 3)
    assert marks.panoptic_quality == pytest.approx(4 / 9)


def test_thresholds_are_inclusive_and_reported_each():
    low, high = evaluate([shapely.box(0, 0, 1, 2)], [shapely.box(0, 0, 1, 1)], ious=(0.5, 0.51))
    assert (low.iou_threshold, low.true_positives) == (0.5, 1)
    assert (high.iou_threshold, high.true_positives) == (0.51, 0)


def test_the_better_scored_chooses_first():
    truth = [shapely.box(0, 0, 10, 10)]
    exact, worse = shapely.box(0, 0, 10, 10), shapely.box(0, 0, 10, 8)
    assert match_polygons([exact, worse], truth, scores=[0.6, 0.9]).pairs[0].predicted == 1
    assert match_polygons([exact, worse], truth).pairs[0].predicted == 0


@pytest.mark.parametrize("seed", range(8))
def test_order_has_no_effect_where_scores_are_equal(seed):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (2, 25, 2))
    predicted, truth = ([shapely.box(x, y, x + 12, y + 12) for x, y in row] for row in corners)
    scores = random.integers(1, 4, 25) / 3
    marks = match_polygons(predicted, truth, 0.1, scores.tolist())
    turned = random.permutation(25)
    other = match_polygons([predicted[i] for i in turned], truth[::-1], 0.1, scores[turned].tolist())
    assert {(p.predicted, p.truth) for p in marks.pairs} == {
        (int(turned[p.predicted]), 24 - p.truth) for p in other.pairs
    }


def test_a_slump_in_two_halves_counts_once():
    truth = [shapely.box(0, 0, 10, 10)]
    halves = [shapely.box(0, 0, 6, 10), shapely.box(6, 0, 10, 10)]
    marks = match_polygons(halves, truth, 0.3)
    assert (marks.true_positives, marks.false_positives) == (1, 1)


def test_empty_maps():
    one = squares_in_a_row(1)
    assert match_polygons([], []).f1 == 1
    assert (match_polygons([], one).f1, match_polygons([], one).precision) == (0, 0)
    assert (match_polygons(one, []).f1, match_polygons(one, []).recall) == (0, 0)


@law(200)
@given(maps, maps, st.sampled_from([0.1, 0.3, 0.5, 0.75]))
def test_pairs_are_one_to_one_and_their_iou_is_true(predicted, truth, threshold):
    marks = match_polygons(predicted, truth, threshold)
    assert len({p.predicted for p in marks.pairs}) == len({p.truth for p in marks.pairs}) == len(marks.pairs)
    for pair in marks.pairs:
        assert pair.iou >= threshold
        assert pair.iou == pytest.approx(iou(predicted[pair.predicted], truth[pair.truth]))


@law(200)
@given(st.data(), maps, maps, st.sampled_from([0.1, 0.3, 0.5]))
def test_no_pair_is_left_that_could_be_made(data, predicted, truth, threshold):
    scores = data.draw(st.lists(st.floats(0, 1), min_size=len(predicted), max_size=len(predicted)))
    marks = match_polygons(predicted, truth, threshold, scores)
    free_predicted = set(range(len(predicted))) - {p.predicted for p in marks.pairs}
    free_truth = set(range(len(truth))) - {p.truth for p in marks.pairs}
    assert all(iou(predicted[i], truth[j]) < threshold for i in free_predicted for j in free_truth)


@law(200)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=12, unique=True), st.randoms())
def test_without_overlaps_the_choice_is_the_best_there_is(cells, shuffler):
    truth = [shapely.box(10 * x, 10 * y, 10 * x + 10, 10 * y + 10) for x, y in cells]
    predicted = [
        shapely.affinity.translate(t, shuffler.uniform(-4, 4), shuffler.uniform(-4, 4)) for t in truth
    ]
    table = np.array([[iou(p, t) for t in truth] for p in predicted]).reshape(len(predicted), len(truth))
    above = table * (table > 0.5)
    best = above[linear_sum_assignment(-above)].sum()
    forward, backward = (
        match_polygons(*maps, 0.5000001) for maps in ((predicted, truth), (truth, predicted))
    )
    assert sum(p.iou for p in forward.pairs) == pytest.approx(best)
    assert (forward.precision, forward.recall) == (backward.recall, backward.precision)


def test_polygons_that_cannot_be_compared_are_named():
    bow_tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    fine = squares_in_a_row(1)[0]
    with pytest.raises(LabelError, match=r"1 of 2 true polygons.*number 1: Self-intersection"):
        match_polygons([fine], [fine, bow_tie])
    with pytest.raises(LabelError, match=r"predicted polygons.*number 0: empty"):
        match_polygons([shapely.Polygon()], [fine])


def test_impossible_arguments_are_refused():
    one = squares_in_a_row(1)
    with pytest.raises(OptionsError, match="2 scores"):
        match_polygons(one, one, scores=[0.1, 0.2])
    with pytest.raises(OptionsError, match="IoU thresholds"):
        match_polygons(one, one, 0.0)
