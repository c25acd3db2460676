from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.affinity import translate
from shapely.geometry import box

from rtsmap.errors import OptionsError
from rtsmap.instances.map_scores import SIZE_CLASS_NAMES, JudgedMap, score_maps

KM = 1000.0


def block(polygon):
    return "west" if polygon.representative_point().x < 5 * KM else "east"


def judged(predicted, truth, scores=None):
    halves = {"west": box(0, 0, 5 * KM, 10 * KM), "east": box(5 * KM, 0, 10 * KM, 10 * KM)}
    return JudgedMap(predicted, scores or [1.0] * len(predicted), truth, halves, block)


def value(figures, name):
    return figures[name].value


def square(x, y, side=100.0):
    return box(x, y, x + side, y + side)


def test_a_worked_example():
    # three slumps of 1 ha in the west; one found exactly, one with half of it (IoU 0.5), one missed;
    # one false alarm in the east, which has no slump
    truth = [square(1000, 1000), square(2000, 1000), square(3000, 1000)]
    predicted = [square(1000, 1000), box(2000, 1000, 2100, 1050), square(8000, 1000)]
    figures = score_maps([judged(predicted, truth)])
    assert value(figures, "precision_50") == value(figures, "recall_50") == pytest.approx(2 / 3)
    assert (
        value(figures, "f1_10") == value(figures, "f1_30") == value(figures, "f1_50") == pytest.approx(2 / 3)
    )
    assert value(figures, "panoptic_quality") == pytest.approx((1 + 0.5) / 3)
    assert value(figures, "pixel_iou") == pytest.approx(1.5 / 4)
    assert value(figures, "area_ratio") == pytest.approx(2.5 / 3)
    assert value(figures, "false_per_100_km2") == pytest.approx(1.0)
    assert value(figures, "false_per_100_km2_empty") == pytest.approx(2.0)
    # of the half one's outline the inner side lies 50 m off, but for 8 m at both ends; of the true outline
    # around it, the side beyond the half and what of the two others is farther than 8 m from the half
    precision = (400 + 200 + 2 * 8) / (400 + 300 + 400)
    recall = (400 + 100 + 2 * (50 + 8)) / (3 * 400)
    wanted = 2 * precision * recall / (precision + recall)
    assert value(figures, "outline_f1") == pytest.approx(wanted, abs=1e-3)


def test_recall_by_size_class():
    truth = [square(100, 100, 40), square(1000, 100, 80), square(2000, 100, 150), square(3000, 100, 300)]
    figures = score_maps([judged([truth[1], truth[3]], truth)])
    recalls = [value(figures, f"recall_30_{name}") for name in SIZE_CLASS_NAMES]
    assert recalls == [0, 1, 0, 1]


def test_precision_by_size_class_goes_by_mapped_size():
    # 1 ha found as 0.16 ha would not match; as 0.64 ha it does, and counts in its own class
    truth = [square(1000, 100, 100)]
    predicted = [square(1000, 100, 80), square(3000, 100, 80), square(5000, 100, 300)]
    figures = score_maps([judged(predicted, truth)])
    precisions = [value(figures, f"precision_30_{name}") for name in SIZE_CLASS_NAMES]
    assert precisions[1:] == pytest.approx([0.5, math.nan, 0], nan_ok=True)
    assert math.isnan(precisions[0])
    assert [value(figures, f"recall_30_{name}") for name in SIZE_CLASS_NAMES][2] == 1


def test_false_alarms_on_maps_without_a_slump():
    # 100 km2 with a slump and an alarm, 100 km2 without a slump and three alarms
    with_one = judged([square(7000, 100)], [square(1000, 1000)])
    without = judged([square(1000, 100), square(2000, 100), square(7000, 100)], [])
    figures = score_maps([with_one, without])
    assert value(figures, "false_per_100_km2_empty_maps") == pytest.approx(3)
    assert value(figures, "false_per_100_km2_empty") == pytest.approx(4 / 1.5)
    assert value(figures, "false_per_100_km2") == pytest.approx(2)
    assert math.isnan(value(score_maps([with_one]), "false_per_100_km2_empty_maps"))


def test_a_map_that_rightly_shows_nothing_is_perfect():
    figures = score_maps([judged([], [])])
    assert value(figures, "f1_30") == value(figures, "pixel_iou") == value(figures, "outline_f1") == 1
    assert value(figures, "false_per_100_km2") == value(figures, "false_per_100_km2_empty") == 0


def test_shares_of_nothing_are_not_numbers():
    figures = score_maps([judged([], [square(100, 100)])])
    assert math.isnan(value(figures, "precision_30"))
    assert value(figures, "recall_30") == value(figures, "f1_30") == 0
    assert math.isnan(value(figures, f"recall_30_{SIZE_CLASS_NAMES[0]}"))


def test_overlapping_polygons_cover_ground_once():
    figures = score_maps([judged([square(0, 0), square(50, 0)], [box(0, 0, 150, 100)])])
    assert value(figures, "pixel_iou") == pytest.approx(1)


