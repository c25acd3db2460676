from __future__ import annotations

import pytest
from typer.testing import CliRunner

from rtsmap.cli.main import app
from rtsmap.runs import mapping
from rtsmap.vectors.geopackage import read_layers, read_map
from tests.runs.blob_scenes import BlobScene, blob_labels, engine, write_dem, write_scene
from tests.runs.test_mapping import CountingDetector


@pytest.fixture
def scene(tmp_path, monkeypatch) -> BlobScene:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: engine())
    return write_scene(tmp_path / "scene.tif", blob_labels((150, 150), 3, 12))


def test_a_scene_becomes_a_map_named_after_it(tmp_path, scene):
    dem = write_dem(tmp_path / "dem.tif", scene.geobox)
    done = CliRunner().invoke(app, ["predict", "scene.tif", "--dem", str(dem)])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == "scene_slumps.gpkg"
    assert f"{scene.labels.max()} slumps" in done.stderr
    assert len(read_map(tmp_path / "scene_slumps.gpkg")) == scene.labels.max()


def test_it_is_not_replaced_unless_asked(tmp_path, scene):
    arguments = ["predict", "scene.tif", "-o", "m.gpkg"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    again = CliRunner().invoke(app, [*arguments, "--overwrite", "--discard-run"])
    assert again.exit_code == 0
    assert "not computed again" in again.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gpkg", "scene.tif"]


def test_failed_tiles_are_listed_and_the_code_is_3(tmp_path, scene, monkeypatch):
    broken = engine(64, 0, CountingDetector(fails=frozenset({4})))
    monkeypatch.setattr(mapping, "engine_of", lambda *_, **__: broken)
    done = CliRunner().invoke(app, ["predict", "scene.tif", "-o", "m.gpkg"])
    assert done.exit_code == 3
    assert "tile 4: detecting failed: the network fell over" in done.stderr
    assert "failed" in set(read_layers(tmp_path / "m.gpkg").coverage["status"])


def test_a_scene_that_is_none_is_told(scene):
    done = CliRunner().invoke(app, ["predict", "missing.tif"])
    assert done.exit_code == 1
    assert "missing.tif" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_reach_the_run(tmp_path, scene):
    done = CliRunner().invoke(
        app, ["predict", "scene.tif", "-o", "m.gpkg", "--min-area-m2", "1e9", "--chip-px", "96"]
    )
    assert done.exit_code == 0
    layers = read_layers(tmp_path / "m.gpkg")
    assert len(layers.footprints) == 0
    assert layers.run_record["options"]["min_area_m2"] == 1e9
    assert layers.run_record["plan"]["tiles"]["chip_px"] == 96
    other = CliRunner().invoke(app, ["predict", "scene.tif", "-o", "m.gpkg", "--overwrite"])
    assert other.exit_code == 1
    assert "tiles.chip_px was 96, now 64" in " ".join(other.stderr.split())


def test_an_unknown_model_names_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_scene(tmp_path / "scene.tif", blob_labels((60, 60), 3, 3))
    done = CliRunner().invoke(app, ["predict", "scene.tif", "--model", "no-such-model"])
    assert done.exit_code == 1
    assert "no-such-model" in done.stderr


def test_an_unknown_rule_for_overlaps_is_refused_for_one_scene_too(scene):
    done = CliRunner().invoke(app, ["predict", "scene.tif", "--overlaps", "latest"])
    assert done.exit_code == 1
    assert "wanted one of" in done.stderr
