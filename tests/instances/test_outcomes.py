from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

from rtsmap.errors import OptionsError
from rtsmap.instances.map_scores import JudgedMap
from rtsmap.instances.outcomes import Outcomes, outcomes_of, threshold_curve
from tests.strategies import law


def judged(predicted, truth, scores):
    ground = box(0, 0, 1000, 1000)
    return JudgedMap(predicted, scores, truth, {"west": ground}, lambda p: "w" if p.bounds[0] < 500 else "e")


def square(x, side=10.0):
    return box(x, 0, x + side, 10)


def test_outcomes_of_a_known_case():
    # found exactly; found a second time with a lower score; half of one; a false alarm
    predicted = [square(0), square(1), square(100, 5), square(600)]
    one = judged(predicted, [square(0), square(100), square(900)], [0.9, 0.8, 0.7, 0.6])
    other = judged([square(0)], [square(0)], [0.4])
    strict, loose = outcomes_of([one, other], 0.6), outcomes_of([one, other], 0.5)
    assert strict.right.tolist() == [True, False, False, False, True]
    assert loose.right.tolist() == [True, False, True, False, True]
    assert loose.slumps == 4
    assert loose.groups.tolist() == [0, 0, 0, 1, 0]
    assert loose.group_count == 2
    nothing = outcomes_of([judged([], [square(0)], [])], 0.3)
    assert (nothing.slumps, nothing.group_count, len(nothing.scores)) == (1, 0, 0)


@law(100)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.booleans()), max_size=20))
def test_a_curve_counts_what_each_threshold_keeps(pairs):
    scores, right = np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs], bool)
    curve = threshold_curve(scores, right, slumps=25)
    assert curve.thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
    for threshold, kept, true, precision, recall in zip(
        curve.thresholds, curve.kept, curve.true, curve.precision, curve.recall, strict=True
    ):
        mask = scores >= threshold
        assert (kept, true) == (mask.sum(), right[mask].sum())
        assert (precision, recall) == (pytest.approx(true / kept), pytest.approx(true / 25))


def test_leaving_out_low_scores_changes_no_outcome_of_high_ones():
    rng = np.random.default_rng(4)
    predicted = [square(float(x)) for x in rng.uniform(0, 200, 30)]
    truth = [square(float(x)) for x in rng.uniform(0, 200, 20)]
    scores = rng.permutation(30) / 30
    whole = outcomes_of([judged(predicted, truth, scores.tolist())], 0.3)
    keep = np.flatnonzero(scores >= 0.5)
    part = outcomes_of([judged([predicted[i] for i in keep], truth, scores[keep].tolist())], 0.3)
    assert np.array_equal(whole.right[keep], part.right)
    assert 0 < part.right.sum() < len(keep)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(OptionsError, match="2 scores, 1 outcomes"):
        Outcomes(0.3, np.array([0.1, 0.2]), np.array([True]), np.array([0, 0]), 1)
