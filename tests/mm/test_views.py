from __future__ import annotations

import numpy as np
import pytest
import torch

from rtsmap.errors import CardError
from rtsmap.mm.views import VIEWS, View, hindrance, viewed
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, TERRAIN_FOR_TRAINING, InputSpec, Modality
from rtsmap.rasters.terrain import shaded_relief, slope_degrees
from tests.mm.tiny import SPEC, squares, tiny_network

SHAPE = (64, 96)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_every_view_is_its_own_inverse(view):
    maps = torch.randn(2, 3, *SHAPE)
    assert torch.equal(view.maps(view.maps(maps)), maps)
    assert view.maps(maps).shape[-2:] == view.shape(SHAPE)
    boxes = torch.tensor([[3.0, 5.0, 40.0, 22.0], [0.0, 0.0, 96.0, 64.0]])
    assert torch.equal(view.boxes(view.boxes(boxes, SHAPE), view.shape(SHAPE)), boxes)


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_boxes_stay_around_what_they_enclose(view):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[10:30, 50:90] = True
    (box,) = view.boxes(torch.tensor([[50.0, 10.0, 90.0, 30.0]]), SHAPE).long().tolist()
    seen = view.maps(mask)
    assert seen[box[1] : box[3], box[0] : box[2]].all()
    assert seen.sum() == (box[3] - box[1]) * (box[2] - box[0])


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_shows_terrain_as_if_it_had_been_computed_there(view):
    rng = np.random.default_rng(0)
    # so gentle that no pixel lies in full shade, of which nothing could be told
    right, up = rng.normal(0, 0.15, (2, *SHAPE))

    def bands(right, up):
        planes = np.stack([np.zeros_like(right), slope_degrees(right, up), shaded_relief(right, up)])
        mean, sd = (
            np.array([getattr(b, key) for b in TERRAIN.bands])[:, None, None] for key in ("mean", "sd")
        )
        return torch.from_numpy(((planes - mean) / sd).astype(np.float32))[None]

    # a gradient turns with the ground: by 180 degrees both parts change sign, transposed x becomes -y
    shown_right, shown_up = (
        view.maps(torch.from_numpy(part * (-1 if view.turned else 1))).numpy() for part in (right, up)
    )
    if view.transposed:
        shown_right, shown_up = -shown_up, -shown_right
    valid = torch.ones(1, *SHAPE, dtype=torch.bool)
    spec = InputSpec(4.0, (TERRAIN,))
    seen, seen_valid = viewed({"terrain": (bands(right, up), valid)}, view, spec)["terrain"]
    assert seen_valid.shape[-2:] == view.shape(SHAPE)
    torch.testing.assert_close(seen, bands(shown_right, shown_up), atol=2e-3, rtol=0)


def test_with_all_views_a_turned_scene_gives_turned_slumps():
    inputs, _ = squares(count=2)
    network = tiny_network(views=4, min_score=0.0, max_per_chip=8).eval()
    found = network.detect(inputs)
    for view in VIEWS[1:]:
        turned = network.detect(viewed(inputs, view, SPEC))
        for one, other in zip(found, turned, strict=True):
            assert len(one.scores) == len(other.scores) > 0
            torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=0)
            torch.testing.assert_close(view.boxes(one.boxes, (64, 64)), other.boxes, atol=1e-2, rtol=0)
            torch.testing.assert_close(view.maps(one.masks), other.masks, atol=1e-3, rtol=0)


def test_a_single_view_is_what_mmdet_predicts():
    inputs, _ = squares(count=2)
    network = tiny_network(min_score=0.0).eval()
    from rtsmap.mm.register import _sample

    samples = [_sample((64, 64), None, 1.0) for _ in range(2)]
    with torch.no_grad():
        wanted = network.detector.predict(inputs, samples, rescale=False)
    for one, other in zip(network.detect(inputs), wanted, strict=True):
        assert torch.equal(one.boxes, other.pred_instances.bboxes)
        assert torch.equal(one.scores, other.pred_instances.scores)
        assert torch.equal(one.masks, other.pred_instances.masks.float())


def test_the_number_of_views_is_checked():
    with pytest.raises(CardError, match="views 3: wanted 1, 2 or 4"):
        tiny_network(views=3)
    shade = next(band for band in TERRAIN.bands if band.name == "shaded_relief")
    alone = InputSpec(4.0, (OPTICAL_RGB, Modality("terrain", (shade,))))
    assert hindrance(4, SPEC) is None
    assert hindrance(2, alone) is None
    with pytest.raises(CardError, match="without slope"):
        tiny_network(alone, views=4)
    assert View() == VIEWS[0]


def test_a_network_that_sees_the_gradient_has_one_view():
    spec = InputSpec(4.0, (OPTICAL_RGB, TERRAIN_FOR_TRAINING))
    assert hindrance(1, spec) is None
    with pytest.raises(CardError, match="rise_right"):
        tiny_network(spec, views=2)


def test_a_view_that_sees_nothing_stands_beside_one_that_does():
    inputs, _ = squares(count=1)
    single = tiny_network(min_score=0.0, max_per_chip=8).eval()
    best = sorted(float(single.detect(viewed(inputs, view, SPEC))[0].scores.max()) for view in VIEWS)
    assert best[-1] > best[-2]
    network = tiny_network(views=4, min_score=(best[-1] + best[-2]) / 2, max_per_chip=8).eval()
    (found,) = network.detect(inputs)
    # what one view alone sees has half its score
    assert not len(found.scores)
