from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.mm.packs import TrainingImage, read_index
from rtsmap.rasters.tiling import Window
from tests.mm.labelled import labelled_image, packed


def test_write_then_read_any_window_is_the_same(tmp_path):
    first, last = packed(tmp_path)
    window = Window(10, 5, 70, 64)
    rows, cols = window.slices()
    whole, part = labelled_image(0), first.read(window)
    np.testing.assert_array_equal(part.optical, whole.optical[:, rows, cols])
    np.testing.assert_array_equal(part.labels, whole.labels[rows, cols])
    np.testing.assert_allclose(part.terrain.gradient, whole.terrain.gradient[:, rows, cols], atol=1e-4)
    np.testing.assert_allclose(
        part.terrain.relative_elevation, whole.terrain.relative_elevation[rows, cols], atol=3e-3
    )
    assert not last.has_terrain
    assert last.read(window).terrain is None


def test_index_knows_slumps_and_groups(tmp_path):
    first, last = packed(tmp_path)
    assert first.slumps == ((1, Window(20, 10, 44, 40)), (2, Window(60, 45, 80, 75)))
    assert (first.group, last.group) == ("group 0", "group 1")


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="no pack of training"):
        list(read_index(tmp_path / "weights.safetensors"))
    with pytest.raises(InputError, match="not a readable pack"):
        list(read_index(tmp_path / "absent.pack"))
    (tmp_path / "broken.pack").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable pack"):
        list(read_index(tmp_path / "broken.pack"))


def test_shapes_that_disagree_are_refused():
    image = labelled_image()
    with pytest.raises(GridMismatchError, match="labels are"):
        TrainingImage("x", "x", image.optical, image.optical_valid[1:], image.labels, None)
