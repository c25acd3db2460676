"""Simulated scenes as files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyogrio
import pytest
import rasterio

from rtsmap.errors import InputError, OptionsError
from rtsmap.rasters.tiling import Window
from rtsmap.simulate.presets import PRESETS
from rtsmap.simulate.scenes import write_scene
from rtsmap.simulate.world import World, resized
from rtsmap.vectors.labels import read_polygons

SIDE = 288


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    shares: list[float] = []
    folder = tmp_path_factory.mktemp("scene")
    scene = write_scene("benchmark-1", 4, folder, block_px=128, size_px=SIDE, report=shares.append)
    return scene, World(resized(PRESETS["benchmark-1"], SIDE), 4), shares


def test_files_hold_what_the_world_renders(made):
    scene, world, _ = made
    with rasterio.open(scene.scene) as file:
        assert np.array_equal(file.read(), world.render(Window(0, 0, SIDE, SIDE))[0])
        assert file.nodata == 0
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue"]
        assert file.crs.to_epsg() == 32608
        assert file.transform == world.geobox.affine
    with rasterio.open(scene.dem) as file:
        assert np.array_equal(file.read(1), world.render_elevation(Window(0, 0, *world.dem_geobox.shape)))
        assert file.nodata == -9999
        assert file.crs.to_epsg() == 3413


def test_truth_and_lookalikes_are_the_outlines(made):
    scene, world, _ = made
    truth, others = read_polygons(scene.truth), read_polygons(scene.lookalikes)
    assert len(truth) == len(world.slumps) > 0
    assert list(truth.columns["dem_trace"]) == [f.dem_trace for f in world.slumps]
    for polygon, area, feature in zip(truth.geometries, truth.columns["area_m2"], world.slumps, strict=True):
        assert polygon.equals_exact(world.outline(feature), 1e-6)
        assert area == pytest.approx(polygon.area, abs=0.1)
    assert list(others.columns["kind"]) == [f.kind for f in world.lookalikes]


def test_progress_runs_to_the_end(made):
    assert made[2] == sorted(made[2])
    assert made[2][-1] == 1.0


def test_files_are_not_replaced_unasked(made):
    scene = made[0]
    before = scene.scene.stat().st_mtime_ns
    with pytest.raises(InputError, match=r"scene\.tif"):
        write_scene("benchmark-1", 5, scene.scene.parent, size_px=SIDE)
    assert scene.scene.stat().st_mtime_ns == before
    write_scene("benchmark-1", 4, scene.scene.parent, size_px=SIDE, overwrite=True)
    assert scene.scene.stat().st_mtime_ns != before


def test_a_scene_without_slumps_has_an_empty_truth(tmp_path):
    preset = replace(PRESETS["benchmark-1-sparse"], size_px=128, slump_count=(0, 0))
    scene = write_scene(preset, 1, tmp_path / "empty")
    assert pyogrio.read_info(scene.truth)["features"] == 0
    assert pyogrio.read_info(scene.lookalikes)["features"] > 0


def test_a_block_must_fit_tiles(tmp_path):
    with pytest.raises(OptionsError, match="block_px"):
        write_scene("demo", 1, tmp_path, block_px=100)