def test_order_and_place_do_not_matter():
    truth = [square(1000 * i, 1000) for i in range(1, 5)] + [square(9000, 4000)]
    predicted = [translate(polygon, 20, 10) for polygon in truth[1:]]
    scores = [0.5, 0.9, 0.7, 0.6]
    one = score_maps([judged(predicted, truth, scores)])
    other = score_maps([judged(predicted[::-1], truth[::-1], scores[::-1])])
    for name, figure in one.items():
        assert figure.value == pytest.approx(other[name].value, nan_ok=True)


def test_intervals_hold_the_value_and_widen_when_groups_differ():
    alike = [square(1000, 1000), square(7000, 1000)]
    same = score_maps([judged(alike, alike)])["f1_30"]
    assert same.interval == (1, 1)
    differing = score_maps([judged(alike[:1], alike)])["recall_30"]
    assert differing.value == 0.5
    assert differing.interval == (0, 1)
    alone = JudgedMap(alike[:1], [1.0], alike[:1], {"west": box(0, 0, KM, KM)}, lambda _: "west")
    assert score_maps([alone])["f1_30"].interval is None


def test_what_is_found_across_a_border_of_groups_is_no_false_alarm():
    truth = [square(1000, 1000), square(4960, 3000), square(8000, 1000)]
    beside = [truth[0], square(4930, 3000), truth[2]]
    assert block(truth[1]) != block(beside[1])
    figures = score_maps([judged(beside, truth)])
    assert value(figures, "false_per_100_km2") == 0
    assert figures["f1_30"].interval == (1, 1)
    figures = score_maps([judged(beside[1:2], truth[1:2])])
    assert value(figures, "false_per_100_km2_empty") == 0


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(-9, 9), st.booleans()), min_size=2, max_size=12))
def test_shares_stay_shares_in_every_draw(places):
    truth = [square(100 * x, 1000 * number) for number, (x, _, _) in enumerate(places)]
    predicted = [
        translate(one, 10 * d, 0) for one, (_, d, is_mapped) in zip(truth, places, strict=True) if is_mapped
    ]
    halves = {"west": box(0, 0, 5 * KM, 12 * KM), "east": box(5 * KM, 0, 10 * KM, 12 * KM)}
    figures = score_maps([JudgedMap(predicted, [1.0] * len(predicted), truth, halves, block)], resamples=40)
    for name in ("precision_30", "recall_30", "f1_30", "panoptic_quality", "pixel_iou", "outline_f1"):
        assert 0 <= figures[name].value <= 1 or math.isnan(figures[name].value), name
        low, high = figures[name].interval or (0, 1)
        assert 0 <= low <= high <= 1 + 1e-12, name


def test_draws_of_empty_ground_alone_are_no_perfect_ones():
    blocks = {f"{number}": box(number * KM, 0, (number + 1) * KM, KM) for number in range(10)}
    one_false = JudgedMap(
        [square(100, 100)], [1.0], [square(500, 500)], blocks, lambda shape: f"{int(shape.bounds[0] // KM)}"
    )
    figures = score_maps([one_false])
    for name in ("precision_30", "recall_30", "f1_50", "pixel_iou", "outline_f1"):
        assert (figures[name].value, figures[name].interval) == (0, (0, 0)), name
    assert figures["area_ratio"].interval == pytest.approx((1, 1))
    above = figures[f"recall_30_{SIZE_CLASS_NAMES[-1]}"]
    assert math.isnan(above.value)
    assert above.interval is None


def test_outlines_of_which_none_is_near_agree_not_at_all():
    for predicted in ([], [square(9000, 100)]):
        figures = score_maps([judged(predicted, [square(100, 100)])])
        assert value(figures, "outline_f1") == value(figures, "f1_30") == 0


def test_several_maps_are_one_sum():
    first = judged([square(1000, 1000)], [square(1000, 1000), square(2000, 1000)])
    second = judged([square(3000, 1000)], [square(3000, 1000)])
    assert value(score_maps([first, second]), "recall_30") == pytest.approx(2 / 3)


def test_impossible_requests_are_refused():
    with pytest.raises(OptionsError, match="no ground"):
        score_maps([])
    for tolerance in (0, math.nan, math.inf):
        with pytest.raises(OptionsError, match="outline_tolerance_m"):
            score_maps([judged([], [])], outline_tolerance_m=tolerance)


def test_work_grows_with_the_slumps_and_not_with_their_square(monkeypatch):
    corners: list[int] = []
    overlay = shapely.intersection

    def counted(one, other):
        corners.append(int(np.sum(shapely.get_num_coordinates(one) + shapely.get_num_coordinates(other))))
        return overlay(one, other)

    monkeypatch.setattr(shapely, "intersection", counted)

    def work(count):
        corners.clear()
        truth = [square(200.0 * i, 0) for i in range(count)]
        score_maps([judged([translate(one, 20) for one in truth], truth)], resamples=1)
        return sum(corners)

    assert work(80) < 3 * work(40)
