from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from rtsmap.errors import OptionsError
from rtsmap.instances.calibration import (
    TEMPERATURE_LIMITS,
    ScoreBin,
    calibration_error,
    fit_temperature,
    log_loss,
    reliability,
    tempered,
    threshold_for_precision,
)
from tests.strategies import law

outcomes = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, 0.75])), st.booleans()), max_size=40
)


def as_arrays(pairs):
    return np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs], bool)


def drawn(count, seed=0):
    """Scores, and outcomes as likely as the scores say."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.1, 0.9, count)
    return scores, rng.random(count) < scores


def test_scores_that_mean_what_they_say_need_no_temperature():
    scores, right = drawn(40_000)
    assert fit_temperature(scores, right) == pytest.approx(1, abs=0.03)
    assert calibration_error(reliability(scores, right)) < 0.01


@pytest.mark.parametrize("factor", [0.3, 0.8, 2.5, 6.0])
def test_a_scaling_of_logits_is_found_and_undone(factor):
    scores, right = drawn(40_000, seed=1)
    altered = tempered(scores, 1 / factor)
    fitted = fit_temperature(altered, right)
    assert fitted == pytest.approx(factor, rel=0.03)
    mended = tempered(altered, fitted)
    assert calibration_error(reliability(mended, right)) < 0.01
    assert log_loss(mended, right) < log_loss(altered, right)


def test_a_worked_example():
    # a score of 0.8, right 3 times of 4, and one of 0.2, right once in 4: ln 4 = T ln 3
    scores = np.array([0.8] * 4 + [0.2] * 4)
    right = np.array([True] * 3 + [False] + [True] + [False] * 3)
    assert fit_temperature(scores, right) == pytest.approx(math.log(4) / math.log(3))
    low, high = reliability(scores, right, bins=4)
    assert (low.low, low.high, low.count, low.true_share) == (0, 0.25, 4, 0.25)
    assert (high.low, high.high, high.count, high.mean_score) == (0.75, 1, 4, pytest.approx(0.8))
    assert calibration_error([low, high]) == pytest.approx(0.05)
    assert log_loss(scores, right) == pytest.approx(-(3 * math.log(0.8) + math.log(0.2)) / 4)
    # Wilson's interval of 3 in 4, from his formula
    assert high.interval == pytest.approx((0.3006, 0.9544), abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_scikit_learn_measures_and_fits_the_same(seed):
    rng = np.random.default_rng(seed)
    scores = rng.beta(*rng.uniform(0.5, 3, 2), 250).clip(1e-4, 1 - 1e-4)
    logits = np.log(scores / (1 - scores))
    right = rng.random(250) < 1 / (1 + np.exp(-rng.uniform(0.3, 2) * logits))
    shares, means = calibration_curve(right, scores, n_bins=10)
    table = reliability(scores, right)
    np.testing.assert_allclose([one.true_share for one in table], shares)
    np.testing.assert_allclose([one.mean_score for one in table], means)
    # a temperature is a logistic regression on the logit without a constant
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-9).fit(logits[:, None], right)
    assert fit_temperature(scores, right) == pytest.approx(1 / fit.coef_[0, 0], rel=1e-4)
    assert log_loss(scores, right) == pytest.approx(metrics.log_loss(right, scores))


def test_a_hopeless_fit_ends_at_its_limits():
    sure = np.array([0.9, 0.8, 0.95])
    assert fit_temperature(sure, np.array([True] * 3)) == TEMPERATURE_LIMITS[0]
    assert fit_temperature(sure, np.array([False] * 3)) == TEMPERATURE_LIMITS[1]
    assert fit_temperature(np.array([0.0, 1.0, 1.0]), np.array([False, True, True])) == TEMPERATURE_LIMITS[0]
    with pytest.raises(OptionsError, match="no footprint"):
        fit_temperature(np.array([]), np.array([], bool))


@law(100)
@given(outcomes.filter(bool), st.integers(1, 12))
def test_every_footprint_is_in_the_bin_of_its_score(pairs, bins):
    scores, right = as_arrays(pairs)
    table = reliability(scores, right, bins)
    assert sum(one.count for one in table) == len(scores)
    assert sum(one.count * one.true_share for one in table) == pytest.approx(right.sum())
    for one in table:
        last = one.high == 1
        inside = (scores >= one.low) & ((scores < one.high) | last)
        assert one.count == inside.sum()
        assert one.interval[0] <= one.true_share + 1e-12
        assert one.true_share <= one.interval[1] + 1e-12
    error = calibration_error(table)
    assert 0 <= error <= 1


@law(100)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 20), st.floats(0.05, 20))
def test_temperatures_keep_the_order_and_multiply(a, b, one, other):
    low, high = sorted((a, b))
    assert 0 <= tempered(low, one) <= tempered(high, one) + 1e-12 <= 1 + 1e-12
    assert tempered(a, 1.0) == a
    assert tempered(0.5, one) == pytest.approx(0.5)
    assert tempered(tempered(a, one), other) == pytest.approx(tempered(a, one * other), abs=1e-3)
    inside = 0.02 + 0.96 * a
    assert tempered(tempered(inside, max(one, 1.0)), 1 / max(one, 1.0)) == pytest.approx(inside)


@law(150)
@given(outcomes, st.floats(0.05, 1), st.integers(1, 12))
def test_the_threshold_is_the_lowest_that_brute_force_finds(pairs, wanted, least):
    scores, right = as_arrays(pairs)
    claim = threshold_for_precision(scores, right, wanted, least=least)
    kept = {t: scores >= t for t in sorted(set(scores.tolist()))}
    enough = {t: mask for t, mask in kept.items() if mask.sum() >= least}
    good = [t for t, mask in enough.items() if right[mask].mean() >= wanted]
    assert claim.reached == bool(good)
    if not enough:
        assert claim.threshold is None
        return
    mask = scores >= claim.threshold
    assert (claim.footprints, claim.true) == (mask.sum(), right[mask].sum())
    assert claim.precision == pytest.approx(right[mask].mean())
    if good:
        assert np.array_equal(mask, kept[min(good)])
    else:
        assert claim.precision == pytest.approx(max(right[mask].mean() for mask in enough.values()))


def test_a_threshold_is_a_round_number_and_not_below_what_the_maps_hold():
    scores = np.array([0.31234, 0.45678, 0.71234, 0.91234])
    right = np.array([False, True, True, True])
    assert threshold_for_precision(scores, right, 1.0, least=3).threshold == 0.45
    assert threshold_for_precision(scores, right, 0.7, least=3).threshold == 0.31
    assert threshold_for_precision(scores, right, 0.7, least=3, lowest=0.312).threshold == 0.312
    close = threshold_for_precision(np.array([0.45671, 0.45678]), np.array([False, True]), 1.0, least=1)
    assert 0.45671 < close.threshold <= 0.45678


@pytest.mark.parametrize("wanted", [0, -1, 1.1, math.nan])
def test_impossible_wishes_are_refused(wanted):
    with pytest.raises(OptionsError, match="wanted precision"):
        threshold_for_precision(np.array([0.5]), np.array([True]), wanted)
    with pytest.raises(OptionsError, match="bins"):
        reliability(np.array([0.5]), np.array([True]), 0)


def test_the_error_weighs_bins_by_their_footprints():
    table = [ScoreBin(0, 0.5, 3, 0.2, 0.4, (0, 1)), ScoreBin(0.5, 1, 1, 0.9, 0.5, (0, 1))]
    assert calibration_error(table) == pytest.approx((3 * 0.2 + 0.4) / 4)
