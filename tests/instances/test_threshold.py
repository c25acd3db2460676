from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from rasterio import features
from shapely.geometry import shape

from rtsmap.errors import OptionsError
from rtsmap.instances.detections import Side
from rtsmap.instances.threshold import ThresholdDetector
from rtsmap.rasters.chips import Chip, Layer
from rtsmap.rasters.tiling import Tile, Window
from tests.instances.tiled import chip_of, polar_grid, whole_grid
from tests.strategies import blobs, law

TILE = Tile(3, Window(110, 210, 150, 260), Window(100, 200, 160, 270))


def chip(values, valid=None, **more):
    optical = Layer(values[None].astype(np.float32), np.ones(values.shape, bool) if valid is None else valid)
    return Chip({"optical": optical, **more}, polar_grid(values.shape), TILE)


def spots():
    values = np.zeros(TILE.read.shape)
    values[10:20, 10:20] = 140
    values[30:33, 40:42] = 250
    values[0:2, 50:52] = 150
    return values


@law(100)
@given(blobs())
def test_components_are_those_that_gdal_finds(mask):
    (found,) = ThresholdDetector().detect([chip_of(mask, whole_grid(mask.shape))])
    expected = {
        tuple(int(v) for v in shape(geometry).bounds)
        for geometry, _ in features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    }
    assert {(d.window.col0, d.window.row0, d.window.col1, d.window.row1) for d in found} == expected
    assert sum(np.count_nonzero(d.mask) for d in found) == np.count_nonzero(mask)


def test_places_are_on_the_grid_and_sides_those_of_the_tile():
    (found,) = ThresholdDetector().detect([chip(spots())])
    places = {(d.window, d.sides, d.tile) for d in found}
    assert (Window(110, 210, 120, 220), Side.NONE, 3) in places
    assert (Window(100, 250, 102, 252), Side.TOP, 3) in places


def test_scores_run_with_the_mean_value():
    (found,) = ThresholdDetector(low=140, high=250).detect([chip(spots())])
    assert [d.score for d in found] == [pytest.approx(0.5 + 0.5 * 10 / 110), 0.5, 1.0]


def test_small_ones_are_left_out_unless_they_touch_a_side():
    (found,) = ThresholdDetector(min_px=10).detect([chip(spots())])
    assert [np.count_nonzero(d.mask) for d in found] == [4, 100]


def test_pixels_without_data_are_no_slump():
    valid = np.ones(TILE.read.shape, bool)
    valid[10:20, 10:15] = False
    (found,) = ThresholdDetector(min_px=10).detect([chip(spots(), valid)])
    assert [np.count_nonzero(d.mask) for d in found] == [4, 50]


def test_modalities_are_those_with_data_under_the_mask():
    valid = np.zeros(TILE.read.shape, bool)
    valid[:15] = True
    terrain = Layer(np.zeros((3, *TILE.read.shape), np.float32), valid)
    (found,) = ThresholdDetector(min_px=5).detect([chip(spots(), terrain=terrain)])
    assert {d.window.row0: d.modalities for d in found} == {
        100: ("optical", "terrain"),
        110: ("optical", "terrain"),
        130: ("optical",),
    }


def test_one_list_for_each_chip_in_order():
    empty = chip(np.zeros(TILE.read.shape))
    found = ThresholdDetector().detect([empty, chip(spots()), empty])
    assert [len(parts) for parts in found] == [0, 3, 0]
    assert ThresholdDetector().detect([]) == []


@pytest.mark.parametrize("detector", [ThresholdDetector("terrain"), ThresholdDetector(band=1)])
def test_a_band_that_is_not_there_is_named(detector):
    with pytest.raises(OptionsError, match=r"\{'optical': 1\}"):
        detector.detect([chip(spots())])


@pytest.mark.parametrize(
    "numbers",
    [{"low": 5, "high": 5}, {"high": float("inf")}, {"low": float("nan")}, {"min_px": 0}, {"band": -1}],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(OptionsError):
        ThresholdDetector(**numbers)
