from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rtsmap.instances.detections import Detection
from rtsmap.mm.held_out import HeldOut
from rtsmap.mm.samples import SampleOptions
from rtsmap.mm.sheet import MOST, choose, draw_predictions, picture
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.tiling import Window
from tests.mm.labelled import packed

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
YELLOW, CYAN = (255, 210, 63), (0, 229, 255)


@pytest.fixture
def held_out(tmp_path):
    """Two chips with two slumps each; the second one has no terrain."""
    return HeldOut.cut({"watched": packed(tmp_path)}, SPEC, SampleOptions(chip_px=96), 8)


def square(score):
    return Detection(score, Window(20, 10, 44, 40), np.full((24, 30), 255, np.uint8), 0)


def pixels_of(path, colour):
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).sum(axis=2) < 12).sum())


def test_the_sheet_shows_true_outlines_and_those_found_that_are_sure_enough(tmp_path, held_out):
    nothing, unsure, sure = tmp_path / "nothing.png", tmp_path / "unsure.png", tmp_path / "sure.png"
    draw_predictions(nothing, held_out, {"watched": [[], []]}, SPEC, 0.5)
    draw_predictions(unsure, held_out, {"watched": [[square(0.4)], []]}, SPEC, 0.5)
    draw_predictions(sure, held_out, {"watched": [[square(0.6)], []]}, SPEC, 0.5)
    assert pixels_of(nothing, CYAN) > 500
    # the legend has a yellow line in any case
    assert pixels_of(unsure, YELLOW) == pixels_of(nothing, YELLOW)
    assert pixels_of(sure, YELLOW) > pixels_of(nothing, YELLOW) + 200


def test_a_set_without_anything_to_see_is_still_drawn(tmp_path):
    draw_predictions(tmp_path / "empty.png", HeldOut({}), {}, SPEC, 0.5)
    assert pixels_of(tmp_path / "empty.png", (255, 255, 255)) > 1000


def test_chips_are_spread_over_all_that_show_something(held_out):
    first, last = held_out.sets["watched"]
    blank = type(first)("blank", first.layers, first.boxes[:0], first.masks[:0], first.ignored, first.kinds)
    samples = [first, *[blank] * 50, *[first] * 20, last]
    chosen = choose(samples, [[]] * len(samples))
    assert len(chosen) == MOST
    assert chosen[0][0] is first
    assert chosen[-1][0] is last
    assert all(sample is not blank for sample, _ in chosen)
    assert [sample for sample, _ in choose([blank, last], [[square(0.9)], []])] == [blank, last]


def test_no_data_is_white_and_colours_are_those_of_the_chip(held_out):
    first, last = held_out.sets["watched"]
    natural = picture(first.layers["optical"], OPTICAL_RGB)
    np.testing.assert_allclose(natural, first.layers["optical"].pixels.transpose(1, 2, 0) / 255, atol=1e-6)
    assert (picture(last.layers["terrain"], TERRAIN) == 1).all()
    assert picture(first.layers["terrain"], TERRAIN).std() > 0
