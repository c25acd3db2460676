from __future__ import annotations

import numpy as np
import pytest
import typer

from rtsmap import models
from rtsmap.cli import info as info_command
from rtsmap.errors import InputError
from rtsmap.rasters.bands import OPTICAL_RGB, TERRAIN, InputSpec
from rtsmap.rasters.survey import survey
from rtsmap.rasters.tiling import TileOptions
from tests.rasters.files import geobox, sentinel_scene, write
from tests.shared_data import shared

SPEC = InputSpec(4.0, (OPTICAL_RGB, TERRAIN))
TILES = TileOptions(64, 16)


def look(scene, dem=None, spec=SPEC):
    return survey(scene, dem, spec, TILES)


def test_it_tells_what_is_read_and_from_where(tmp_path):
    found = look(sentinel_scene(tmp_path / "scene.tif", 1024, 0.5, {1: 9, 2: 9, 4: 9, 8: 9, 16: 9}))
    assert found.scene["bands"] == "red = 1, green = 2, blue = 3"
    assert found.scene["reading"] == "from overview 1:8: 0.0 MB of pixels, 1.56% of the file's"
    assert found.grid["size"] == "128 x 128 pixels of 4 m"
    assert found.grid["tiles"].startswith("9 of 64 pixels")
    assert not found.blocked
    assert len(found.problems) == 1
    assert "no elevation model" in found.problems[0]


def test_it_tells_how_much_of_the_scene_has_terrain(tmp_path):
    scene = write(tmp_path / "scene.tif", np.ones((3, 100, 100), np.uint8), 4.0, photometric="RGB")
    half, whole = geobox((100, 50), 4.0), geobox((110, 110), 4.0)
    for box, covers in ((half, "50.0% of the scene"), (whole, "100.0% of the scene")):
        dem = write(tmp_path / "dem.tif", np.ones(box.shape, np.float32), 4.0)
        found = look(scene, dem)
        assert found.dem["covers"] == covers
        assert any("without terrain" in problem for problem in found.problems) == (box is half)


def test_what_stands_in_the_way_comes_first():
    found = look(shared("odd_rasters/rio-tiler_nocog.tif"))
    assert found.blocked
    assert "panchromatic" in found.problems[0]


def test_bands_can_be_said_and_other_depths_have_a_scale(tmp_path):
    scene = write(tmp_path / "s.tif", np.ones((8, 70, 70), np.uint16), 4.0, photometric="MINISBLACK")
    assert look(scene).blocked
    found = survey(scene, None, SPEC, TILES, {"red": 5, "green": 3, "blue": 2})
    assert not found.blocked
    assert found.scene["bands"] == "red = 5, green = 3, blue = 2"
    assert found.scene["radiometry"].startswith("percentiles 1 and 99")


def test_coarse_scenes_and_other_grids_are_named():
    problems = " ".join(look(shared("scenes/rmnp/rmnp-rgb.tif"), shared("scenes/rmnp/rmnp-dem.tif")).problems)
    assert "mapped at its own resolution" in problems
    assert "mapping in EPSG:32613" in problems
    assert "relative elevation looks" in problems


@pytest.mark.parametrize(("side_px", "warned"), [(15, True), (16, False)])
def test_scenes_too_small_to_judge_are_named(tmp_path, side_px, warned):
    pixels = np.ones((3, side_px, 100), np.uint8)
    found = look(write(tmp_path / "scene.tif", pixels, 4.0, photometric="RGB"))
    assert any("100 x 15 pixels" in problem for problem in found.problems) == warned
    assert not found.blocked


def test_unreadable_inputs_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        look(tmp_path / "absent.tif")


class _Card:
    name, spec, chip_px, overlap_px = "test", SPEC, 64, 16


def test_the_command_prints_and_its_exit_code_says_whether_it_can_be_mapped(monkeypatch, capsys):
    monkeypatch.setattr(models, "find_bundle", lambda name: name)
    monkeypatch.setattr(models, "read_card", lambda _: _Card)
    info_command.command(
        shared("scenes/kootenay/kootenayOrtho_rgb.tif"), shared("scenes/kootenay/kootenayCHM.tif")
    )
    text = capsys.readouterr().out
    for words in ("Scene", "EPSG:32611", "Grid for test", "36 x 28 pixels of 4 m", "Elevation model"):
        assert words in text
    with pytest.raises(typer.Exit):
        info_command.command(shared("odd_rasters/rio-tiler_nocog.tif"))
    assert "panchromatic" in capsys.readouterr().out
