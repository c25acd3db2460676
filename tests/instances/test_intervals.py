from __future__ import annotations

import numpy as np
import pytest

from rtsmap.instances.intervals import group_intervals


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
