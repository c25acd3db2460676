from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtsmap.errors import OptionsError
from rtsmap.rasters.tiling import Span, Tile, TileOptions, Window, plan_spans, plan_tiles
from tests.strategies import law, tilings

windows = st.builds(
    lambda row, col, height, width: Window(row, col, row + height, col + width),
    *(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 30), st.integers(0, 30)),
)


def painted(window: Window) -> set[tuple[int, int]]:
    return {(r, c) for r in range(window.row0, window.row1) for c in range(window.col0, window.col1)}


@law(300)
@given(st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_cores_hold_each_pixel_once(data, shape):
    tiles = plan_tiles(shape, data.draw(tilings(shape)))
    owners = np.zeros(shape, int)
    for tile in tiles:
        owners[tile.core.slices()] += 1
    assert (owners == 1).all()


@law(300)
@given(st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)))
def test_read_windows_stay_on_the_grid_and_within_a_chip(data, shape):
    options = data.draw(tilings(shape))
    for tile in plan_tiles(shape, options):
        assert Window(0, 0, *shape).contains(tile.read)
        assert max(tile.read.shape) <= options.chip_px


@pytest.mark.parametrize("chip", range(1, 14))
def test_spans_of_every_size_overlap_and_origin(chip):
    for size in range(1, 45):
        for overlap in range(chip // 2 + 1):
            for origin in range(chip):
                spans = plan_spans(size, chip, overlap, origin)
                assert [s.core0 for s in spans] == [0, *(s.core1 for s in spans[:-1])]
                assert spans[-1].core1 == size
                assert all(s.read0 <= s.core0 < s.core1 <= s.read1 for s in spans)
                for left, right in pairwise(spans):
                    assert left.read1 - right.read0 >= overlap
                    assert left.read0 < right.read0
                    assert left.read1 < right.read1


@law(300)
@given(st.integers(1, 2000), st.integers(1, 300), st.integers(0, 150))
def test_as_few_chips_as_reach_across(size, chip, overlap):
    overlap = min(overlap, chip // 2)
    spans = plan_spans(size, chip, overlap)
    reach = chip + (len(spans) - 2) * (chip - overlap)
    assert len(spans) == 1 or reach < size
    assert len(spans) == 1 or all(s.read1 - s.read0 == chip for s in spans)


def test_a_grid_smaller_than_a_chip_gets_one_tile():
    window = Window(0, 0, 7, 30)
    assert plan_tiles((7, 30), TileOptions(chip_px=64, overlap_px=16)) == (Tile(0, window, window),)


def test_cores_meet_in_the_middle_of_the_overlap():
    expected = (Span(0, 75, 0, 100), Span(75, 150, 50, 150))
    assert plan_spans(150, 100, 50) == expected


def test_full_chips_begin_at_the_origin():
    reads = [(s.read0, s.read1) for s in plan_spans(500, chip=100, overlap=20, origin=40)]
    assert (0, 60) in reads
    assert (40, 140) in reads


def test_an_origin_far_into_the_grid_does_not_make_a_chip_too_long():
    assert max(s.read1 - s.read0 for s in plan_spans(1000, chip=100, overlap=50, origin=90)) == 100


def test_tiles_are_numbered_row_by_row():
    tiles = plan_tiles((90, 140), TileOptions(chip_px=50, overlap_px=10))
    assert [tile.index for tile in tiles] == list(range(len(tiles)))
    assert [(t.core.row0, t.core.col0) for t in tiles] == sorted((t.core.row0, t.core.col0) for t in tiles)


@pytest.mark.parametrize(
    "options",
    [
        {"chip_px": 0},
        {"chip_px": 64, "overlap_px": 33},
        {"chip_px": 64, "overlap_px": -1},
        {"chip_px": 64, "overlap_px": 8, "origin_px": 64},
        {"chip_px": 64, "overlap_px": 8, "origin_px": -1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(OptionsError):
        TileOptions(**options)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 3)])
def test_a_grid_without_pixels_is_refused(shape):
    with pytest.raises(OptionsError, match="cannot tile"):
        plan_tiles(shape, TileOptions())


@law(200)
@given(windows, windows)
def test_windows_behave_like_sets_of_pixels(a, b):
    assert painted(a.intersection(b)) == painted(a) & painted(b)
    assert painted(a.union(b)) >= painted(a) | painted(b)
    assert a.contains(a.intersection(b)) or not a.meets(b)
    if not b.empty:
        assert a.contains(b) == (painted(b) <= painted(a))
    assert a.empty == (not painted(a))
    assert a.meets(b) == bool(painted(a) & painted(b))


@law(100)
@given(windows, st.integers(-9, 9), st.integers(-9, 9))
def test_a_shifted_window_has_the_same_slices_within_a_shifted_frame(window, rows, cols):
    frame = Window(-20, -20, 60, 60)
    moved = window.shifted(rows, cols)
    assert moved.shape == window.shape
    assert moved.slices(frame.shifted(rows, cols)) == window.slices(frame)


def test_a_tile_must_read_its_core():
    with pytest.raises(ValueError, match="must hold a core"):
        Tile(0, core=Window(0, 0, 10, 10), read=Window(0, 0, 10, 9))
