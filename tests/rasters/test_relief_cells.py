from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsmap.errors import ReadError
from rtsmap.rasters import relief_cells
from rtsmap.rasters.bands import TERRAIN_BANDS
from rtsmap.rasters.elevation import Relief
from rtsmap.rasters.relief_cells import ReliefCells
from rtsmap.rasters.tiling import Window

SHAPE = (95, 130)
NOWHERE = Window(0, 0, 0, 0)


class Ground:
    """Relief whose pixels tell their place; `asked` are the windows that were computed."""

    def __init__(self, damaged=NOWHERE):
        self.damaged = damaged
        self.asked = []
        self.lock = threading.Lock()

    def __call__(self, window):
        with self.lock:
            self.asked.append(window)
        if window.meets(self.damaged):
            raise ReadError("dem.tif: cannot be read")
        rows, cols = np.mgrid[window.row0 : window.row1, window.col0 : window.col1]
        place = (1000 * rows + cols).astype(np.float32)
        bands = {name: place + i / 8 for i, name in enumerate((*TERRAIN_BANDS, "rise_up"))}
        return Relief(bands, (rows * cols) % 7 != 0)


@pytest.fixture(autouse=True)
def small_cells(monkeypatch):
    monkeypatch.setattr(relief_cells, "CELL_PX", 32)


def windows():
    def span(most):
        return st.lists(st.integers(0, most), min_size=2, max_size=2, unique=True).map(sorted)

    return st.tuples(span(SHAPE[0]), span(SHAPE[1])).map(lambda s: Window(s[0][0], s[1][0], s[0][1], s[1][1]))


def assert_is_ground(relief, window):
    wanted = Ground()(window)
    np.testing.assert_array_equal(relief.valid, wanted.valid)
    assert set(relief.bands) >= set(TERRAIN_BANDS)
    for name in TERRAIN_BANDS:
        np.testing.assert_array_equal(relief.bands[name], wanted.bands[name])


@settings(max_examples=60, deadline=None)
@given(asked=st.lists(windows(), min_size=1, max_size=8), kept=st.integers(1, 20))
def test_any_windows_in_any_order_hold_what_lies_there(asked, kept):
    ground = Ground()
    cells = ReliefCells(ground, SHAPE, kept)
    for window in asked:
        assert_is_ground(cells.relief(window), window)
    # each cell is one of the fixed division, whatever was asked
    assert all(cell.row0 % 32 == cell.col0 % 32 == 0 for cell in ground.asked)


def test_what_is_kept_is_not_computed_again_and_what_was_asked_last_is_kept():
    ground = Ground()
    cells = ReliefCells(ground, SHAPE, kept=2)
    first, second, third = (Window(0, col, 10, col + 10) for col in (0, 32, 64))
    for window in (first, second, first, third, first):
        cells.relief(window)
    assert len(ground.asked) == 3
    cells.relief(second)
    assert len(ground.asked) == 4


def test_threads_compute_a_cell_once():
    ground = Ground()
    cells = ReliefCells(ground, SHAPE)
    with ThreadPoolExecutor(8) as pool:
        for relief in pool.map(cells.relief, [Window(0, 0, *SHAPE)] * 16):
            assert_is_ground(relief, Window(0, 0, *SHAPE))
    assert len(ground.asked) == len(set(ground.asked)) == 3 * 5


def test_beside_what_is_damaged_windows_are_read_by_themselves_and_nothing_broken_is_kept():
    ground = Ground(damaged=Window(20, 20, 22, 22))
    cells = ReliefCells(ground, SHAPE)
    beside = Window(0, 0, 12, 40)
    assert_is_ground(cells.relief(beside), beside)
    with pytest.raises(ReadError, match=r"dem\.tif"):
        cells.relief(Window(10, 10, 30, 30))
    ground.damaged = NOWHERE
    assert_is_ground(cells.relief(Window(10, 10, 30, 30)), Window(10, 10, 30, 30))


def test_windows_beyond_the_grid_are_computed_by_themselves():
    ground = Ground()
    beyond = Window(90, 100, 120, 140)
    assert_is_ground(ReliefCells(ground, SHAPE).relief(beyond), beyond)
    assert ground.asked == [beyond]


def reliefs_of_nothing(window):
    return Ground()(window)


def test_cells_stay_behind_when_they_are_sent_to_another_process():
    cells = ReliefCells(reliefs_of_nothing, SHAPE, kept=5)
    cells.relief(Window(0, 0, 40, 40))
    sent = pickle.dumps(cells)
    assert len(sent) < 1000
    again = pickle.loads(sent)  # noqa: S301
    assert_is_ground(again.relief(Window(3, 4, 50, 60)), Window(3, 4, 50, 60))
