from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import assume, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from rtsmap.instances.detections import Detection
from rtsmap.instances.looks import MAX_LOOKS, LookGrid, Trail, distinct
from rtsmap.instances.seams import Instance, MergeOptions, TileMap, join_parts
from rtsmap.rasters.tiling import Tile, Window

CHIP_PX = 64
STEP_PX = CHIP_PX // 8
OPTIONS = MergeOptions()
GRID = LookGrid((600, 700), CHIP_PX)


def part(row0, col0, height, width, score=0.9) -> Detection:
    window = Window(row0, col0, row0 + height, col0 + width)
    return Detection(score, window, np.full((height, width), 255, np.uint8), 0, modalities=("optical",))


def slump(row0, col0, height, width, score=0.9) -> Instance:
    whole = Tile(0, Window(0, 0, 600, 700), Window(0, 0, 600, 700))
    return join_parts([part(row0, col0, height, width, score)], TileMap([whole]), OPTIONS)


def follow(trail: Trail, answer) -> Instance | None:
    """Look until nothing more is asked for; `answer(window)` is what is seen there, None for a failure."""
    looks = 0
    while (window := trail.next_look(GRID)) is not None:
        looks += 1
        found = answer(window)
        if found is None:
            trail.give_up()
            continue
        trail.take(Tile(looks, window, window), [replace(seen, tile=looks) for seen in found], OPTIONS)
    assert looks <= MAX_LOOKS
    return trail.result(GRID, OPTIONS)


outlines = st.tuples(st.integers(0, 500), st.integers(0, 600), st.integers(1, 96), st.integers(1, 96))


@given(outline=outlines, first=st.tuples(st.integers(-999, 999), st.integers(-999, 999)))
def test_a_look_holds_the_slump_and_lies_on_the_crs_grid(outline, first):
    found = slump(*outline)
    look = LookGrid((600, 700), CHIP_PX, first).window(found.window, found.inside)
    assert look.contains(found.window)
    assert Window(0, 0, 600, 700).contains(look)
    size = look.height
    assert look.shape == (size, size)
    assert size == (CHIP_PX if max(outline[2:]) <= 48 else 2 * CHIP_PX)
    step = size // 8
    assert (look.row0 + first[0]) % step == 0 or look.row0 == 0 or look.row1 == 600
    assert (look.col0 + first[1]) % step == 0 or look.col0 == 0 or look.col1 == 700


@given(outline=outlines, moved=st.tuples(st.integers(0, 90), st.integers(0, 90)))
def test_the_same_ground_is_looked_at_from_the_same_place_in_another_scene(outline, moved):
    """Two scenes of one CRS, the other one beginning `moved` pixels further down and right."""
    corner = (500_000.0, 7_700_000.0)
    here = GeoBox((1600, 1700), Affine(4, 0, corner[0], 0, -4, corner[1]), "EPSG:32608")
    there = here[moved[0] :, moved[1] :]
    one = slump(*outline)
    place = one.window.shifted(300, 300)
    a = LookGrid.of(here, CHIP_PX).window(place, one.inside)
    b = LookGrid.of(there, CHIP_PX).window(place.shifted(-moved[0], -moved[1]), one.inside)
    assert b.shifted(*moved) == a


def test_too_large_to_look_at_and_grids_smaller_than_a_chip():
    large = slump(0, 0, 97, 20)
    assert GRID.window(large.window, large.inside) is None
    assert follow(Trail(large), answer=None) is large
    small = slump(3, 4, 10, 10)
    assert LookGrid((30, 700), CHIP_PX).window(small.window, small.inside) == Window(0, 0, 30, 64)


def test_the_look_decides_score_and_outline():
    seen = follow(Trail(slump(100, 100, 20, 20, 0.6)), lambda _: [part(98, 99, 22, 20, 0.8)])
    assert (seen.score, seen.window) == (0.8, Window(98, 99, 120, 119))
    assert not seen.seam_unconfirmed


def test_what_no_look_sees_is_no_slump():
    assert follow(Trail(slump(100, 100, 20, 20)), lambda _: []) is None
    assert follow(Trail(slump(100, 100, 20, 20)), lambda _: [part(112, 112, 20, 20)]) is None


def test_a_failed_look_leaves_what_the_tiles_saw():
    found = slump(100, 100, 20, 20)
    assert follow(Trail(found), lambda _: None) is found


def test_a_slump_that_the_look_cuts_off_stays_as_the_tiles_saw_it():
    found = slump(100, 100, 40, 40)
    assert follow(Trail(found), lambda look: [part(look.row0, 100, 40, 40)]) is found


def test_of_duplicates_in_a_look_the_certain_one_counts():
    """A faint second outline that happens to fit the candidate better must not drown the slump."""
    found = slump(100, 100, 20, 20)
    seen = follow(Trail(found), lambda _: [part(100, 100, 20, 20, 0.06), part(100, 100, 20, 24, 0.7)])
    assert seen.score == 0.7


@given(start=st.sampled_from([0, 1]), scores=st.tuples(st.floats(0.3, 0.9), st.floats(0.3, 0.9)))
def test_looks_that_lead_to_each_other_give_one_answer_wherever_one_comes_in(start, scores):
    assume(scores[0] != scores[1])
    left, right = part(100, 100, 30, 30, scores[0]), part(100, 108, 30, 30, scores[1])
    places = [GRID.window(p.window, p.mask > 0) for p in (left, right)]
    assert places[0] != places[1]
    other = {places[0]: right, places[1]: left}
    first = (left, right)[start].window
    seen = follow(Trail(slump(first.row0, first.col0, 30, 30)), lambda look: [other[look]])
    assert seen.score == max(scores)


def test_a_trail_without_end_is_left():
    steps = iter(range(8, 800, 8))
    found = slump(100, 100, 20, 40)
    assert follow(Trail(found), lambda _: [part(100, 100 + next(steps), 20, 40)]) is found


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 30), st.integers(1, 30)), max_size=12
    ),
    st.randoms(use_true_random=False),
)
def test_of_slumps_found_twice_one_is_left(places, random):
    found = [slump(*place, score=random.random()) for place in places]
    kept = distinct(found, OPTIONS)
    random.shuffle(found)
    assert [(i.window, i.score) for i in distinct(found, OPTIONS)] == [(i.window, i.score) for i in kept]
    for one in kept:
        for other in kept:
            common = one.window.intersection(other.window)
            smaller = min(one.area_px, other.area_px)
            assert one is other or common.height * common.width <= 0.5 * smaller
    for gone in found:
        if not any(gone is one for one in kept):
            rivals = [one.window.intersection(gone.window) for one in kept if one.score >= gone.score]
            assert rivals
            assert max(r.height * r.width for r in rivals) > 0


@pytest.mark.parametrize("size", [1, 48, 96])
def test_sizes_at_the_limits(size):
    found = slump(200, 200, size, 3)
    assert GRID.window(found.window, found.inside) is not None
