from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import rasterio

from rtsmap.errors import GridMismatchError, RtsmapError
from rtsmap.rasters import sources, writing
from rtsmap.rasters.tiling import Window
from tests.rasters.files import geobox, rgb

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_is_written_is_read_again(tmp_path, dtype):
    array = RNG.integers(0, 200, (3, 50, 70)).astype(dtype)
    valid = RNG.random((50, 70)) > 0.2
    box = geobox((50, 70), 2.0)
    path = tmp_path / "out.tif"
    writing.write_geotiff(path, array, box, valid=valid, band_names=("red", "green", "blue"))
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(), array)
        np.testing.assert_array_equal(src.dataset_mask() > 0, valid)
        assert src.descriptions == ("red", "green", "blue")
        assert [color.name for color in src.colorinterp] == ["red", "green", "blue"]
        assert (src.transform, src.crs.to_epsg()) == (box.affine, 32608)
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_blocks_written_one_by_one_make_the_same_file(tmp_path):
    array, box = RNG.integers(0, 200, (1, 90, 70)).astype(np.int16), geobox((90, 70), 2.0)
    blocks = [(Window(a, 0, b, 70), array[:, a:b]) for a, b in pairwise([0, 16, 48, 64, 90])]
    writing.write_geotiff_blocks(tmp_path / "a.tif", blocks, box, count=1, dtype="int16", nodata=-9999)
    with rasterio.open(tmp_path / "a.tif") as src:
        np.testing.assert_array_equal(src.read(), array)
        assert src.nodata == -9999


def test_overviews_are_written(tmp_path):
    writing.write_geotiff(tmp_path / "a.tif", rgb((600, 500)), geobox((600, 500)), overviews=True)
    assert sources.probe(tmp_path / "a.tif").overviews == (2, 4)


def test_a_file_that_fails_midway_leaves_the_old_one_alone(tmp_path):
    path = tmp_path / "a.tif"
    box = geobox((32, 32))
    writing.write_geotiff(path, np.ones((1, 32, 32), np.uint8), box)

    def blocks():
        yield Window(0, 0, 16, 32), np.full((1, 16, 32), 9, np.uint8)
        raise RtsmapError("disk full")

    with pytest.raises(RtsmapError):
        writing.write_geotiff_blocks(path, blocks(), box, count=1, dtype="uint8")
    with rasterio.open(path) as src:
        assert (src.read() == 1).all()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="limits of files are those of POSIX")
@pytest.mark.parametrize("kind", ["masked", "with overviews", "cog"])
def test_without_room_a_file_is_there_whole_or_not_at_all(tmp_path, kind):
    program = [sys.executable, "-m", "tests.rasters.full_disk", kind, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused = re.findall(r"(\d+)\.tif: cannot be written", done.stdout)
    assert len(refused) == len(done.stdout.splitlines())
    there = {path.stem for path in tmp_path.iterdir()}
    assert len(refused) >= 15
    assert len(there) >= 2
    assert not there & set(refused)
    wanted = content(tmp_path / "whole.tif")
    for name in there:
        assert content(tmp_path / f"{name}.tif") == wanted


def content(path):
    with rasterio.open(path) as src:
        levels = range(len(src.overviews(1)))
        found = [src.read().tobytes(), src.read_masks(1).tobytes()]
    for level in levels:
        with rasterio.open(path, overview_level=level) as src:
            found.append(src.read().tobytes())
    return found


def test_an_array_must_fit_its_grid(tmp_path):
    with pytest.raises(GridMismatchError):
        writing.write_geotiff(tmp_path / "a.tif", np.ones((3, 4), np.uint8), geobox((4, 3)))
