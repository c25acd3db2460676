from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from rtsmap.errors import GridMismatchError, InputError
from rtsmap.mm.packs import TrainingImage, read_index, write_pack
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


def test_resolution_is_remembered_and_older_packs_know_none(tmp_path):
    images = [replace(labelled_image(0), resolution_m=2.5), labelled_image(1)]
    write_pack(tmp_path / "new.pack", images)
    first, last = read_index(tmp_path / "new.pack")
    assert (first.resolution_m, last.resolution_m) == (2.5, None)
    assert first.read(Window(0, 0, 32, 32)).resolution_m == 2.5
    with safe_open(tmp_path / "new.pack", framework="numpy") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    index = [{k: v for k, v in one.items() if k != "resolution_m"} for one in json.loads(metadata["index"])]
    save_file(tensors, tmp_path / "old.pack", {**metadata, "index": json.dumps(index)})
    old = list(read_index(tmp_path / "old.pack"))
    assert [image.resolution_m for image in old] == [None, None]
    assert [image.name for image in old] == [image.name for image in images]


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="no pack of training"):
        list(read_index(tmp_path / "weights.safetensors"))
    for index in ("[{]", "[1]", '[{"slumps": []}]', '[{"shape": [4]}]'):
        metadata = {"rtsmap_pack": "1", "index": index}
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / "damaged.pack", metadata)
        with pytest.raises(InputError, match=r"damaged\.pack: the index of the pack is damaged"):
            list(read_index(tmp_path / "damaged.pack"))
    (tmp_path / "broken.pack").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a readable pack"):
        list(read_index(tmp_path / "broken.pack"))


def test_shapes_that_disagree_are_refused():
    image = labelled_image()
    with pytest.raises(GridMismatchError, match="labels are"):
        TrainingImage("x", "x", image.optical, image.optical_valid[1:], image.labels, None)


def test_a_pack_that_is_not_there_is_told_with_what_makes_it(tmp_path):
    with pytest.raises(InputError, match=r"absent\.pack: there is no such pack; `rtsmap pack` makes it"):
        list(read_index(tmp_path / "absent.pack"))
