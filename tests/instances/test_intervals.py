from __future__ import annotations

import numpy as np
import pytest

from rtsmap.instances.intervals import group_intervals, share_interval


def test_intervals_of_a_mean_are_those_of_theory():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = group_intervals(400, lambda drawn: {"mean": float(values[drawn].mean())})["mean"]
    wanted = 1.96 * values.std() / 20
    assert high - low == pytest.approx(2 * wanted, rel=0.1)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.05)


def test_draws_without_a_figure_do_not_count():
    def figures(drawn):
        return {"x": float("nan") if 0 in drawn else 1.0, "never": float("nan")}

    assert group_intervals(3, figures) == {"x": (1.0, 1.0)}


def test_one_group_says_nothing_about_how_sure_a_figure_is():
    assert group_intervals(1, lambda _: {"x": 1.0}) == {}


def test_intervals_of_shares_hold_the_share_and_narrow_with_numbers():
    assert share_interval(0, 0) == (0, 1)
    assert share_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    widths = []
    for count in (10, 100, 1000):
        low, high = share_interval(3 * count // 10, count)
        assert low < 0.3 < high
        widths.append(high - low)
    assert widths[0] > 2.5 * widths[1] > 6 * widths[2]
